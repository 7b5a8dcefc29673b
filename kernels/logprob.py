"""From hidden states to log-probabilities of given tokens, without an array of tokens x vocabulary.

*Source*: with e_v = exp(h . W_v), rest = the sum of e_v over every token v but the target t, p_v = e_v / (rest + e_t):
log p_t = -log(1 + rest / e_t) and d log p_t / dh = sum over v != t of p_v (W_t - W_v). The sums run over tiles of the
vocabulary relative to the largest logit so far, and are rescaled when a larger one comes (the online softmax: Milakov
and Gimelshein 2018, arXiv:1805.02867). Under LoRA the head W is frozen and the cotangent of a token's log-probability
is one number, so that vector, formed while a tile's logits are alive, is all the backward pass needs: no exponential is
taken twice and no logits are kept.

The target is left out of the sums, not subtracted from them: near certainty 1 - p is far below the spacing of the
numbers around p, and W_t - p @ W would be nothing but rounding.
"""

from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_email.kernels import quantized
from mlx_email.kernels.exponential import exp
from mlx_email.kernels.quantized import Dense, Quantized

# Tokens x vocabulary entries worked on at a time; for fewer tokens more entries. CPU: as fast as any and among the
# smallest in `python benchmarks/kernels.py tiles`; a dozen arrays of its 2 MiB are alive at once, as MLX queues work
# ahead. GPU: not measured; a tile of 64 MiB is work for a millisecond or more, beside which the launches of its twenty
# operations should not show.
CPU_TILE = (256, 2048)
GPU_TILE = (1024, 16_384)

Head = nn.Linear | nn.Embedding | nn.QuantizedLinear | nn.QuantizedEmbedding


def linear_logprob(hidden: mx.array, head: Head, targets: mx.array, *, gradient: bool = True) -> mx.array:
    """Log-probabilities of `targets` under softmax(head(hidden)).

    Shapes: hidden (N, D), targets (N,) int -> (N,) float32, nats. Differentiable in `hidden`; the head is a constant.
    With `gradient=False` the second product, which only the backward pass needs, is left out: the same numbers, for
    where nothing is differentiated.
    A target outside the vocabulary counts as its first or last token: finite, for rows that a mask takes out later.

    >>> head = nn.Linear(2, 3, bias=False)
    >>> head.weight = mx.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> [round(x, 5) for x in linear_logprob(mx.array([[0.0, 0.0], [2.0, 0.0]]), head, mx.array([0, 0])).tolist()]
    [-1.09861, -0.23954]
    """
    if hidden.shape[0] == 0:
        return mx.zeros((0,), mx.float32)
    is_quantized = isinstance(head, nn.QuantizedLinear | nn.QuantizedEmbedding)
    projection = _Projection(quantized.packed(head) if is_quantized else Dense(head.weight), head.get("bias"))
    targets = mx.clip(targets.astype(mx.int32), 0, projection.size - 1)
    if not gradient:
        return _sweep(hidden, projection, targets, gradient=False)[0]

    @mx.custom_function
    def logprob(hidden: mx.array, targets: mx.array) -> tuple[mx.array, ...]:
        return _sweep(hidden, projection, targets, gradient=True)

    @logprob.vjp
    def logprob_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array]:
        hidden, targets = primals
        return (cotangents[0][:, None] * outputs[1]).astype(hidden.dtype), mx.zeros_like(targets)

    return logprob(hidden, targets)[0]  # ty: ignore[not-subscriptable] - mlx types it as object


class _Projection(NamedTuple):
    """The head, or the part of it that belongs to a tile."""

    matrix: Dense | Quantized  # W (V, D)
    bias: mx.array | None  # (V,)

    @property
    def size(self) -> int:
        return self.matrix.weight.shape[0]

    def rows(self, ids: mx.array) -> mx.array:
        """W[ids], unpacked, in float32."""
        return self.matrix.rows(ids).dense().astype(mx.float32)

    def part(self, start: int, stop: int, *, unpack: bool) -> "_Projection":
        """Entries `start` to `stop` of the vocabulary, unpacked if they are to be."""
        matrix = self.matrix.rows(slice(start, stop))
        bias = None if self.bias is None else self.bias[start:stop]
        return _Projection(Dense(matrix.dense()) if unpack else matrix, bias)

    def logits(self, x: mx.array) -> mx.array:
        """x @ W.T + b for x (R, D), in the type of the product."""
        logits = self.matrix.product(x, transpose=True)
        return logits if self.bias is None else logits + self.bias


class _Block(NamedTuple):
    """R tokens and their sums over the tiles so far; everything in float32 but `hidden`."""

    hidden: mx.array  # (R, D)
    targets: mx.array  # (R, 1)
    wanted: mx.array  # (R, D): W_t
    own: mx.array  # (R, 1): the target's logit
    peak: mx.array  # (R, 1): the largest logit so far, or more: what the sums are relative to
    rest: mx.array  # (R, 1): sum of exp(logit - peak), the target left out
    pull: mx.array | None  # (R, D): sum of exp(logit - peak) W_v, the target left out; none without gradient

    def sums(self) -> list[mx.array]:
        return [self.rest] if self.pull is None else [self.rest, self.pull]


def _sweep(hidden: mx.array, head: _Projection, targets: mx.array, *, gradient: bool) -> tuple[mx.array, ...]:
    """(log-probabilities (N,), and with `gradient` their derivatives by hidden (N, D)), in float32.

    Tile by tile and in each block by block, so the head is read, and unpacked, once whatever N is. Each step waits for
    the one before: without that MLX works on many tiles at once, and memory grows with N x V.
    """
    count = hidden.shape[0]
    unpack = quantized.unpacks(count, transpose=True)
    rows, columns = _tile(count, widen=not unpack)
    blocks = [
        _block(hidden[at : at + rows], targets[at : at + rows, None], head, gradient) for at in range(0, count, rows)
    ]
    latest = blocks[0].sums()
    for start, stop in pairwise([*range(0, head.size, columns), head.size]):
        tile = head.part(start, stop, unpack=unpack)
        for number, block in enumerate(blocks):
            blocks[number] = _added(block, tile, start, latest)
            latest = blocks[number].sums()
    parts = zip(*(_results(block) for block in blocks), strict=True)
    return tuple(mx.concatenate(list(part)) for part in parts)


def _tile(count: int, *, widen: bool) -> tuple[int, int]:
    """Tokens and vocabulary entries of a tile for `count` tokens.

    Widened in powers of two, so that batches of about one size have the very same sums; not where weights are unpacked,
    as a tile's weights grow with it.
    """
    rows, columns = CPU_TILE if mx.default_device() == mx.Device(mx.cpu) else GPU_TILE
    return rows, columns * max(1, rows >> (count - 1).bit_length()) if widen else columns


def _block(hidden: mx.array, targets: mx.array, head: _Projection, gradient: bool) -> _Block:
    wanted = head.rows(targets[:, 0])
    own = (hidden.astype(mx.float32) * wanted).sum(axis=-1, keepdims=True)
    if head.bias is not None:
        own = own + head.bias[targets]
    # Never -inf, which a bias can make of every logit so far: -inf - -inf is nan.
    peak = mx.maximum(own, mx.finfo(mx.float32).min)
    return _Block(hidden, targets, wanted, own, peak, mx.zeros_like(own), mx.zeros_like(wanted) if gradient else None)


def _added(block: _Block, tile: _Projection, start: int, latest: list[mx.array]) -> _Block:
    """The block with the tile's entries of the vocabulary, from `start` on, in its sums."""
    (hidden,) = mx.depends([block.hidden], latest)
    product = tile.logits(hidden)
    logits = _without(product.astype(mx.float32), block.targets - start)
    peak = mx.maximum(block.peak, logits.max(axis=-1, keepdims=True))
    e = exp(logits - peak)
    scale = mx.exp(block.peak - peak)
    rest = block.rest * scale + e.sum(axis=-1, keepdims=True)
    pull = None
    if block.pull is not None:
        pull = block.pull * scale + tile.matrix.product(e.astype(product.dtype), transpose=False).astype(mx.float32)
    return block._replace(peak=peak, rest=rest, pull=pull)


def _without(logits: mx.array, at: mx.array) -> mx.array:
    """Logits (R, T) with -inf at column `at` (R, 1) of each row, where there is such a column."""
    column = mx.clip(at, 0, logits.shape[-1] - 1)
    value = mx.where(column == at, -mx.inf, mx.take_along_axis(logits, column, axis=-1))
    return mx.put_along_axis(logits, column, value, axis=-1)


def _results(block: _Block) -> tuple[mx.array, ...]:
    # log(1 + rest / e_t), exact at both ends: where the target is all but certain, and where it is all but impossible.
    logps = -mx.logaddexp(0.0, block.peak + mx.log(block.rest) - block.own)[:, 0]
    if block.pull is None:
        return (logps,)
    total = block.rest + mx.exp(block.own - block.peak)
    return logps, (block.rest * block.wanted - block.pull) / total
