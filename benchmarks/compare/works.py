"""The pieces of work by name."""

from mlx_email.benchmarks.compare import dpo, grpo, rejection, rollout, scoring, sft, step
from mlx_email.benchmarks.compare.side import Work

WORKS: dict[str, Work] = {
    "sft": sft.WORK,
    "dpo": dpo.WORK,
    "grpo": grpo.WORK,
    "rollout": rollout.WORK,
    "step": step.WORK,
    "rejection": rejection.WORK,
    "scoring": scoring.WORK,
}
