"""From hidden states to log-probabilities of given tokens, without an array of tokens x vocabulary.

*Source*: log p(t) = h . W[t] - logsumexp(W h), so d log p(t) / dh = W[t] - softmax(W h) @ W. Under LoRA the head W is
frozen and the cotangent of a token's log-probability is one number, so that vector, formed while a chunk's logits are
alive, is all the backward pass needs: nothing is computed twice and no logits are kept.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_email.kernels.quantized import Quantized, unpacks

# Logits alive at once, in elements: 64 MiB of float32.
CHUNK_ELEMENTS = 1 << 24

Head = nn.Linear | nn.Embedding | nn.QuantizedLinear | nn.QuantizedEmbedding


class _Projection(NamedTuple):
    """The head W (V, D) and bias b as three products: x -> x @ W.T + b, p -> p @ W, t -> W[t]."""

    logits: Callable[[mx.array], mx.array]
    back: Callable[[mx.array], mx.array]
    rows: Callable[[mx.array], mx.array]
    vocabulary: int


def quantized_head(head: nn.QuantizedLinear | nn.QuantizedEmbedding) -> Quantized:
    """The packed matrix of a quantised layer."""
    return Quantized(head.weight, head.scales, head.get("biases"), head.group_size, head.bits, head.mode)


def _projection(head: Head, rows: int) -> _Projection:
    bias = head.get("bias")

    def biased(logits: mx.array) -> mx.array:
        return logits if bias is None else logits + bias

    if isinstance(head, nn.QuantizedLinear | nn.QuantizedEmbedding):
        packed = quantized_head(head)
        if not unpacks(rows):
            return _Projection(
                lambda x: biased(packed.fused(x, transpose=True)),
                lambda p: packed.fused(p, transpose=False),
                packed.rows,
                packed.weight.shape[0],
            )
        weight = packed.dense()
    else:
        weight = head.weight
    return _Projection(lambda x: biased(x @ weight.T), lambda p: p @ weight, lambda t: weight[t], weight.shape[0])


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
    chunks = [
        _chunk(projection, hidden[start : start + rows], targets[start : start + rows], gradient)
        for start in range(0, hidden.shape[0], rows)
    ]
    return mx.concatenate(chunks) if chunks else mx.zeros((0,), mx.float32)


def _chunk(projection: _Projection, hidden: mx.array, targets: mx.array, gradient: bool) -> mx.array:
    def value(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        logits = projection.logits(hidden).astype(mx.float32)
        normaliser = mx.logsumexp(logits, axis=-1, keepdims=True)
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1)
        return (picked - normaliser)[:, 0], logits, normaliser

    if not gradient:
        return value(hidden, targets)[0]

    @mx.custom_function
    def logprob(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        logp, logits, normaliser = value(hidden, targets)
        probabilities = mx.exp(logits - normaliser).astype(hidden.dtype)
        slope = projection.rows(targets).astype(mx.float32) - projection.back(probabilities).astype(mx.float32)
        return logp, slope

    @logprob.vjp
    def logprob_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array]:
        hidden, targets = primals
        return (cotangents[0][:, None] * outputs[1]).astype(hidden.dtype), mx.zeros_like(targets)

    return logprob(hidden, targets)[0]  # ty: ignore[not-subscriptable] - mlx types it as object
