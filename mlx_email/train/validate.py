"""The loss on examples that are not trained on."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_email.algorithms import Algorithm
from mlx_email.model.batch import Example
from mlx_email.model.frozen import Frozen
from mlx_email.train import batches
from mlx_email.train.loop import as_float
from mlx_email.train.memory import exhausted


def validation(
    model: nn.Module,
    algorithm: Algorithm,
    settings: Any,
    examples: Sequence[Example],
    plan: batches.Plan,
    reference: Frozen | None = None,
) -> dict[str, float]:
    """Loss and metrics of the algorithm over all `examples`, without dropout: {"val/loss": ..., "val/<metric>": ...}.

    Sums are added over the batches and divided once, as in training. The model is left in training mode.
    """
    model.eval()
    sums: Any = None
    with exhausted("validation"):
        # All at once: what is a statistic of a step must not depend on how the examples are cut into batches.
        columns = [batch.arrays for batch in batches.once(examples, plan)]
        for arrays in algorithm.prepare(columns, model, settings, reference):
            added = tuple(algorithm.loss(algorithm.forward(model, arrays, False), arrays, settings))
            sums = added if sums is None else tree_map(mx.add, sums, added)
            mx.eval(sums)
    model.train()
    total, count, metrics = sums
    named = {"loss": (total, count), **metrics}
    return {f"val/{name}": as_float(value) / max(as_float(n), 1.0) for name, (value, n) in named.items()}
