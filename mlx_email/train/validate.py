"""The loss on examples that are not trained on."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_email.algorithms import Algorithm, Context
from mlx_email.model.batch import Batch, Example
from mlx_email.train import batches
from mlx_email.train.loop import as_float
from mlx_email.train.memory import exhausted


def validation(
    model: nn.Module,
    algorithm: Algorithm,
    settings: Any,
    examples: Sequence[Example],
    plan: batches.Plan,
    context: Context | None = None,
) -> dict[str, float]:
    """Loss and metrics of the algorithm over all `examples`, without dropout: {"val/loss": ..., "val/<metric>": ...};
    where it measures something else (`Algorithm.measure`), that.

    Sums are added over the batches and divided once, as in training. The model is left in training mode.
    """
    model.eval()
    context = context or Context()
    with exhausted("validation"):
        # All at once: what is a statistic of a step must not depend on how the examples are cut into batches.
        whole = list(batches.once(examples, plan))
        measured = (algorithm.measure or partial(_mean_loss, algorithm))(whole, model, settings, context)
    model.train()
    return {f"val/{name}": value for name, value in measured.items()}


def _mean_loss(
    algorithm: Algorithm, whole: list[Batch], model: nn.Module, settings: Any, context: Context
) -> dict[str, float]:
    sums: Any = None
    for arrays in algorithm.prepare(whole, model, settings, context).columns:
        added = tuple(algorithm.loss(algorithm.forward(model, arrays, False), arrays, settings))
        sums = added if sums is None else tree_map(mx.add, sums, added)
        mx.eval(sums)
    total, count, metrics = sums
    named = {"loss": (total, count), **metrics}
    return {name: as_float(value) / max(as_float(n), 1.0) for name, (value, n) in named.items()}
