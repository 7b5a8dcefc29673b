"""Examples to padded batches: little padding, few shapes, every example exactly once an epoch.

Examples are put into buckets of similar length; a bucket is one shape, so a compiled step has at most
`MAX_SHAPES` traces (`mx.compile` never drops one). Which examples share a batch, and the order of the batches, are
functions of (seed, epoch) alone: a checkpoint need not store them.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mlx_email.model.batch import Batch, Example, collate

MAX_SHAPES = 8
LONG = 64  # tokens: no answer is so long; a completion that is, and longer than its prompt, is a text of its own
CANDIDATES = 128  # places where a border between two buckets may lie


@dataclass(frozen=True)
class Plan:
    """How examples are cut into micro-batches: buckets of indices, each padded to one shape."""

    buckets: tuple[tuple[int, ...], ...]
    widths: tuple[tuple[int, int], ...]  # of each bucket's prompts and completions
    batch_size: int
    # Where examples say which step takes them: the steps, each its micro-batches as (bucket, indices).
    turns: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...] = ()

    @property
    def batches(self) -> int:
        """Micro-batches an epoch."""
        return sum(-(-len(bucket) // self.batch_size) for bucket in self.buckets)


def plan(examples: Sequence[Example], batch_size: int) -> Plan:
    """Buckets by length, at most MAX_SHAPES, with the borders that pad least.

    Examples with different numbers of completions share no bucket, nor do those that are mostly prompt, which go by
    its length, and those that are mostly completion. A kind's other length is padded to its longest: answers differ
    little. The kinds share the shapes evenly.
    """
    kinds: dict[tuple[int, bool], list[int]] = {}
    sizes = [(len(example.prompt), max(map(len, example.completions))) for example in examples]
    for index, (prompt, completion) in enumerate(sizes):
        kinds.setdefault((len(examples[index].completions), completion > max(prompt, LONG)), []).append(index)
    buckets: list[tuple[int, ...]] = []
    widths: list[tuple[int, int]] = []
    for (_, side), members in sorted(kinds.items()):
        order = sorted(members, key=lambda index: (sizes[index][side], index))
        lengths = np.array([sizes[index][side] for index in order])
        borders = least_padding(lengths, _places(lengths), batch_size, max(1, MAX_SHAPES // len(kinds)))
        buckets += [tuple(order[start:stop]) for start, stop in pairwise(borders)]
        other = max(sizes[index][not side] for index in members)
        ends = [int(lengths[stop - 1]) for stop in borders[1:]]
        widths += [(other, end) if side else (end, other) for end in ends]
    turns = _turns([each.turn for each in examples], buckets, batch_size)
    return Plan(tuple(buckets), tuple(widths), batch_size, turns)


def _turns(
    given: Sequence[int | None], buckets: Sequence[tuple[int, ...]], batch_size: int
) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]:
    """The steps of examples that have a turn: each turn's, by length, padded to the bucket of the longest of a
    micro-batch. Cut by bucket, a turn of few examples would be mostly padding rows."""
    if not given or given[0] is None:
        return ()
    steps: dict[int, list[tuple[int, int]]] = {}
    for number, bucket in enumerate(buckets):  # of one kind, so the later the longer
        for index in bucket:
            turn = given[index]
            if turn is None:
                raise AssertionError("either all examples have a turn, or none has")
            steps.setdefault(turn, []).append((number, index))
    return tuple(
        tuple(
            (max(number for number, _ in part), tuple(index for _, index in part))
            for part in (steps[turn][start : start + batch_size] for start in range(0, len(steps[turn]), batch_size))
        )
        for turn in sorted(steps)
    )


def _places(lengths: np.ndarray) -> np.ndarray:
    """Where a border between two buckets of sorted lengths may lie: CANDIDATES places, half of them at even counts and
    half at even lengths (mail's have a long tail, and equal counts would pad all of the last bucket to the longest)."""
    by_count = np.linspace(0, len(lengths), CANDIDATES // 2 + 1).round().astype(int)
    by_length = np.searchsorted(lengths, np.linspace(lengths[0], lengths[-1], CANDIDATES // 2 + 1), side="right")
    return np.unique([*by_count, *by_length, 0, len(lengths)])


def least_padding(lengths: np.ndarray, places: np.ndarray, batch_size: int, most: int = MAX_SHAPES) -> list[int]:
    """Borders (0, ..., N) of at most `most` buckets of the sorted `lengths`, out of `places`, with the fewest
    padded positions, partial batches included. Dynamic programming over (buckets used, place): exact.

    >>> least_padding(np.array([1, 1, 1, 1, 9, 9]), np.arange(7), batch_size=2)
    [0, 4, 6]
    """
    counts = places[None, :] - places[:, None]  # from place i to place j
    widths = np.concatenate([[0], lengths])[places]  # of a bucket that ends at place j
    cost = np.where(counts > 0, -(-counts // batch_size) * batch_size * widths[None, :], np.inf)
    best = np.where(places == 0, 0.0, np.inf)
    back: list[np.ndarray] = []
    totals = []
    for _ in range(most):
        through = best[:, None] + cost
        back.append(through.argmin(axis=0))
        best = through.min(axis=0)
        totals.append(best[-1])
    at = len(places) - 1
    borders = [int(places[at])]
    for step in reversed(back[: int(np.argmin(totals)) + 1]):
        at = int(step[at])
        borders.insert(0, int(places[at]))
    return borders


def epoch_order(plan: Plan, seed: int, epoch: int) -> list[tuple[int, tuple[int, ...]]]:
    """The epoch's micro-batches as (bucket, indices), shuffled within buckets and then among each other."""
    rng = np.random.default_rng([seed, epoch])
    batches = []
    for number, bucket in enumerate(plan.buckets):
        shuffled = [bucket[i] for i in rng.permutation(len(bucket))]
        for start in range(0, len(shuffled), plan.batch_size):
            batches.append((number, tuple(shuffled[start : start + plan.batch_size])))
    return [batches[i] for i in rng.permutation(len(batches))]


def steps(
    examples: Sequence[Example], plan: Plan, accumulation: int, seed: int, *, start: int = 0
) -> Iterator[list[Batch]]:
    """Optimiser steps for ever, epoch after epoch, from after step number `start` on: each a list of at most
    `accumulation` micro-batches. An epoch's last step may have fewer; no step takes from two epochs. Where examples
    have a turn, a step is all of one turn, and the turns keep their order."""
    for step in order_of(plan, accumulation, seed, start=start):
        yield [
            collate([examples[i] for i in indices], plan.batch_size, *plan.widths[bucket]) for bucket, indices in step
        ]


def order_of(
    plan: Plan, accumulation: int, seed: int, *, start: int = 0
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """The micro-batches of `steps` as (bucket, indices)."""
    an_epoch = steps_per_epoch(plan, accumulation)
    if plan.turns:
        yield from (list(plan.turns[number % an_epoch]) for number in itertools.count(start))
    for epoch in itertools.count(start // an_epoch):
        done = start % an_epoch if epoch == start // an_epoch else 0
        order = epoch_order(plan, seed, epoch)
        for first in range(done * accumulation, len(order), accumulation):
            yield order[first : first + accumulation]


def used(plan: Plan, accumulation: int, seed: int, steps: int) -> list[int]:
    """The indices of the examples that the first `steps` steps take, in the order in which they are first taken: more
    steps only add to it."""
    taken = itertools.islice(order_of(plan, accumulation, seed), min(steps, steps_per_epoch(plan, accumulation)))
    return [index for step in taken for _, indices in step for index in indices]


def once(examples: Sequence[Example], plan: Plan) -> Iterator[Batch]:
    """Every example once, in the plan's own order: for measuring."""
    for widths, bucket in zip(plan.widths, plan.buckets, strict=True):
        for start in range(0, len(bucket), plan.batch_size):
            rows = [examples[i] for i in bucket[start : start + plan.batch_size]]
            yield collate(rows, plan.batch_size, *widths)


def steps_per_epoch(plan: Plan, accumulation: int) -> int:
    """Optimiser steps an epoch."""
    return len(plan.turns) or -(-plan.batches // accumulation)
