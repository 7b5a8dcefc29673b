"""`python -m mlx_email`: the same as `mlx-email`."""

import sys

from mlx_email.cli import main

if __name__ == "__main__":  # worker processes import this file too
    sys.exit(main())
