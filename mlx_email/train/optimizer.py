"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), its schedule and the global-norm clip."""

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map


def adamw(weight_decay: float) -> optim.AdamW:
    """With bias correction, as in the paper; the learning rate is set at every step."""
    return optim.AdamW(learning_rate=0.0, weight_decay=weight_decay, bias_correction=True)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear from 0 to `peak` over the first share `warmup` of the steps, then a cosine that would reach 0 one step
    after the last: every step learns something.

    `step` counts from 1; a pure function of it, so nothing needs saving.

    >>> [round(learning_rate(s, 9, 1.0, 0.2), 3) for s in (1, 2, 6, 9)]
    [0.5, 1.0, 0.5, 0.038]
    """
    rising = math.ceil(steps * warmup)
    if step <= rising:
        return peak * step / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising + 1)))


def clipped_mean(sums: Any, count: mx.array, limit: float) -> tuple[Any, mx.array]:
    """Gradients of the mean from gradients of the sum, scaled down to a global norm of at most `limit`.

    Also gives the norm before clipping. A count of 0 (nothing but padding) gives zeros.
    """
    mean = tree_map(lambda g: g.astype(mx.float32) / mx.maximum(count, 1.0), sums)
    return optim.clip_grad_norm(mean, limit)
