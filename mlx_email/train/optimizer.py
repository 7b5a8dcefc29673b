"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), its schedules and the global-norm clip."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map


def adamw(weight_decay: float) -> optim.AdamW:
    """With bias correction, as in the paper; the learning rate is set at every step."""
    return optim.AdamW(learning_rate=0.0, weight_decay=weight_decay, bias_correction=True)


def learning_rate(schedule: str, step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear from 0 to `peak` over the first share `warmup` of the steps, then by `schedule`: "constant", or "linear"
    or "cosine" to what would be 0 one step after the last, so that every step learns something.

    `step` counts from 1; a pure function of it, so nothing needs saving.

    >>> [round(learning_rate("cosine", s, 9, 1.0, 0.2), 3) for s in (1, 2, 6, 9)]
    [0.5, 1.0, 0.5, 0.038]
    >>> [round(learning_rate("linear", s, 9, 1.0, 0.2), 3) for s in (1, 2, 6, 9)]
    [0.5, 1.0, 0.5, 0.125]
    """
    rising = math.ceil(steps * warmup)
    if step <= rising:
        return peak * step / rising
    return peak * FALLING[schedule]((step - rising) / (steps - rising + 1))


# How a schedule falls: from the share of the steps after the warm-up to the share of the peak.
FALLING: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,  # noqa: ARG005
    "linear": lambda share: 1 - share,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}


def clipped_mean(sums: Any, count: mx.array, limit: float) -> tuple[Any, mx.array]:
    """Gradients of the mean from gradients of the sum, scaled down to a global norm of at most `limit`.

    Also gives the norm before clipping. A count of 0 (nothing but padding) gives zeros.
    """
    mean = tree_map(lambda g: g.astype(mx.float32) / mx.maximum(count, 1.0), sums)
    return optim.clip_grad_norm(mean, limit)
