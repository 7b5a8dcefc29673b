"""Two policies on the same messages: a planted difference is found, none where there is none."""

from datetime import UTC, datetime
from fractions import Fraction
from math import comb, erfc, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlx_email.evaluate import compare
from mlx_email.evaluate.metrics import targets
from mlx_email.labels.schema import Row

OBSERVED = ("replied", "forwarded", "deleted", "archived")


def mail(count: int, per_thread: int = 1) -> list[Row]:
    return [
        Row(
            message_id=str(i),
            user="ann",
            date=datetime(2026, 1, 1, tzinfo=UTC),
            sender="s",
            action=OBSERVED[i // per_thread % 4],
            thread_id=str(i // per_thread),
        )
        for i in range(count)
    ]


def said(rows, right) -> np.ndarray:
    """Probabilities that are right where `right` (N,) bool says so."""
    target = targets(rows)
    found = np.full((len(rows), 5), 0.1)
    found[np.arange(len(rows)), np.where(right, target, (target + 1) % 5)] = 0.6
    return found


def slow_mcnemar(one: int, other: int) -> Fraction:
    """Every division of the discordant messages that is as improbable as this one, or more so."""
    count = one + other
    return sum(Fraction(comb(count, k), 2**count) for k in range(count + 1) if abs(2 * k - count) >= abs(one - other))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_slow_one(one, other):
    found = compare.mcnemar(one, other)
    assert found == pytest.approx(float(slow_mcnemar(one, other)), rel=1e-9, abs=1e-14)
    assert 0 <= found <= 1 and found == compare.mcnemar(other, one)


def test_mcnemar_is_two_sided_and_exact():
    """The planted faults: one side only, and the chi-squared approximation without its correction."""
    right = float(slow_mcnemar(2, 9))
    assert compare.mcnemar(2, 9) == pytest.approx(right)
    assert right / 2 != pytest.approx(right, rel=1e-3)
    assert erfc(sqrt((9 - 2) ** 2 / 11 / 2)) != pytest.approx(right, rel=0.1)


def test_mcnemar_of_many_messages():
    assert compare.mcnemar(100_000, 100_000) == 1
    assert 0 < compare.mcnemar(99_000, 101_000) < 1e-5
    assert compare.mcnemar(0, 5000) == 0  # 2^-4999


def test_a_planted_difference_is_found():
    rows = mail(600, per_thread=2)
    rng = np.random.default_rng(0)
    before = rng.random(600) < 0.7
    after = before | (rng.random(600) < 0.2)
    found = compare.compare(rows, said(rows, before), said(rows, after))
    assert found["mcnemar"] < 1e-6 and found["only_first_right"] == 0
    assert found["only_second_right"] == (after & ~before).sum()
    assert found["change"]["accuracy"] == pytest.approx(after.mean() - before.mean())
    assert found["change"]["accuracy_interval"][0] > 0 and found["change"]["macro_f1_interval"][0] > 0
    assert found["messages"] == 600 and found["threads"] == 300
    back = compare.compare(rows, said(rows, after), said(rows, before))
    assert back["change"]["accuracy"] == -found["change"]["accuracy"] and back["mcnemar"] == found["mcnemar"]


def test_the_same_policy_twice_does_not_differ():
    rows = mail(200)
    same = said(rows, np.arange(200) % 3 > 0)
    found = compare.compare(rows, same, same)
    assert found["mcnemar"] == 1 and found["same_action"] == 1
    assert found["change"] == {
        "accuracy": 0,
        "accuracy_interval": [0, 0],
        "macro_f1": 0,
        "macro_f1_interval": [0, 0],
    }


def test_equals_are_seldom_told_apart():
    """Two policies that are right equally often: at 95%, about one of twenty comparisons says they differ."""
    rows = mail(150)
    different, unequal = 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        found = compare.compare(rows, *(said(rows, rng.random(150) < 0.7) for _ in range(2)))
        low, high = found["change"]["accuracy_interval"]
        different += not low <= 0 <= high
        unequal += found["mcnemar"] < 0.05
    assert different <= 5 and unequal <= 4


def test_an_interval_over_threads_is_wider_where_threads_repeat_answers():
    """The planted fault: long threads taken for so many messages that have nothing to do with each other."""
    rows = mail(400, per_thread=10)
    rng = np.random.default_rng(1)
    before, after = (np.repeat(rng.random(40) < share, 10) for share in (0.6, 0.7))
    apart = [replace(row, thread_id="") for row in rows]
    wide, narrow = (
        np.diff(compare.compare(each, said(rows, before), said(rows, after))["change"]["accuracy_interval"])[0]
        for each in (rows, apart)
    )
    assert wide > 2 * narrow


def test_what_was_measured_on_other_messages_is_not_compared():
    rows = mail(4)
    assert compare.difference(rows, mail(4)) is None
    assert "3 of 4 and 3 are the same" in compare.difference(rows, rows[1:])
    assert "0 of 4 and 4 are the same" in compare.difference(rows, [replace(row, user="bob") for row in rows])
    changed = [replace(rows[0], action="deleted"), *rows[1:]]
    assert "done with 1 of 4 messages is not the same" in compare.difference(rows, changed)
