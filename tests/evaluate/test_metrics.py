"""Metrics and baselines on rows small enough to count by hand."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mlx_email.evaluate import baselines, bootstrap, counts, groups, metrics, priority
from mlx_email.labels.schema import ACTIONS, Row, predicted_action

NOW, LATER, FORWARD, ARCHIVE, DELETE = range(5)


def rows(*labels: tuple[str, str, float | None]) -> list[Row]:
    return [
        Row(
            message_id=str(i),
            user=user,
            date=datetime(2026, 1, 1 + i, tzinfo=UTC),
            sender="s",
            action=action,
            response_time_hours=hours,
        )
        for i, (user, action, hours) in enumerate(labels)
    ]


MAIL = rows(
    ("ann", "replied", 3.99),
    ("ann", "replied", 4.0),
    ("bob", "forwarded", None),
    ("bob", "archived", None),
    ("bob", "deleted", None),
    ("bob", "deleted", None),
)


def test_targets_split_replies_at_four_hours():
    assert metrics.targets(MAIL).tolist() == [NOW, LATER, FORWARD, ARCHIVE, DELETE, DELETE]
    assert predicted_action("replied", None) == "reply_later"


def test_confusion_has_the_right_action_in_its_rows():
    counts = metrics.confusion(np.array([NOW, NOW, DELETE]), np.array([NOW, DELETE, DELETE]))
    assert counts[NOW].tolist() == [1, 0, 0, 0, 1]
    assert counts[DELETE].tolist() == [0, 0, 0, 0, 1]
    assert counts.sum() == 3


def test_subsets_are_counted_apart():
    marked = [
        replace(row, straddles=i == 0, label_quality="kept_late" if i == 3 else "good") for i, row in enumerate(MAIL)
    ]
    predicted = np.array([LATER, LATER, FORWARD, DELETE, DELETE, DELETE])
    found = groups.subsets(marked, metrics.targets(marked), predicted)
    assert {name: (part["messages"], part["accuracy"]) for name, part in found.items()} == {
        "straddling": (1, 0.0),
        "apart": (5, 0.8),
        "good_labels": (5, 0.8),
    }
    assert set(groups.subsets(MAIL, metrics.targets(MAIL), predicted)) == {"apart", "good_labels"}


def test_f1_by_hand():
    """reply_now: tp 1, fp 0, fn 1 -> 2/3. delete: tp 1, fp 1, fn 0 -> 2/3. The others do not occur."""
    target, predicted = np.array([NOW, NOW, DELETE]), np.array([NOW, DELETE, DELETE])
    np.testing.assert_allclose(counts.f1(metrics.confusion(target, predicted)), [2 / 3, 0, 0, 0, 2 / 3])
    assert metrics.macro_f1(target, predicted) == pytest.approx(2 / 3)
    assert metrics.macro_f1(target, np.array([NOW, FORWARD, DELETE])) == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_summary_of_sure_and_unsure_predictions():
    probabilities = np.full((6, 5), 0.05)
    probabilities[np.arange(6), [NOW, NOW, FORWARD, ARCHIVE, DELETE, DELETE]] = 0.8
    summary = metrics.summary(MAIL, probabilities)
    assert summary["accuracy"] == pytest.approx(5 / 6)
    assert summary["nll"] == pytest.approx(-(5 * np.log(0.8) + np.log(0.05)) / 6)
    assert summary["confidence"] == pytest.approx(0.8)
    assert summary["f1"]["delete"] == 1
    assert summary["confusion"][LATER][NOW] == 1
    assert list(summary["f1"]) == list(ACTIONS)
    assert summary["precision"]["reply_now"] == 0.5 and summary["recall"]["reply_now"] == 1
    assert summary["precision"]["reply_later"] == summary["recall"]["reply_later"] == 0
    assert summary["brier"] == pytest.approx((6 * 4 * 0.05**2 + 5 * 0.2**2 + 0.95**2 + 0.8**2 - 0.05**2) / 6)
    assert summary["messages"] == summary["threads"] == 6 and summary["calibration_bins"] == 10


def test_a_summary_does_not_depend_on_the_order_of_messages():
    rng = np.random.default_rng(0)
    mail = [replace(row, thread_id=str(i // 3), user=f"u{i % 4}") for i, row in enumerate(MAIL * 20)]
    said = rng.dirichlet(np.ones(5), len(mail)).round(1) + 1e-3  # rounded: many are equally sure
    said /= said.sum(axis=1, keepdims=True)
    order = rng.permutation(len(mail))
    means = priority.by_action(mail)
    one, other = (metrics.summary([mail[i] for i in at], said[at], means) for at in (np.arange(len(mail)), order))
    assert list(one) == list(other)
    for name, value in one.items():
        if name.endswith("_interval") or name in ("accuracy", "macro_f1", "nll", "confidence"):
            assert value == pytest.approx(other[name], abs=1e-12)
        elif name != "priority":
            assert value == other[name], name
    assert one["priority"] == pytest.approx(other["priority"])


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
@settings(max_examples=15)
def test_metrics_lie_where_they_must(seed, count):
    rng = np.random.default_rng(seed)
    mail = [replace(MAIL[i], thread_id=str(rng.integers(0, 9))) for i in rng.integers(0, len(MAIL), count)]
    found = metrics.summary(mail, rng.dirichlet(np.full(5, 0.3), count), priority.by_action(mail))
    for name in ("accuracy", "macro_f1", "confidence", "calibration_error", "adaptive_calibration_error"):
        assert 0 <= found[name] <= 1, name
    assert 0 <= found["brier"] <= 2 and found["nll"] >= 0 and 0 <= found["priority"]["mae"] <= 1
    for name in ("accuracy", "macro_f1"):
        low, high = found[f"{name}_interval"]
        assert 0 <= low <= high <= 1
    assert found["accuracy_interval"][0] <= found["accuracy"] <= found["accuracy_interval"][1]
    assert sum(part["messages"] for part in found["months"].values()) == count
    assert 1 <= found["threads"] <= min(count, 9)


def test_precision_and_recall_by_hand():
    """reply_now: said 1, right 1, of 2. delete: said 2, right 1, of 1."""
    found = metrics.confusion(np.array([NOW, NOW, DELETE]), np.array([NOW, DELETE, DELETE]))
    assert counts.precision(found).tolist() == [1, 0, 0, 0, 0.5]
    assert counts.recall(found).tolist() == [0.5, 0, 0, 0, 1]


def test_baselines_learn_from_training_mail_only():
    known = rows(("ann", "archived", None), ("ann", "archived", None), *[("bob", "deleted", None)] * 3)
    later = rows(*[("ann", "replied", 1.0)] * 4, ("bob", "replied", 1.0), ("eve", "replied", 1.0))
    assert baselines.majority(known, later).tolist() == [DELETE] * 6
    assert baselines.majority_per_owner(known, later).tolist() == [ARCHIVE] * 4 + [DELETE, DELETE]


@given(st.integers(0, 2**32 - 1), st.integers(30, 120), st.sampled_from(["accuracy", "macro_f1", "nll"]))
@settings(max_examples=15)
def test_a_change_is_the_difference_and_its_interval_a_bootstrap_over_messages(seed, count, metric):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 5, count)
    before, after = (rng.dirichlet(np.ones(5), count) for _ in range(2))

    def of(rows, probabilities):
        said = probabilities[rows]
        if metric == "accuracy":
            return metrics.accuracy(target[rows], said.argmax(axis=1))
        if metric == "macro_f1":
            return metrics.macro_f1(target[rows], said.argmax(axis=1))
        return np.log(said[np.arange(len(rows)), target[rows]]).mean()

    everything = np.arange(count)
    gained, low, high = metrics.change(target, before, after, metric)
    assert gained == pytest.approx(of(everything, after) - of(everything, before))
    drawn = [rng.integers(0, count, count) for _ in range(1000)]
    expected = np.percentile([of(rows, after) - of(rows, before) for rows in drawn], [2.5, 97.5])
    assert np.abs(np.array([low, high]) - expected).max() < 0.25 * (high - low)
    assert metrics.change(target, after, before, metric)[0] == pytest.approx(-gained)


def test_an_unpaired_interval_would_be_wider():
    """The planted fault: two policies that err on the same messages, and one of them on a few more."""
    target = np.zeros(400, int)
    before, after = np.full((400, 5), 0.1), np.full((400, 5), 0.1)
    before[:200, 0] = after[:190, 0] = 0.6
    before[200:, 1] = after[190:, 1] = 0.6
    _, low, high = metrics.change(target, before, after, "accuracy")
    right = (np.arange(400) < 190).astype(int)[:, None]
    alone = bootstrap.interval(bootstrap.resample(right)[:, 0] / 400)
    assert high < 0 and high - low < 0.5 * (alone[1] - alone[0])
