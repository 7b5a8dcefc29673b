"""What an algorithm is, to the trainer."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_email.kernels.losses import Loss
from mlx_email.model.forward import completion_logps
from mlx_email.model.frozen import Frozen

Arrays = dict[str, mx.array]  # the columns of a micro-batch


def unchanged(
    batch: list[Arrays],
    policy: nn.Module,  # noqa: ARG001
    settings: Any,  # noqa: ARG001
    reference: Frozen | None,  # noqa: ARG001
) -> list[Arrays]:
    """The `prepare` of an algorithm that needs nothing but its examples."""
    return batch


def logps(policy: nn.Module, arrays: Arrays, gradient: bool) -> mx.array:
    """The usual `forward`: per-token log-probabilities (B, G, C) under the policy."""
    return completion_logps(
        policy,
        arrays["prompts"],
        arrays["prompt_lengths"],
        arrays["completions"],
        arrays["completion_mask"],
        gradient=gradient,
    )


@contextmanager
def as_it_is(model: nn.Module, settings: Any, seed: int) -> Generator[None]:  # noqa: ARG001
    """The `fitting` of an algorithm that trains the policy's adapters."""
    yield


@dataclass(frozen=True)
class Algorithm:
    """Three functions, and what they need. The trainer knows nothing else."""

    # The loss's own share of a micro-batch: (what forward gave, the micro-batch, the stage's settings). Pure.
    loss: Callable[[mx.array, Arrays, Any], Loss]
    # Without gradient, over all micro-batches of an optimiser step: gives them back with more columns. The last
    # argument is the reference policy where `live_reference` asks for it.
    prepare: Callable[[list[Arrays], nn.Module, Any, Frozen | None], list[Arrays]] = unchanged
    # What the gradient flows through; with False nothing is computed that only a gradient needs.
    forward: Callable[[nn.Module, Arrays, bool], mx.array] = logps
    # Whether the examples are given with their log-probabilities under the reference (the column ref_logps).
    reference: bool = False
    # Whether `prepare` is given the reference policy itself: the adapters as they were when the stage began.
    live_reference: bool = False
    # What the model has on while a stage trains (model, settings, seed): a reward head, frozen layers.
    fitting: Callable[[nn.Module, Any, int], AbstractContextManager[None]] = as_it_is
    # Whether what is trained is the policy, which the next stage goes on with.
    policy: bool = True
