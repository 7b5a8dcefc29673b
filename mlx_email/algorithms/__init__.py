"""The algorithms, one small file each, in an explicit dict."""

from mlx_email.algorithms.record import Algorithm
from mlx_email.algorithms.sft import SFT

ALGORITHMS: dict[str, Algorithm] = {"sft": SFT}  # by the `algorithm` of a stage's settings

__all__ = ["ALGORITHMS", "Algorithm"]
