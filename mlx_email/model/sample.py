"""Rollouts: several completions of each prompt, decoded side by side, each prompt computed once.

The prompts run once; all live rows of all prompts are then decoded in one batch, one token a step, their own keys and
values beside those of their prompt, which are held once (where attention is MLX's own, it copies them for a step). A
row that has ended leaves the batch as soon as a slot of every prompt is free.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from mlx_email.kernels import exponential, quantized
from mlx_email.kernels.logprob import Head
from mlx_email.model import forward
from mlx_email.model.cache import BranchCache, Pair, PromptCache

BLOCK = 256  # weights that `categorical` looks at together


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; as mlx-lm's samplers take it, and by their filters."""

    temperature: float = 1.0  # 0: the most likely token
    top_p: float = 0.0  # 0 or 1: all
    top_k: int = 0  # 0: all
    min_p: float = 0.0

    def draw(self, logprobs: mx.array) -> mx.array:
        """Tokens (rows,) from log-probabilities (rows, V); random numbers from mx.random's state."""
        if self.temperature == 0:
            return mx.argmax(logprobs, axis=-1)
        highest = logprobs.max(axis=-1, keepdims=True)
        if 0 < self.top_p < 1:
            logprobs = apply_top_p(logprobs, self.top_p)
        if self.min_p > 0:
            logprobs = apply_min_p(logprobs, self.min_p)
        if 0 < self.top_k < logprobs.shape[-1]:
            logprobs = apply_top_k(logprobs, self.top_k)
        # No filter takes the likeliest away.
        return categorical(exponential.exp((logprobs - highest) * (1 / self.temperature)))


@dataclass
class Completion:
    """One sampled completion."""

    tokens: list[int]  # the token that ended it included
    logps: list[float]  # of each under the policy itself, at temperature 1, nats; of half precision as exact as that
    entropies: list[float] = field(default_factory=list)  # of what each was drawn from, at temperature 1, nats
    ended: bool = False  # else it was cut at the limit


class DecodeCache(BranchCache):
    """A layer's cache while branches are decoded, a token a step: they keep their own keys and values."""

    def __init__(self, prompt: PromptCache, lengths: mx.array) -> None:
        super().__init__(prompt, lengths)
        self.own: Pair | None = None  # (rows, H, tokens so far, head size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Pair:
        if self.own is not None:
            keys, values = (
                mx.concatenate([old, new], axis=2) for old, new in zip(self.own, (keys, values), strict=True)
            )
        self.own = keys, values
        fetched = super().update_and_fetch(keys, values)
        self.offset = self.offset + 1
        return fetched

    def make_mask(self, n: int, return_array: bool = True, window_size: int | None = None) -> mx.array:
        if self.own is None:
            return super().make_mask(n, return_array, window_size)
        # One token (n = 1): of the prompt what is real, of its own past everything, within the window if there is one.
        before, rows = self.own[0].shape[2], len(self.offset)
        keys = self.prompt.arrays()[0].shape[2]
        started = (self.offset - before)[:, None]
        prompt_at, own_at = mx.arange(keys)[None], started + mx.arange(before + n)[None]
        seen = mx.concatenate([prompt_at < started, mx.ones((rows, before + n), mx.bool_)], axis=1)
        if (window := window_size or self.prompt.window) is not None:
            key_at = mx.concatenate([mx.broadcast_to(prompt_at, (rows, keys)), own_at], axis=1)
            seen = seen & (self.offset[:, None] - key_at < window)
        return seen[:, None, None]

    def take(self, prompts: mx.array, rows: mx.array) -> "DecodeCache":
        """One with only some prompts and some rows."""
        kept = PromptCache(self.prompt.window)
        kept.hold([array[prompts] for array in self.prompt.arrays()])
        taken = DecodeCache(kept, self.offset[rows])
        taken.own = None if self.own is None else (self.own[0][rows], self.own[1][rows])
        return taken


def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    group: int,
    max_tokens: int,
    sampling: Sampling,
    over: Callable[[Sequence[int]], bool],
    seed: int,
    progress: Callable[[int], object] = lambda tokens: None,  # noqa: ARG005
) -> list[list[Completion]]:
    """`group` completions of each prompt (token ids), in the prompts' order: each until it is `over`, which is asked
    after every token, or has `max_tokens`.

    The same arguments give the same completions. `progress` is called with how many tokens each step made. The model
    is left in the mode that it was in.
    """
    training = model.training
    model.eval()
    mx.random.seed(seed)
    decode = _side_by_side if forward.shares_prompts(model) else _one_by_one
    found = [[Completion([], []) for _ in range(group)] for _ in prompts]
    try:
        for rows, drawn in decode(model, prompts, found, max_tokens, sampling.draw):
            for row, token, logp, entropy in zip(rows, drawn.tokens, drawn.logps, drawn.entropies, strict=True):
                row.tokens.append(int(token))
                row.logps.append(float(logp))
                row.entropies.append(float(entropy))
                row.ended = over(row.tokens)
            progress(len(rows))
    finally:
        model.train(training)
    return found


class Drawn(NamedTuple):
    """A token of each of some rows, (rows,)."""

    tokens: np.ndarray
    logps: np.ndarray
    entropies: np.ndarray


Step = tuple[list[Completion], Drawn]


def _side_by_side(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    found: list[list[Completion]],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
) -> Iterator[Step]:
    body, head = forward.split(model)
    lengths = mx.array([len(prompt) - 1 for prompt in prompts])  # the last token begins every branch
    width = max(max(map(len, prompts)) - 1, 1)
    padded = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt) - 1] = prompt[:-1]
    of_prompts = [PromptCache(forward.window_of(cache)) for cache in make_prompt_cache(model)]
    body(mx.array(padded), cache=of_prompts)
    for cache in of_prompts:  # as models make them they are views, which every product of every step would copy
        cache.hold([mx.contiguous(array) for array in cache.arrays()])
    group = len(found[0])
    caches = [DecodeCache(cache, mx.repeat(lengths, group)) for cache in of_prompts]
    # Slots, as many for each prompt: a completion each, None where one has been left over.
    slots: list[list[Completion | None]] = [list(completions) for completions in found]
    inputs = mx.repeat(mx.array([prompt[-1] for prompt in prompts]), group)
    for _ in range(max_tokens):
        logprobs, entropies = log_softmax(_logits(body(inputs[:, None], cache=caches)[:, 0], head))
        drawn = sampler(logprobs)
        logps = mx.take_along_axis(logprobs, drawn[:, None], axis=-1)[:, 0]
        mx.eval(drawn, logps, entropies, [cache.own for cache in caches])
        flat = [slot for of_prompt in slots for slot in of_prompt]
        live = [(number, slot) for number, slot in enumerate(flat) if slot is not None]
        places = [number for number, _ in live]
        yield [slot for _, slot in live], Drawn(*(np.array(column)[places] for column in (drawn, logps, entropies)))
        slots, kept_prompts, kept_rows = _repacked(slots)
        if not slots:
            return
        inputs = drawn[kept_rows]
        if len(kept_rows) < len(flat):
            caches = [cache.take(kept_prompts, kept_rows) for cache in caches]


def _repacked(slots: list[list[Completion | None]]) -> tuple[list[list[Completion | None]], mx.array, mx.array]:
    """What goes on: the prompts that have a live row, each with as many slots as the one with most live rows; as slots,
    indices of prompts, and indices of rows. Unchanged where fewer slots would not be saved."""
    width = len(slots[0])
    live = [[n for n, slot in enumerate(row) if slot is not None and not slot.ended] for row in slots]
    going = [number for number, row in enumerate(live) if row]
    most = max(map(len, live), default=0)
    if most == width and len(going) == len(slots):
        same = [[slot if n in row else None for n, slot in enumerate(slots[at])] for at, row in enumerate(live)]
        return same, mx.array(going), mx.arange(width * len(slots))
    packed: list[list[Completion | None]] = []
    rows = []
    for number in going:
        filled = live[number] + [live[number][0]] * (most - len(live[number]))  # a left-over slot repeats some row
        packed.append([slots[number][n] if at < len(live[number]) else None for at, n in enumerate(filled)])
        rows += [number * width + n for n in filled]
    return packed, mx.array(going), mx.array(rows)


def _one_by_one(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    found: list[list[Completion]],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
) -> Iterator[Step]:
    """For models that cannot share a prompt: mlx-lm's own generation, a row at a time."""
    for prompt, completions in zip(prompts, found, strict=True):
        for completion in completions:
            given = mx.array(list(prompt))
            for token, logprobs in generate_step(given, model, max_tokens=max_tokens, sampler=sampler):
                row = np.array(logprobs.astype(mx.float32))
                entropy = -(np.exp(row) * row).sum()
                yield [completion], Drawn(np.array([int(token)]), row[[int(token)]], entropy[None])
                if completion.ended:
                    break


def _logits(hidden: mx.array, head: Head) -> mx.array:
    """(rows, V) float32."""
    if isinstance(head, nn.QuantizedLinear | nn.QuantizedEmbedding):
        logits = quantized.matmul(hidden, quantized.packed(head))
    else:
        logits = hidden @ head.weight.T
    return (logits + head.bias if "bias" in head else logits).astype(mx.float32)


def categorical(weights: mx.array) -> mx.array:
    """Indices (rows,) as likely as their weights (rows, V), none of which is negative.

    MLX's own takes two logarithms an element, which on the CPU is most of a step's time. Here one uniform number a row
    is looked for in the running sums of blocks, and then in those of one block: as a single one, in float32, running
    sums would lose what is far less likely than all before it.

    >>> categorical(mx.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.5]])).tolist()
    [1, 2]
    """
    rows, count = weights.shape
    blocks = mx.pad(weights, [(0, 0), (0, -count % BLOCK)]).reshape(rows, -1, BLOCK)
    until = mx.cumsum(blocks.sum(axis=-1), axis=-1)
    # Below 1 also after it was multiplied and rounded.
    at = mx.minimum(mx.random.uniform(shape=(rows, 1)), 1 - 2**-22) * until[:, -1:]
    block = (until <= at).sum(axis=-1, keepdims=True)
    before = mx.where(block > 0, mx.take_along_axis(until, mx.maximum(block - 1, 0), axis=1), 0.0)
    inside = mx.take_along_axis(blocks, block[..., None], axis=1)[:, 0]
    place = (mx.cumsum(inside, axis=-1) <= at - before).sum(axis=-1)
    # What is summed within a block and what is summed of it may differ in the last digit: its last weight, then.
    last = BLOCK - 1 - mx.argmax(inside[:, ::-1] > 0, axis=-1)
    return block[:, 0] * BLOCK + mx.minimum(place, last)


def log_softmax(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Log-probabilities (rows, V) float32 and their entropies (rows,), nats, by the exponential that is cheap here. Not
    differentiable on the CPU."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weights = exponential.exp(shifted)
    whole = weights.sum(axis=-1, keepdims=True)
    entropies = mx.log(whole) - (weights * shifted).sum(axis=-1, keepdims=True) / whole
    return shifted - mx.log(whole), entropies[:, 0]
