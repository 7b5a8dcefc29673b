"""Attention for training on the CPU backend, of MLX's own ops: cheaper exponentials, and less that no one sees.

MLX's attention spends 12 ns on each exp there, more than on the products of a head of 64, and computes what a causal
mask hides. Here the exp is that of `exponential`, the queries go in blocks that meet only the keys before them, and the
branches of a prompt meet its keys in one product, without a copy of them each.

Parts of the keys merge by the log-sum-exp of their scores, as in FlashAttention (Dao et al. 2022, arXiv:2205.14135,
section 3.1). The weights are kept for the backward pass, as MLX keeps them; gradient checkpointing drops them.
"""

from typing import NamedTuple

import mlx.core as mx

from mlx_email.kernels import exponential

BLOCK = 96  # queries of a causal block: smaller hide more of the mask, larger make better products
HIDDEN = -1e30  # a masked score. Finite, so that a row that sees nothing has no nan; its part then weighs nothing.


class Part(NamedTuple):
    """Attention over some of the keys: what it gives, and the log-sum-exp of its scores, by which parts merge."""

    output: mx.array  # (..., n, F)
    lse: mx.array  # (..., n, 1)


def attend(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None = None) -> Part:
    """softmax(q k.T) v, of queries (..., n, E) already scaled, keys (..., m, E), values (..., m, F) and a bool mask
    that broadcasts to (..., n, m), True where a query sees a key. float32, differentiable in all but the mask."""

    # An addition takes a fifth of the time of MLX's where.
    bias = None if mask is None else HIDDEN * mx.logical_not(mask).astype(mx.float32)

    @mx.custom_function
    def run(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        found = queries @ keys.swapaxes(-1, -2)
        found = found if bias is None else found + bias
        highest = found.max(axis=-1, keepdims=True)
        weights = exponential.exp(found - highest)
        total = weights.sum(axis=-1, keepdims=True)
        return (weights @ values) / total, highest + mx.log(total), weights, total

    @run.vjp
    def run_vjp(primals: tuple, cotangents: tuple, outputs: tuple) -> tuple[mx.array, mx.array, mx.array]:
        queries, keys, values = primals
        output, _, weights, total = outputs
        by_output, by_lse = cotangents[0] / total, cotangents[1] / total
        offset = by_lse - (by_output * output).sum(axis=-1, keepdims=True)
        by_scores = weights * (by_output @ values.swapaxes(-1, -2) + offset)
        return by_scores @ keys, by_scores.swapaxes(-1, -2) @ queries, weights.swapaxes(-1, -2) @ by_output

    output, lse, *_ = run(queries, keys, values)  # ty: ignore[not-iterable] - mlx types it as object
    return Part(output, lse)


def merge(parts: list[Part]) -> mx.array:
    """What attention over all the parts' keys together gives."""
    highest = mx.stop_gradient(mx.stack([part.lse for part in parts]).max(axis=0))
    weights = mx.stack([mx.exp(part.lse - highest) for part in parts])
    return (weights * mx.stack([part.output for part in parts])).sum(axis=0) / weights.sum(axis=0)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None
) -> mx.array:
    """As `mx.fast.scaled_dot_product_attention`: queries (B, H, n, E), keys (B, K, m, E), values (B, K, m, F), where
    K divides H; mask None, "causal" (the last query sees all keys), or bool (n, m) or (B or 1, 1, n, m)."""
    queries, heads = queries * scale, keys.shape[1]
    if not isinstance(mask, str):
        mask = None if mask is None else _tiled(mask, queries, heads)
        return _unfolded(attend(_folded(queries, heads), keys, values, mask).output, queries)
    n, before = queries.shape[2], keys.shape[2] - queries.shape[2]
    blocks = []
    for start in range(0, n, BLOCK):
        block = queries[:, :, start : start + BLOCK]
        seen = before + start + block.shape[2]
        causal = mx.arange(seen)[None] <= mx.arange(before + start, seen)[:, None]
        part = attend(_folded(block, heads), keys[:, :, :seen], values[:, :, :seen], _tiled(causal, block, heads))
        blocks.append(_unfolded(part.output, block))
    return mx.concatenate(blocks, axis=2)


def branched(
    queries: mx.array,
    prompt: tuple[mx.array, mx.array],
    own: tuple[mx.array, mx.array],
    *,
    scale: float,
    mask: mx.array,
) -> mx.array:
    """Attention of G branches a prompt over their prompt and themselves.

    queries (B * G, H, n, E); keys and values of the prompt, (B, K, P, .), and of the branches, (B * G, K, n, .); mask
    (B * G, 1, n, P + n) bool -> (B * G, H, n, F).
    """
    batch, heads, width, _ = prompt[0].shape
    branches = queries.shape[0] // batch
    folded = _folded(queries * scale, heads)  # (B * G, K, H / K * n, E)

    def gathered(array: mx.array) -> mx.array:
        """All branches of a prompt as its rows: (B * G, K, r, .) -> (B, K, G * r, .)."""
        return mx.unflatten(array, 0, (batch, branches)).swapaxes(1, 2).flatten(2, 3)

    def parted(array: mx.array) -> mx.array:
        return mx.unflatten(array, 2, (branches, -1)).swapaxes(1, 2).flatten(0, 1)

    tiled = _tiled(mask, queries, heads)
    of_prompt = attend(gathered(folded), *prompt, gathered(tiled[..., :width]))
    of_own = attend(folded, *own, tiled[..., width:])
    return _unfolded(merge([Part(parted(of_prompt.output), parted(of_prompt.lse)), of_own]), queries)


def _folded(queries: mx.array, heads: int) -> mx.array:
    """Queries that share a key head as rows of one product: (B, H, n, E) -> (B, K, H / K * n, E)."""
    return mx.unflatten(queries, 1, (heads, -1)).flatten(2, 3)


def _unfolded(output: mx.array, queries: mx.array) -> mx.array:
    """The way back, in the queries' heads: (B, K, H / K * n, F) -> (B, H, n, F)."""
    return mx.unflatten(output, 2, (-1, queries.shape[2])).flatten(1, 2)


def _tiled(mask: mx.array, queries: mx.array, heads: int) -> mx.array:
    """A mask for the rows that `_folded` makes."""
    repeats = queries.shape[1] // heads
    return mask if repeats == 1 else mx.concatenate([mask] * repeats, axis=-2)
