"""Calibration finds what was done to honest probabilities, and never makes the validation mail less likely."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_email.errors import DataError
from mlx_email.evaluate import calibrate
from mlx_email.evaluate.metrics import calibration_error

METHODS = ["temperature", "vector", "isotonic"]


def honest(count, seed=0, spread=2.0):
    """Log-probabilities (N, 5), and right actions drawn from them."""
    rng = np.random.default_rng(seed)
    logps = rng.normal(size=(count, 5)) * spread
    logps -= np.log(np.exp(logps).sum(axis=1, keepdims=True))
    return logps, (np.exp(logps).cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(0, 4)


def nll(probabilities, target):
    return -np.log(probabilities[np.arange(len(target)), target]).mean()


@pytest.mark.parametrize("wrong", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_temperature_undoes_what_was_done(wrong):
    logps, target = honest(20_000)
    found = calibrate.fit(logps * wrong, target, "temperature")
    assert found.temperature == pytest.approx(wrong, rel=0.05)
    assert found.messages == 20_000


def test_temperature_is_where_the_likelihood_is_highest():
    """Beside a search on a fine grid; a temperature a little off is less likely (the planted fault)."""
    logps, target = honest(300, seed=3)
    found = calibrate.fit(logps * 3, target, "temperature")
    best = nll(calibrate.apply(found, logps * 3), target)
    for temperature in np.geomspace(0.1, 10, 400):
        other = calibrate.Calibration("temperature", temperature=float(temperature))
        assert best <= nll(calibrate.apply(other, logps * 3), target) + 1e-4  # one message more is reckoned with
    off = calibrate.Calibration("temperature", temperature=found.temperature * 1.3)
    assert nll(calibrate.apply(off, logps * 3), target) > best + 1e-4


def test_vector_undoes_weights_and_biases_that_temperature_cannot():
    logps, target = honest(20_000, seed=1)
    weights, biases = np.array([2.0, 1.0, 0.5, 1.5, 1.0]), np.array([1.0, 0.0, -1.0, 0.5, 0.0])
    bent = logps * weights + biases
    found = calibrate.fit(bent, target, "vector")
    after = {method: nll(calibrate.apply(calibrate.fit(bent, target, method), bent), target) for method in METHODS[:2]}
    assert after["vector"] < after["temperature"] - 0.03
    plain = bent - np.log(np.exp(bent).sum(axis=1, keepdims=True))
    rng = np.random.default_rng(0)
    for _ in range(100):  # anything near it is less likely
        near = np.array(found.weights) + 0.05 * rng.normal(size=5), np.array(found.biases) + 0.05 * rng.normal(size=5)
        other = calibrate.Calibration("vector", weights=tuple(near[0]), biases=tuple(near[1]))
        assert nll(calibrate.apply(other, plain), target) > after["vector"]
    assert (
        calibration_error(calibrate.apply(found, bent).max(axis=1), calibrate.apply(found, bent).argmax(1) == target)
        < 0.02
    )


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.05, 20), count=st.integers(30, 200))
@settings(max_examples=15, deadline=None)
def test_probabilities_stay_probabilities_and_get_no_less_likely(method, seed, scale, count):
    logps, target = honest(count, seed)
    found = calibrate.fit(logps * scale, target, method)
    after = calibrate.apply(found, logps * scale)
    np.testing.assert_allclose(after.sum(axis=1), 1)
    assert (after >= 0).all()
    if method != "isotonic":  # which divides by the sum of five after it was fitted
        before = calibrate.apply(calibrate.NONE, logps * scale)
        assert nll(np.maximum(after, 1e-12), target) <= nll(np.maximum(before, 1e-12), target) + 1e-3
    if method == "temperature":
        np.testing.assert_array_equal(after.argmax(axis=1), (logps * scale).argmax(axis=1))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_isotonic_is_the_closest_that_never_falls(pairs):
    """Beside the min-max formula (Robertson et al. 1988, theorem 1.4.4): the height at a point is the largest, over
    where an interval around it begins, of the smallest mean, over where it ends."""
    p, right = np.array([each for each, _ in pairs]), np.array([each for _, each in pairs])
    begins, heights = map(np.array, calibrate.isotonic(p, right))
    points = np.unique(p)
    for at in points:
        expected = max(
            min(right[(p >= low) & (p <= high)].mean() for high in points[points >= at]) for low in points[points <= at]
        )
        assert heights[np.searchsorted(begins, at, side="right") - 1] == pytest.approx(expected)
    assert (np.diff(heights) > 0).all() or len(heights) == 1


def test_of_few_messages_nothing_is_fitted():
    logps, target = honest(29)
    for method in METHODS:
        assert calibrate.fit(logps, target, method) is calibrate.NONE
    np.testing.assert_allclose(calibrate.apply(calibrate.NONE, logps), np.exp(logps))


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_it_comes_back_from_its_file(method, tmp_path):
    logps, target = honest(100)
    found = calibrate.fit(logps, target, method)
    calibrate.write(tmp_path, found)
    assert calibrate.read(tmp_path) == found
    np.testing.assert_array_equal(calibrate.apply(found, logps), calibrate.apply(calibrate.read(tmp_path), logps))


def test_a_file_that_is_none_says_so(tmp_path):
    assert calibrate.read(tmp_path) == calibrate.NONE
    (tmp_path / calibrate.FILE).write_text('{"method": "guess"}')
    with pytest.raises(DataError, match="no calibration"):
        calibrate.read(tmp_path)


def test_mail_that_was_all_right_does_not_make_everything_certain():
    """The planted fault: without the message more, the temperature is the lowest there is."""
    logps, _ = honest(40)
    found = calibrate.fit(logps, logps.argmax(axis=1), "temperature")
    assert 0.05 < found.temperature < 1
    hesitant = np.log(np.array([[0.41, 0.38, 0.1, 0.06, 0.05]]))
    assert calibrate.apply(found, hesitant).max() < 0.9


def test_on_steps_of_one_height_the_likelier_action_stays_so():
    logps = np.log(np.array([[0.3, 0.05, 0.05, 0.55, 0.05], [0.2, 0.05, 0.05, 0.65, 0.05]] * 20))
    target = np.array([0, 3] * 20)  # both are right half of the time
    found = calibrate.fit(logps, target, "isotonic")
    assert (calibrate.apply(found, logps).argmax(axis=1) == 3).any()
    flat = calibrate.Calibration("isotonic", steps=(((0.0,), (0.5,)),) * 5)
    assert calibrate.apply(flat, logps).argmax(axis=1).tolist() == [3, 3] * 20


def test_certain_messages_do_not_end_in_infinities():
    logps = np.log(np.maximum(np.eye(5)[np.arange(50) % 5], 1e-300))
    for method in METHODS:
        after = calibrate.apply(calibrate.fit(logps, np.arange(50) % 5, method), logps)
        assert np.isfinite(after).all() and (after.argmax(axis=1) == np.arange(50) % 5).all()
        after = calibrate.apply(calibrate.fit(logps, (np.arange(50) + 1) % 5, method), logps)
        assert np.isfinite(after).all()
