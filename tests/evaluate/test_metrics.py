"""Metrics and baselines on rows small enough to count by hand."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mlx_email.evaluate import baselines, metrics
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
    found = metrics.subsets(marked, metrics.targets(marked), predicted)
    assert {name: (part["messages"], part["accuracy"]) for name, part in found.items()} == {
        "straddling": (1, 0.0),
        "apart": (5, 0.8),
        "good_labels": (5, 0.8),
    }
    assert set(metrics.subsets(MAIL, metrics.targets(MAIL), predicted)) == {"apart", "good_labels"}


def test_f1_by_hand():
    """reply_now: tp 1, fp 0, fn 1 -> 2/3. delete: tp 1, fp 1, fn 0 -> 2/3. The others do not occur."""
    target, predicted = np.array([NOW, NOW, DELETE]), np.array([NOW, DELETE, DELETE])
    np.testing.assert_allclose(metrics.f1(metrics.confusion(target, predicted)), [2 / 3, 0, 0, 0, 2 / 3])
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


def test_the_interval_holds_the_accuracy_and_narrows_with_more_mail():
    few, many = (metrics.interval(np.arange(n) % 4 > 0) for n in (40, 4000))
    assert few[0] < 0.75 < few[1] and many[0] < 0.75 < many[1]
    assert many[1] - many[0] < 0.2 * (few[1] - few[0])
    assert many == pytest.approx(
        (0.75 - 1.96 * np.sqrt(0.75 * 0.25 / 4000), 0.75 + 1.96 * np.sqrt(0.75 * 0.25 / 4000)), abs=2e-3
    )


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
    alone = metrics.interval(np.arange(400) < 190)
    assert high < 0 and high - low < 0.5 * (alone[1] - alone[0])


def test_calibration_error_is_the_distance_from_the_diagonal():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    honest = rng.random(20_000) < confidence
    assert metrics.calibration_error(confidence, honest) < 0.02
    assert metrics.calibration_error(confidence, np.ones(20_000, bool)) == pytest.approx(0.5, abs=0.02)
    assert metrics.calibration_error(np.ones(4), np.array([True, False, False, False])) == 0.75
