"""The Bradley-Terry loss: against float64, hand-worked numbers and TRL's records; what must not matter."""

import json
import runpy
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_email.kernels import compiling, losses

REFERENCE = Path(__file__).parents[1] / "reference"
expected_loss = runpy.run_path(str(REFERENCE / "kto.py"))["bradley_terry"]
central_differences = runpy.run_path(str(REFERENCE / "gradient.py"))["central_differences"]


def value_and_gradients(chosen, rejected, margin=None, centring=0.0, mask=None):
    extra = [None if array is None else mx.array(array, mx.float32) for array in (margin, mask)]

    def value(chosen, rejected):
        loss = losses.bradley_terry(
            chosen, rejected, margin=extra[0], mask=extra[1], center_rewards_coefficient=centring
        )
        return loss.total / loss.count

    given_ = (mx.array(array, mx.float32) for array in (chosen, rejected))
    found, gradients = mx.value_and_grad(value, argnums=(0, 1))(*given_)
    return found.item(), [np.array(gradient) for gradient in gradients]


def agree(chosen, rejected, margin, centring, expected=expected_loss):
    value, gradients = value_and_gradients(chosen, rejected, margin, centring)
    np.testing.assert_allclose(value, expected(chosen, rejected, margin, centring), rtol=1e-5)
    for side in (0, 1):

        def moved(array, side=side):
            return expected(*((array, rejected) if side == 0 else (chosen, array)), margin, centring)

        slope = central_differences(moved, (chosen, rejected)[side])
        np.testing.assert_allclose(gradients[side], slope, atol=1e-5)


def pairs(seed, n=5):
    return [np.float64(np.float32(array)) for array in np.random.default_rng(seed).normal(0, 2, (3, n))]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans(), st.sampled_from([0.0, 0.01, 0.2]))
def test_reference(seed, n, margins, centring):
    chosen, rejected, margin = pairs(seed, n)
    agree(chosen, rejected, margin if margins else None, centring)


def margin_added(chosen, rejected, margin, centring):
    return expected_loss(chosen, rejected, -margin, centring)


def sides_swapped(chosen, rejected, margin, centring):
    return expected_loss(rejected, chosen, margin, centring)


def difference_centred(chosen, rejected, margin, centring):
    return expected_loss(chosen, rejected, margin) + centring * np.mean((chosen - rejected) ** 2)


@pytest.mark.parametrize("fault", [margin_added, sides_swapped, difference_centred])
def test_reference_sees_a_planted_fault(fault):
    agree(*pairs(1), 0.1)
    with pytest.raises(AssertionError):
        agree(*pairs(1), 0.1, fault)


def test_known_answers():
    """1.2 against 0.4 and 0.1 against 0.5: ln(1 + exp(-0.8)) = 0.371101, ln(1 + exp(0.4)) = 0.913015, mean 0.642058;
    margins 0.2 and 0: 0.675252; centring 0.01: (1.6^2 + 0.6^2) / 2 * 0.01 = 0.0146 more."""
    chosen, rejected = np.array([1.2, 0.1]), np.array([0.4, 0.5])
    np.testing.assert_allclose(value_and_gradients(chosen, rejected)[0], 0.642058, rtol=2e-6)
    np.testing.assert_allclose(value_and_gradients(chosen, rejected, np.array([0.2, 0]))[0], 0.675252, rtol=2e-6)
    np.testing.assert_allclose(value_and_gradients(chosen, rejected, centring=0.01)[0], 0.642058 + 0.0146, rtol=2e-6)
    metrics = losses.bradley_terry(mx.array(chosen), mx.array(rejected)).metrics
    found = {name.split("/")[1]: (total / count).item() for name, (total, count) in metrics.items()}
    assert found == pytest.approx({"chosen": 0.65, "rejected": 0.45, "margin": 0.2, "accuracy": 0.5}, rel=1e-5)


def test_a_tie_is_no_success():
    total, count = losses.bradley_terry(mx.zeros(3), mx.zeros(3)).metrics["rewards/accuracy"]
    assert (total.item(), count.item()) == (0, 3)


@pytest.fixture
def recorded(shared):
    path = shared / "oracles" / "trl_losses.json"
    if not path.is_file():
        pytest.skip("needs the recorded losses of TRL")
    return [case for case in json.loads(path.read_text())["cases"] if case["algo"] == "reward"]


def as_recorded(case, scale=1.0):
    """Compare with a recorded case; `scale` plants a fault."""
    chosen, rejected = (scale * np.array(case[name]) for name in ("chosen_rewards", "rejected_rewards"))
    margin = None if case["margin"] is None else np.array(case["margin"])
    centring = case["params"]["center_rewards_coefficient"]
    value, gradients = value_and_gradients(chosen, rejected, margin, centring)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], case["grad_chosen"], atol=1e-6)
    np.testing.assert_allclose(gradients[1], case["grad_rejected"], atol=1e-6)
    total, count = losses.bradley_terry(mx.array(chosen), mx.array(rejected)).metrics["rewards/accuracy"]
    assert (total / count).item() == case["accuracy"]


def test_as_trl_recorded(recorded):
    assert len(recorded) == 3
    for case in recorded:
        as_recorded(case)


def test_the_records_see_a_planted_fault(recorded):
    for case in recorded:
        with pytest.raises(AssertionError):
            as_recorded(case, scale=1.01)


def test_masked_is_filtered():
    """In any shape: a masked pair may hold anything."""
    chosen, rejected, margin = pairs(3, 6)
    mask = np.array([1, 0, 1, 1, 0, 1])
    kept = value_and_gradients(*(array[mask > 0] for array in (chosen, rejected)), margin[mask > 0], 0.1)
    broken = np.where(mask > 0, chosen, np.nan), np.where(mask > 0, rejected, np.inf)
    value, gradients = value_and_gradients(*(a.reshape(2, 3) for a in (*broken, margin)), 0.1, mask.reshape(2, 3))
    np.testing.assert_allclose(value, kept[0], rtol=1e-6)
    for found, wanted in zip(gradients, kept[1], strict=True):
        np.testing.assert_allclose(found.flatten()[mask > 0], wanted, rtol=1e-5)
        assert not found.flatten()[mask == 0].any()


def test_nothing_but_padding():
    loss = losses.bradley_terry(mx.array([mx.nan]), mx.array([1.0]), mask=mx.zeros(1))
    assert (loss.total.item(), loss.count.item()) == (0, 0)


@pytest.mark.parametrize("ahead", [-1e4, 1e4])
def test_extremes_are_finite(ahead):
    value, gradients = value_and_gradients(np.array([ahead, 0.0]), np.array([0.0, 0.0]))
    assert np.isfinite(value) and np.isfinite(gradients).all() and np.abs(gradients).max() <= 1


@pytest.mark.slow
def test_compiled_equals_plain(monkeypatch):
    plain = value_and_gradients(*pairs(5), 0.1)
    monkeypatch.setattr(compiling, "by_default", lambda: True)
    traced = value_and_gradients(*pairs(5), 0.1)
    np.testing.assert_allclose(traced[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(traced[1], plain[1], rtol=1e-5)
