"""The training loop, the only one. It does no I/O: it yields what each step did; the caller logs, saves or stops."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from mlx_email.algorithms import Algorithm
from mlx_email.errors import MlxEmailError
from mlx_email.model.batch import Batch
from mlx_email.train.optimizer import clipped_mean


@dataclass(frozen=True)
class StepResult:
    """One optimiser update."""

    step: int  # from 1
    loss: float  # total / count over the whole step
    tokens: int  # real completion tokens
    grad_norm: float  # before clipping
    lr: float
    seconds: float
    metrics: dict[str, float]


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
) -> Iterator[StepResult]:
    """Update the model's trainable arrays once for every element of `steps` (its micro-batches).

    Sums of loss and gradients are added over the micro-batches and divided once by the summed count, so eight
    micro-batches of one give the gradient of one batch of eight. `rate(step)` is the learning rate.

    Raises MlxEmailError, before the update, at a loss or gradient that is not finite: it never reaches the weights.
    """
    model.train()
    share = micro_batch(model, algorithm, settings, compiled=compiled)
    for step, batches in enumerate(steps, start=1):
        started = time.perf_counter()
        columns = algorithm.prepare([batch.arrays for batch in batches], model, settings)
        sums: Any = None
        for number, arrays in enumerate(columns):
            mx.random.seed(derived_seed(seed, step, number))
            added = share(arrays)
            sums = added if sums is None else tree_map(mx.add, sums, added)
            mx.eval(sums)  # one micro-batch's activations at a time
        (total, count, metrics), gradients = sums
        gradients, norm = clipped_mean(gradients, count, clip)
        loss = as_float(total) / max(as_float(count), 1.0)
        grad_norm = as_float(norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            messages = ", ".join(identity for batch in batches for identity in batch.ids)
            raise MlxEmailError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}; the weights are as after step {step - 1}. "
                f"Lower the learning rate, or look at the messages {messages}"
            )
        optimizer.learning_rate = rate(step)
        optimizer.update(model, gradients)
        mx.eval(model.trainable_parameters(), optimizer.state)
        yield StepResult(
            step=step,
            loss=loss,
            tokens=sum(batch.tokens for batch in batches),
            grad_norm=grad_norm,
            lr=rate(step),
            seconds=time.perf_counter() - started,
            metrics={name: as_float(value) / max(as_float(n), 1.0) for name, (value, n) in metrics.items()},
        )


def micro_batch(model: nn.Module, algorithm: Algorithm, settings: Any, *, compiled: bool) -> Callable[[dict], Any]:
    """A function from a micro-batch's arrays to ((total, count, metrics), gradients of the total)."""

    def loss(arrays: dict[str, mx.array]) -> tuple[mx.array, mx.array, dict]:
        return tuple(algorithm.loss(algorithm.forward(model, arrays), arrays, settings))

    gradient = nn.value_and_grad(model, loss)
    if not compiled:
        return gradient
    # Dropout draws from the global random state. The model is an output too: tracing puts placeholders into it, which
    # would stay there otherwise.
    state = [model.state, mx.random.state]
    return mx.compile(gradient, inputs=state, outputs=state)


def as_float(array: mx.array) -> float:
    """The value of a scalar array."""
    return np.array(array).item()


def derived_seed(*place: int) -> int:
    """A seed for one place of a run, such as (seed, step, micro-batch): nothing random needs saving."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
