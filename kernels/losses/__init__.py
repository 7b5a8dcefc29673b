"""Losses of per-token log-probabilities: pure functions, each a page with its formula and paper."""

from mlx_email.kernels.losses.advantages import group_advantages
from mlx_email.kernels.losses.common import Loss
from mlx_email.kernels.losses.dpo import dpo
from mlx_email.kernels.losses.grpo import grpo
from mlx_email.kernels.losses.sft import sft

__all__ = ["Loss", "dpo", "group_advantages", "grpo", "sft"]
