"""Batches: every example once an epoch, little padding, few shapes, and order a function of (seed, epoch)."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.model.batch import Example, collate, example
from mlx_email.train import batches


def examples(lengths) -> list[Example]:
    return [example(str(i), [1 + i % 7] * n, [5, 6, 7][: 1 + i % 3]) for i, n in enumerate(lengths)]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    batch_size=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_every_example_exactly_once_an_epoch(lengths, batch_size, accumulation, seed):
    rows = examples(lengths)
    plan = batches.plan(rows, batch_size)
    an_epoch = batches.steps_per_epoch(plan, accumulation)
    for epoch in range(2):
        steps = list(islice(batches.steps(rows, plan, accumulation, seed, start=epoch * an_epoch), an_epoch))
        seen = Counter(identity for step in steps for batch in step for identity in batch.ids)
        assert seen == Counter(str(i) for i in range(len(rows)))
        assert sum(batch.arrays["completion_mask"].sum().item() for step in steps for batch in step) == sum(
            len(r.completions[0]) for r in rows
        )


@given(lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=200), batch_size=st.integers(1, 8))
def test_at_most_eight_shapes(lengths, batch_size):
    rows = examples(lengths)
    plan = batches.plan(rows, batch_size)
    steps = islice(batches.steps(rows, plan, 2, 0), batches.steps_per_epoch(plan, 2))
    shapes = {(b.arrays["prompts"].shape, b.arrays["completions"].shape) for step in steps for b in step}
    assert len(shapes) <= batches.MAX_SHAPES


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    accumulation=st.integers(1, 4),
    start=st.integers(0, 60),
)
def test_steps_from_anywhere_are_those_of_the_whole(lengths, accumulation, start):
    rows = examples(lengths)
    plan = batches.plan(rows, 3)
    whole = [[batch.ids for batch in step] for step in islice(batches.steps(rows, plan, accumulation, 4), start + 5)]
    rest = islice(batches.steps(rows, plan, accumulation, 4, start=start), 5)
    assert [[batch.ids for batch in step] for step in rest] == whole[start:]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    accumulation=st.integers(1, 4),
    count=st.integers(1, 30),
)
def test_used_are_the_examples_of_the_first_steps(lengths, accumulation, count):
    rows = examples(lengths)
    plan = batches.plan(rows, 3)
    taken = islice(batches.steps(rows, plan, accumulation, 4), count)
    seen = dict.fromkeys(int(identity) for step in taken for batch in step for identity in batch.ids)
    assert batches.used(plan, accumulation, 4, count) == list(seen)


def test_measuring_takes_every_example_once():
    rows = examples([5, 9, 2, 7, 7, 1, 30])
    seen = [identity for batch in batches.once(rows, batches.plan(rows, 2)) for identity in batch.ids]
    assert sorted(seen) == [str(i) for i in range(7)]


def test_order_depends_on_seed_and_epoch_only():
    plan = batches.plan(examples(range(1, 65)), 4)
    orders = {(s, e): tuple(batches.epoch_order(plan, s, e)) for s in (0, 1) for e in (0, 1)}
    assert orders[0, 0] == tuple(batches.epoch_order(plan, 0, 0))
    assert len(set(orders.values())) == 4


def test_email_lengths_are_padded_little():
    lengths = np.random.default_rng(0).lognormal(np.log(250), 0.8, 2000).astype(int) + 1
    rows = examples(lengths)
    plan = batches.plan(rows, 8)
    padded = sum(plan.widths[bucket][0] * plan.batch_size for bucket, _ in batches.epoch_order(plan, 0, 0))
    unsorted = sum(max(lengths[i : i + 8]) * 8 for i in range(0, 2000, 8))
    assert padded / lengths.sum() < 1.3 < 1.8 < unsorted / lengths.sum()


def test_collate_pads_and_masks():
    batch = collate([example("a", [3, 4], [5], [6, 7])], rows=2, prompt_width=3, completion_width=2)
    assert batch.arrays["prompts"].tolist() == [[3, 4, 0], [0, 0, 0]]
    assert batch.arrays["prompt_lengths"].tolist() == [2, 1]
    assert batch.arrays["completions"].tolist() == [[[5, 0], [6, 7]], [[0, 0], [0, 0]]]
    assert batch.arrays["completion_mask"].tolist() == [[[1, 0], [1, 1]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize("count", [1, 3, 17])
def test_a_partial_batch_keeps_the_shape(count):
    rows = examples([4] * count)
    steps = list(islice(batches.steps(rows, batches.plan(rows, 16), 1, 0), 1))
    assert {batch.arrays["prompts"].shape[0] for step in steps for batch in step} == {16}
