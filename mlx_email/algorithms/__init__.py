"""The algorithms, one small file each, in an explicit dict."""

from mlx_email.algorithms.dpo import DPO
from mlx_email.algorithms.enumerated import ENUMERATED
from mlx_email.algorithms.grpo import GRPO
from mlx_email.algorithms.kto import KTO
from mlx_email.algorithms.record import Algorithm, Context
from mlx_email.algorithms.reward import REWARD
from mlx_email.algorithms.rsf import RSF
from mlx_email.algorithms.sft import SFT
from mlx_email.algorithms.temporal import TEMPORAL
from mlx_email.config import Grpo, Stage

# By the `algorithm` of a stage's settings.
ALGORITHMS: dict[str, Algorithm] = {
    "sft": SFT,
    "reward": REWARD,
    "dpo": DPO,
    "kto": KTO,
    "grpo": GRPO,
    "rsf": RSF,
    "temporal": TEMPORAL,
}


def algorithm_of(stage: Stage) -> Algorithm:
    """What a stage's settings ask for."""
    if isinstance(stage, Grpo) and stage.rollout == "enumerate":
        return ENUMERATED
    return ALGORITHMS[str(stage.__struct_config__.tag)]


__all__ = ["ALGORITHMS", "ENUMERATED", "Algorithm", "Context", "algorithm_of"]
