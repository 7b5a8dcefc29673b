"""From hidden states to log-probabilities of given tokens, without an array of tokens x vocabulary.

*Source*: log p(t) = h . W[t] - logsumexp(W h), so d log p(t) / dh = (onehot(t) - softmax(W h)) @ W. Under LoRA the
head W is frozen and the cotangent of a token's log-probability is one number, so that vector, formed while a chunk's
logits are alive, is all the backward pass needs: nothing is computed twice and no logits are kept.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_email.kernels import quantized

# Logits of one chunk, in elements: 16 MiB of float32. MLX queues work ahead, and about sixteen arrays of that size are
# alive at once (measured: 192 to 256 MiB whatever the number of tokens).
CHUNK_ELEMENTS = 1 << 22

Head = nn.Linear | nn.Embedding | nn.QuantizedLinear | nn.QuantizedEmbedding


class _Projection(NamedTuple):
    """The head W (V, D) and bias b as two products: x -> x @ W.T + b and e -> e @ W."""

    logits: Callable[[mx.array], mx.array]
    back: Callable[[mx.array], mx.array]
    vocabulary: int


def _projection(head: Head, rows: int) -> _Projection:
    bias = head.get("bias")

    def biased(logits: mx.array) -> mx.array:
        return logits if bias is None else logits + bias

    if isinstance(head, nn.QuantizedLinear | nn.QuantizedEmbedding):
        packed = quantized.packed(head)
        if not quantized.unpacks(rows):
            return _Projection(
                lambda x: biased(packed.fused(x, transpose=True)),
                lambda e: packed.fused(e, transpose=False),
                packed.weight.shape[0],
            )
        weight = packed.dense()
    else:
        weight = head.weight
    return _Projection(lambda x: biased(x @ weight.T), lambda e: e @ weight, weight.shape[0])


def linear_logprob(hidden: mx.array, head: Head, targets: mx.array, *, gradient: bool = True) -> mx.array:
    """Log-probabilities of `targets` under softmax(head(hidden)).

    Shapes: hidden (N, D), targets (N,) int -> (N,) float32, nats. Differentiable in `hidden`; the head is a constant.
    With `gradient=False` the second product, which only the backward pass needs, is left out.

    >>> head = nn.Linear(2, 3, bias=False)
    >>> head.weight = mx.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> [round(x, 5) for x in linear_logprob(mx.array([[0.0, 0.0], [2.0, 0.0]]), head, mx.array([0, 0])).tolist()]
    [-1.09861, -0.23954]
    """
    projection = _projection(head, hidden.shape[0])
    rows = max(1, CHUNK_ELEMENTS // projection.vocabulary)
    chunks: list[mx.array] = []
    for start in range(0, hidden.shape[0], rows):
        part = hidden[start : start + rows]
        if chunks:
            # One after another: without this the whole graph is open and MLX works on some twenty chunks at once.
            (part,) = mx.depends([part], [chunks[-1]])
        chunks.append(_chunk(projection, part, targets[start : start + rows], gradient))
    return mx.concatenate(chunks) if chunks else mx.zeros((0,), mx.float32)


def _chunk(projection: _Projection, hidden: mx.array, targets: mx.array, gradient: bool) -> mx.array:
    def value(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        logits = projection.logits(hidden).astype(mx.float32)
        logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return mx.take_along_axis(logps, targets[:, None], axis=-1), logps

    if not gradient:
        return value(hidden, targets)[0][:, 0]

    @mx.custom_function
    def logprob(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        picked, logps = value(hidden, targets)
        # The error is complete, in float32, before it meets a head of lower precision: near certainty 1 - p is far
        # smaller than the spacing of bfloat16 around p, and W[t] - p @ W would be nothing but rounding.
        error = mx.put_along_axis(-mx.exp(logps), targets[:, None], -mx.expm1(picked), axis=-1)
        return picked[:, 0], projection.back(error.astype(hidden.dtype)).astype(mx.float32)

    @logprob.vjp
    def logprob_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array]:
        hidden, targets = primals
        return (cotangents[0][:, None] * outputs[1]).astype(hidden.dtype), mx.zeros_like(targets)

    return logprob(hidden, targets)[0]  # ty: ignore[not-subscriptable] - mlx types it as object
