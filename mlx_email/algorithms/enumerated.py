"""Policy optimisation without sampling: the five actions are all scored from one prompt pass, and the objective is its
own expectation over them (`losses.enumerated`). G = 5 completions a prompt, the actions' lines in the order of ACTIONS.

An action is worth what its canonical answer is worth: the owner's own answer, or the one that says another action.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_email.algorithms.actions import measure, rewards_of
from mlx_email.algorithms.grpo import asks_for_reference, updates
from mlx_email.algorithms.record import Algorithm, Context, Prepared
from mlx_email.config import Grpo
from mlx_email.kernels import losses
from mlx_email.model.batch import Arrays, Batch
from mlx_email.model.frozen import Frozen


def prepare(batch: list[Batch], policy: nn.Module, settings: Grpo, context: Context) -> Prepared:
    """Adds rewards (B, 5), and with several updates old_logps (B, 5, C)."""
    columns = [{**each.arrays, "rewards": mx.array(rewards_of(each, context))} for each in batch]
    if settings.updates > 1:
        now = Frozen.of(policy)
        columns = [{**arrays, "old_logps": now.logps(policy, arrays)} for arrays in columns]
    return Prepared(columns)


def loss(logps: mx.array, arrays: Arrays, settings: Grpo) -> losses.Loss:
    def of_actions(name: str) -> mx.array | None:
        return arrays[name].sum(axis=-1) if name in arrays else None

    return losses.enumerated(
        logps.sum(axis=-1),
        of_actions("old_logps"),
        of_actions("ref_logps"),
        arrays["rewards"],
        arrays["completion_mask"].any(axis=(1, 2)),
        beta=settings.beta,
        epsilon_low=settings.epsilon_low,
        epsilon_high=settings.high,
        scale=settings.advantages == "group",
        kl=settings.kl or "exact",
    )


ENUMERATED = Algorithm(loss=loss, prepare=prepare, updates=updates, reference=asks_for_reference, measure=measure)
