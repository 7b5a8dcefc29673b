"""Losses of per-token log-probabilities, or of rewards: pure functions, each a page with its formula and paper."""

from mlx_email.kernels.losses.advantages import group_advantages, leave_one_out
from mlx_email.kernels.losses.common import Loss
from mlx_email.kernels.losses.dpo import dpo
from mlx_email.kernels.losses.enumerated import enumerated
from mlx_email.kernels.losses.grpo import grpo
from mlx_email.kernels.losses.kto import kto
from mlx_email.kernels.losses.reward import bradley_terry
from mlx_email.kernels.losses.sft import sft

__all__ = ["Loss", "bradley_terry", "dpo", "enumerated", "group_advantages", "grpo", "kto", "leave_one_out", "sft"]
