"""The algorithms, one small file each, in an explicit dict."""

from mlx_email.algorithms.dpo import DPO
from mlx_email.algorithms.kto import KTO
from mlx_email.algorithms.record import Algorithm
from mlx_email.algorithms.reward import REWARD
from mlx_email.algorithms.sft import SFT

# By the `algorithm` of a stage's settings.
ALGORITHMS: dict[str, Algorithm] = {"sft": SFT, "reward": REWARD, "dpo": DPO, "kto": KTO}

__all__ = ["ALGORITHMS", "Algorithm"]
