"""Train a private model of what you do with your mail, on your own machine.

Importing this package loads a fast BLAS on Linux, which must happen before `mlx.core` is first imported
(see `mlx_email.blas`); it imports neither mlx nor anything else that is slow.
"""

from mlx_email import blas

__version__ = "0.1.0"

blas.load()
