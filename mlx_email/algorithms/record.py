"""What an algorithm is, to the trainer."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_email.kernels.losses import Loss
from mlx_email.model.batch import Arrays, Batch
from mlx_email.model.forward import completion_logps
from mlx_email.model.frozen import Frozen
from mlx_email.model.render import Renderer
from mlx_email.rewards.judge import Judge, Judged


@dataclass(frozen=True)
class Context:
    """What `prepare` may use besides its batch and the policy: constant while a stage trains, but for the step."""

    step: int = 0  # the first one that is taken with what is prepared, from 1; 0: none, it is for a validation
    seed: int = 0  # of the stage; to `prepare`, of whatever is random in its step
    reference: Frozen | None = None  # the adapters as they were when the stage began
    renderer: Renderer | None = None  # token ids to text, and where an answer ends
    judge: Judge | None = None  # what a completion is worth
    compiled: bool = False  # whether the step is compiled: then it should come in few shapes
    rolling: Callable[[int], object] = lambda tokens: None  # noqa: ARG005 - told how many tokens were sampled


@dataclass(frozen=True)
class Prepared:
    """What an optimiser step learns from."""

    columns: list[Arrays]  # of its micro-batches; there may be none
    metrics: dict[str, float] = field(default_factory=dict)  # to be logged with the step's
    judged: Sequence[Judged] = ()  # what was sampled and judged, to be shown


def unchanged(
    batch: list[Batch],
    policy: nn.Module,  # noqa: ARG001
    settings: Any,  # noqa: ARG001
    context: Context,  # noqa: ARG001
) -> Prepared:
    """The `prepare` of an algorithm that needs nothing but its examples."""
    return Prepared([each.arrays for each in batch])


def once(settings: Any) -> int:  # noqa: ARG001
    """The `updates` of an algorithm that prepares anew for every step."""
    return 1


def never(settings: Any) -> bool:  # noqa: ARG001
    """Whether a reference is needed, of an algorithm that has none."""
    return False


def always(settings: Any) -> bool:  # noqa: ARG001
    """The same, of one that has one."""
    return True


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
    # Without gradient, over all micro-batches of an optimiser step (batch, policy, settings, context): what its loss
    # is of.
    prepare: Callable[[list[Batch], nn.Module, Any, Context], Prepared] = unchanged
    # How many steps are taken, one after another, with what `prepare` gave.
    updates: Callable[[Any], int] = once
    # What the gradient flows through; with False nothing is computed that only a gradient needs.
    forward: Callable[[nn.Module, Arrays, bool], mx.array] = logps
    # Whether the examples are given with their log-probabilities under the reference (the column ref_logps).
    reference: Callable[[Any], bool] = never
    # Whether `prepare` is given the reference policy itself: the adapters as they were when the stage began.
    live_reference: Callable[[Any], bool] = never
    # What is measured on held-out examples (batches, policy, settings, context), by name, "loss" among it: the lower,
    # the better. None: the mean loss, and what it reports.
    measure: Callable[[list[Batch], nn.Module, Any, Context], dict[str, float]] | None = None
    # What the model has on while a stage trains (model, settings, seed): a reward head, frozen layers.
    fitting: Callable[[nn.Module, Any, int], AbstractContextManager[None]] = as_it_is
    # Whether what is trained is the policy, which the next stage goes on with.
    policy: bool = True
