"""Errors of calibration and Brier scores, beside slow ones written from the papers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_email.evaluate.calibration_error import adaptive_calibration_error, brier, calibration_error


def slow_adaptive(confidence, right, bins):
    """Messages one by one, by confidence, each as right as all of its confidence are; bins differ by one at most."""
    shares = [np.mean([r for c, r in zip(confidence, right, strict=True) if c == mine]) for mine in confidence]
    by_confidence = sorted(zip(confidence, shares, strict=True))
    size, more = divmod(len(by_confidence), bins)
    error, start = 0.0, 0
    for number in range(bins):
        part = by_confidence[start : start + size + (number < more)]
        start += len(part)
        if part:
            mean, share = (sum(each) / len(part) for each in zip(*part, strict=True))
            error += len(part) / len(by_confidence) * abs(mean - share)
    return error


def slow_brier(probabilities, target):
    """(1 / n) sum_j sum_i (f_ij - E_ij)^2"""
    total = 0.0
    for forecast, happened in zip(probabilities, target, strict=True):
        for kind, probability in enumerate(forecast):
            total += (probability - (1.0 if kind == happened else 0.0)) ** 2
    return total / len(target)


@st.composite
def some(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    confidence = rng.random(draw(st.integers(1, 80))).round(draw(st.sampled_from([1, 2, 9])))
    return confidence, rng.random(len(confidence)) < confidence, draw(st.integers(1, 15))


@given(some())
def test_bins_of_equal_mass_equal_the_slow_ones(given):
    confidence, right, bins = given
    found = adaptive_calibration_error(confidence, right, bins)
    assert found == pytest.approx(slow_adaptive(confidence.tolist(), right.tolist(), bins), abs=1e-9)
    order = np.random.default_rng(0).permutation(len(right))
    assert found == pytest.approx(adaptive_calibration_error(confidence[order], right[order], bins), abs=1e-9)
    assert 0 <= found <= 1


def test_bins_of_equal_width_are_not_those_of_equal_mass():
    """The planted fault: nine of ten messages in one bin of equal width, off by as much up as down."""
    confidence = np.concatenate([np.linspace(0.901, 0.999, 90), np.full(10, 0.2)])
    right = np.concatenate([np.arange(90) >= 5, np.arange(10) < 2])
    narrow, even = calibration_error(confidence, right), adaptive_calibration_error(confidence, right)
    assert narrow < 0.01 and even > 2 * narrow
    assert even == pytest.approx(slow_adaptive(confidence.tolist(), right.tolist(), 10))
    assert narrow != pytest.approx(slow_adaptive(confidence.tolist(), right.tolist(), 10), abs=1e-3)


def test_equally_sure_messages_do_not_depend_on_their_order():
    """The planted fault: bins that are cut between them as they come."""
    confidence = np.full(20, 0.5)
    right = np.arange(20) < 10
    assert adaptive_calibration_error(confidence, right) == 0
    as_they_come = sum(abs(part.sum()) for part in np.array_split(confidence - right, 10)) / 20
    assert as_they_come == 0.5


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
@settings(max_examples=30)
def test_the_brier_score_equals_the_slow_one(seed, count):
    rng = np.random.default_rng(seed)
    said, target = rng.dirichlet(np.full(5, 0.4), count), rng.integers(0, 5, count)
    assert brier(said, target) == pytest.approx(slow_brier(said, target), abs=1e-9)
    assert 0 <= brier(said, target) <= 2
    only_of_the_right = np.mean((1 - said[np.arange(count), target]) ** 2)  # the planted fault
    assert only_of_the_right < brier(said, target)


def test_the_brier_score_at_its_ends():
    sure = np.eye(5)
    assert brier(sure, np.arange(5)) == 0 and brier(sure, (np.arange(5) + 1) % 5) == 2
    assert brier(np.full((5, 5), 0.2), np.arange(5)) == pytest.approx(0.8)


def test_calibration_error_is_the_distance_from_the_diagonal():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    honest = rng.random(20_000) < confidence
    for error in (calibration_error, adaptive_calibration_error):
        assert error(confidence, honest) < 0.02
        assert error(confidence, np.ones(20_000, bool)) == pytest.approx(0.5, abs=0.02)
        assert error(np.ones(4), np.array([True, False, False, False])) == 0.75
