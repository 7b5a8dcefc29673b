"""The shipped configurations, installed as `mlx_email.configs` so that `--config NAME` finds them."""
