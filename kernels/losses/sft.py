"""Supervised fine-tuning: the negative log-likelihood of the demonstrated tokens."""

import mlx.core as mx

from mlx_email.kernels.compiling import compiled
from mlx_email.kernels.losses.common import Loss


@compiled
def _sums(policy: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
    real = mask.astype(mx.float32)
    # where, not a product: a masked position may hold anything, and 0 * inf is not 0.
    return -mx.where(real > 0, policy.astype(mx.float32), 0.0).sum(), real.sum()


def sft(policy: mx.array, mask: mx.array) -> Loss:
    """Cross-entropy over completion tokens: -sum(mask * policy), counted in tokens.

    Shapes: policy (..., C) float32 log-probabilities in nats; mask (..., C), float or bool, 1 where a token counts.
    The value total / count is nats per completion token; an all-masked batch gives (0, 0).

    >>> loss = sft(mx.log(mx.array([[0.5, 0.25, 0.1]])), mx.array([[1, 1, 0]]))
    >>> round(loss.total.item(), 6), loss.count.item()
    (2.079442, 2.0)
    """
    total, count = _sums(policy, mask)
    return Loss(total, count, {})
