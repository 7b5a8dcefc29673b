"""Intervals over threads, beside a bootstrap that draws one thread after another."""

from datetime import UTC, datetime

import numpy as np
import pytest

from mlx_email.evaluate import bootstrap
from mlx_email.labels.schema import Row


def row(thread: str) -> Row:
    return Row(message_id="1", user="ann", date=datetime(2026, 1, 1, tzinfo=UTC), sender="s", thread_id=thread)


def slow(thread, right, resamples, rng):
    """Accuracy of each resample, threads drawn by name."""
    names = sorted(set(thread.tolist()))
    drawn = []
    for _ in range(resamples):
        chosen = [names[i] for i in rng.integers(0, len(names), len(names))]
        drawn.append(np.concatenate([right[thread == name] for name in chosen]).mean())
    return bootstrap.interval(np.array(drawn))


def interval(thread, right, **options):
    drawn = bootstrap.resample(bootstrap.of_each(thread, right.astype(int), 2), **options)
    return bootstrap.interval(drawn[:, 1] / drawn.sum(axis=1))


def test_threads_are_told_apart_and_what_has_none_is_its_own():
    assert bootstrap.threads([row("b"), row("a"), row("b"), row(""), row("")]).tolist() == [0, 1, 0, 2, 3]


def test_counts_of_each_thread():
    found = bootstrap.of_each(np.array([0, 1, 0, 2]), np.array([1, 0, 1, 2]), 3)
    assert found.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 1]]


def test_the_interval_is_that_of_drawing_threads_one_by_one():
    rng = np.random.default_rng(3)
    thread = np.sort(rng.integers(0, 60, 200))
    thread = np.unique(thread, return_inverse=True)[1]
    right = rng.random(thread.max() + 1)[thread] > 0.4  # a thread is mostly all right or all wrong
    right ^= rng.random(200) < 0.1
    low, high = interval(thread, right)
    assert np.abs(np.array([low, high]) - slow(thread, right, 1500, rng)).max() < 0.12 * (high - low)
    # The planted fault: messages drawn as if they were on their own.
    alone = interval(np.arange(200), right)
    assert high - low > 1.3 * (alone[1] - alone[0])


def test_of_single_messages_it_is_the_binomial_one_and_narrows_with_more_mail():
    few, many = (interval(np.arange(n), np.arange(n) % 4 > 0) for n in (40, 4000))
    assert few[0] < 0.75 < few[1] and many[0] < 0.75 < many[1]
    assert many[1] - many[0] < 0.2 * (few[1] - few[0])
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 4000)
    assert many == pytest.approx((0.75 - spread, 0.75 + spread), abs=2e-3)


def test_answers_repeated_within_threads_say_no_more_than_once():
    right = np.arange(100) % 3 > 0
    once, alike = interval(np.arange(100), right), interval(np.repeat(np.arange(100), 5), np.repeat(right, 5))
    assert alike == pytest.approx(once)
    apart = interval(np.arange(500), np.repeat(right, 5))
    assert apart[1] - apart[0] < 0.6 * (alike[1] - alike[0])


def test_it_is_the_same_every_time_and_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    sums = rng.integers(0, 9, (50, 3))
    assert np.array_equal(bootstrap.resample(sums), bootstrap.resample(sums))
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 700)
    in_parts = bootstrap.resample(sums)
    assert in_parts.shape == (bootstrap.RESAMPLES, 3)
    np.testing.assert_allclose(in_parts.mean(axis=0), sums.sum(axis=0), rtol=0.02)
