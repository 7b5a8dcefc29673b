"""What an algorithm is, to the trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_email.kernels.losses import Loss
from mlx_email.model.forward import completion_logps

Arrays = dict[str, mx.array]  # the columns of a micro-batch


def unchanged(batch: list[Arrays], policy: nn.Module, settings: Any) -> list[Arrays]:  # noqa: ARG001
    """The `prepare` of an algorithm that needs nothing but its examples."""
    return batch


def logps(policy: nn.Module, arrays: Arrays) -> mx.array:
    """The usual `forward`: per-token log-probabilities (B, G, C) under the policy."""
    return completion_logps(
        policy, arrays["prompts"], arrays["prompt_lengths"], arrays["completions"], arrays["completion_mask"]
    )


@dataclass(frozen=True)
class Algorithm:
    """Three functions. The trainer calls them in this order and knows nothing else."""

    # The loss's own share of a micro-batch: (what forward gave, the micro-batch, the stage's settings). Pure.
    loss: Callable[[mx.array, Arrays, Any], Loss]
    # Without gradient, over all micro-batches of an optimiser step: gives them back with more columns.
    prepare: Callable[[list[Arrays], nn.Module, Any], list[Arrays]] = unchanged
    # What the gradient flows through.
    forward: Callable[[nn.Module, Arrays], mx.array] = logps
    # Whether the examples are given with their log-probabilities under the reference (the column ref_logps).
    reference: bool = False
