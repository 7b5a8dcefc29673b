"""The training loop, the only one. It does no I/O: it yields what each step did; the caller logs, saves or stops."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from mlx_email.algorithms import Algorithm, Context
from mlx_email.errors import MlxEmailError
from mlx_email.model import dropout
from mlx_email.model.batch import Batch
from mlx_email.rewards.judge import Judged
from mlx_email.train.memory import exhausted
from mlx_email.train.optimizer import clipped_mean


@dataclass(frozen=True)
class StepResult:
    """One optimiser update."""

    step: int  # from 1
    loss: float  # total / count over the whole step
    tokens: int  # real completion tokens
    examples: int
    grad_norm: float  # before clipping
    lr: float
    seconds: float
    traces: int  # compiled so far in this process; 0 where nothing is compiled
    metrics: dict[str, float]
    judged: Sequence[Judged] = ()  # what was sampled for it, and for the steps up to the next that has some


def train(
    model: nn.Module,
    algorithm: Algorithm,
    settings: Any,
    steps: Iterable[list[Batch]],
    optimizer: optim.Optimizer,
    rate: Callable[[int], float],
    *,
    clip: float,
    seed: int,
    compiled: bool,
    start: int = 0,
    context: Context | None = None,
) -> Iterator[StepResult]:
    """Update the model's trainable arrays for every element of `steps` (its micro-batches): once, or as many times as
    the algorithm takes steps with what it has prepared.

    Sums of loss and gradients are added over the micro-batches and divided once by the summed count, so eight
    micro-batches of one give the gradient of one batch of eight. Where nothing counts, nothing changes. `rate(step)`
    is the learning rate; the first step's number is `start + 1`, and whatever is random in a step is a function of
    (seed, its number). The algorithm's `prepare` is given the `context`, with the step's number.

    Raises MlxEmailError, before the update, at a loss or gradient that is not finite (it never reaches the weights),
    and where the memory does not suffice.
    """
    model.train()
    share = MicroBatch(model, algorithm, settings, compiled=compiled)
    update = updating(model, optimizer, compiled=compiled)
    updates = algorithm.updates(settings)
    for first, batches in zip(itertools.count(start + 1, updates), steps, strict=False):
        started = time.perf_counter()
        context = context or Context()
        around = replace(context, step=first, seed=derived_seed(seed, first, context.seed))
        with exhausted(f"step {first}"):
            prepared = algorithm.prepare(batches, model, settings, around)
        tokens = sum(int(as_float((arrays["completion_mask"] > 0).sum())) for arrays in prepared.columns)
        for step in range(first, first + updates):
            with exhausted(f"step {step}"):
                sums: Any = None
                for number, arrays in enumerate(prepared.columns):
                    added = share(arrays, mx.random.key(derived_seed(seed, step, number)))
                    sums = added if sums is None else tree_map(mx.add, sums, added)
                    mx.eval(sums)  # one micro-batch's activations at a time
                if sums is None:  # nothing in it teaches anything
                    sums = (mx.array(0.0), mx.array(0.0), {}), {}
                (total, count, metrics), gradients = sums
                gradients, norm = clipped_mean(gradients, count, clip)
                mx.eval(gradients, norm)
            loss = as_float(total) / max(as_float(count), 1.0)
            grad_norm, lr = as_float(norm), rate(step)
            if not all(map(math.isfinite, (loss, grad_norm, lr))):
                messages = ", ".join(identity for batch in batches for identity in batch.ids)
                raise MlxEmailError(
                    f"step {step}: loss {loss}, gradient norm {grad_norm}, learning rate {lr}; the weights are as "
                    f"after step {step - 1}. Lower the learning rate, or look at the messages {messages}"
                )
            if as_float(count) > 0:
                with exhausted(f"step {step}"):
                    update(gradients, lr)
            seconds = max(time.perf_counter() - started, 1e-9)  # divided by; a clock may stand
            yield StepResult(
                step=step,
                loss=loss,
                tokens=tokens,
                examples=sum(len(batch.examples) for batch in batches) if step == first else 0,
                grad_norm=grad_norm,
                lr=lr,
                seconds=seconds,
                traces=share.traces,
                metrics={
                    **prepared.metrics,
                    **{name: as_float(value) / max(as_float(n), 1.0) for name, (value, n) in metrics.items()},
                },
                judged=prepared.judged if step == first else (),
            )
            started = time.perf_counter()


@dataclass
class MicroBatch:
    """A function from a micro-batch's arrays and a random key to ((total, count, metrics), gradients of the total)."""

    model: nn.Module
    algorithm: Algorithm
    settings: Any
    compiled: bool = field(kw_only=True)
    traces: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        gradient = nn.value_and_grad(self.model, self._loss)
        # The model is an output too: tracing puts placeholders into it, which would stay there otherwise.
        state = [self.model.state]
        self._call = mx.compile(gradient, inputs=state, outputs=state) if self.compiled else gradient

    def __call__(self, arrays: dict[str, mx.array], key: mx.array) -> Any:
        return self._call(arrays, key)

    def _loss(self, arrays: dict[str, mx.array], key: mx.array) -> tuple[mx.array, mx.array, dict]:
        self.traces += self.compiled  # Python runs only while mx.compile traces
        dropout.rekey(self.model, key)
        loss = self.algorithm.loss(self.algorithm.forward(self.model, arrays, True), arrays, self.settings)
        dropout.rekey(self.model, None)
        return tuple(loss)


def updating(model: nn.Module, optimizer: optim.Optimizer, *, compiled: bool) -> Callable[[Any, float], None]:
    """A function that applies mean gradients at a learning rate to the model's trainable arrays, in place."""
    optimizer.init(model.trainable_parameters())

    def plain(gradients: Any) -> None:
        optimizer.update(model, gradients)

    state = [model.state, optimizer.state]
    apply = mx.compile(plain, inputs=state, outputs=state) if compiled else plain

    def update(gradients: Any, rate: float) -> None:
        optimizer.learning_rate = mx.array(rate, mx.float32)
        apply(gradients)
        mx.eval(model.trainable_parameters(), optimizer.state)

    return update


def as_float(array: mx.array) -> float:
    """The value of a scalar array."""
    return np.array(array).item()


def derived_seed(*place: int) -> int:
    """A seed for one place of a run, such as (seed, step, micro-batch): nothing random needs saving."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
