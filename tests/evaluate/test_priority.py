"""Predicted priorities, and rank correlation beside a slow one."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.evaluate import priority
from mlx_email.labels.schema import Row


def row(action: str, target: float, hours: float | None = None) -> Row:
    return Row(
        message_id="1",
        user="ann",
        date=datetime(2026, 1, 1, tzinfo=UTC),
        sender="s",
        action=action,
        response_time_hours=hours,
        priority_target=target,
    )


TRAIN = [row("replied", 0.9, 1.0), row("replied", 0.8, 2.0), row("deleted", 0.1), row("archived", 0.2)]


def slow_spearman(one, other):
    """Pearson's correlation of mean ranks, by counting who is below and who is equal."""
    ranks = [[sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x] for x in (one, other)]
    means = [sum(x) / len(x) for x in ranks]
    left, right = ([a - mean for a in x] for x, mean in zip(ranks, means, strict=True))
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / (sum(a * a for a in left) * sum(b * b for b in right)) ** 0.5


def test_the_mean_of_each_action_in_training_and_of_all_where_there_is_none():
    assert priority.by_action(TRAIN) == pytest.approx([0.85, 0.5, 0.5, 0.2, 0.1])


def test_the_predicted_priority_is_an_expectation():
    """0.85 x 1/2 + 0.1 x 1/2 = 0.475, and 0.2: off by 0.025 and 0.1."""
    said = np.array([[0.5, 0, 0, 0, 0.5], [0, 0, 0, 1.0, 0]])
    found = priority.summary([row("replied", 0.5, 1.0), row("archived", 0.3)], said, priority.by_action(TRAIN))
    assert found == {"mae": pytest.approx(0.0625), "spearman": pytest.approx(1)}


def test_without_an_order_there_is_no_rank_correlation():
    said = np.full((2, 5), 0.2)
    assert priority.summary([TRAIN[0], TRAIN[2]], said, priority.by_action(TRAIN))["spearman"] is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_rank_correlation_equals_the_slow_one(pairs):
    one, other = (np.array(values, float) for values in zip(*pairs, strict=True))
    found = priority.spearman(one, other)
    if len(set(one.tolist())) == 1 or len(set(other.tolist())) == 1:
        assert found is None
        return
    assert found == pytest.approx(slow_spearman(one.tolist(), other.tolist()), abs=1e-9)
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    assert priority.spearman(np.exp(one), other) == pytest.approx(found)  # only the order counts
    assert priority.spearman(-one, other) == pytest.approx(-found)


def test_ties_share_a_rank():
    """The planted fault: equal values ranked as they come."""
    one, other = np.array([0.0, 0, 0, 1]), np.array([3.0, 2, 1, 4])
    as_they_come = [np.argsort(np.argsort(each, kind="stable"), kind="stable") for each in (one, other)]
    assert priority.spearman(one, other) == pytest.approx(slow_spearman(one, other))
    assert abs(np.corrcoef(*as_they_come)[0, 1] - slow_spearman(one, other)) > 0.1
