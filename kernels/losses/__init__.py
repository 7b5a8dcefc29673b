"""Losses of per-token log-probabilities: pure functions, each a page with its formula and paper."""

from mlx_email.kernels.losses.common import Loss
from mlx_email.kernels.losses.sft import sft

__all__ = ["Loss", "sft"]
