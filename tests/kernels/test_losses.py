"""Losses: known answers, masks, gradients against central differences."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_email.kernels import compiling, losses

POLICY = np.log([[0.5, 0.25, 0.125], [0.1, 0.2, 0.4]])


def test_sft_known_answer():
    """Row 1 counts two tokens, row 2 one: -(ln 0.5 + ln 0.25 + ln 0.1) = 3 ln 2 + ln 10 = 4.382027, three tokens."""
    loss = losses.sft(mx.array(POLICY), mx.array([[1, 1, 0], [1, 0, 0]]))
    np.testing.assert_allclose(loss.total.item(), 3 * np.log(2) + np.log(10), rtol=1e-6)
    assert loss.count.item() == 3


@pytest.mark.parametrize("dtype", [mx.bool_, mx.float32, mx.int32])
def test_sft_masked_is_filtered(dtype):
    mask = np.array([[1, 0, 1], [0, 0, 1]])
    masked = losses.sft(mx.array(POLICY), mx.array(mask).astype(dtype))
    filtered = losses.sft(mx.array(POLICY[mask > 0][None]), mx.ones((1, 3)))
    np.testing.assert_allclose(masked.total.item(), filtered.total.item(), rtol=1e-6)
    assert masked.count.item() == filtered.count.item()


def test_sft_all_masked_contributes_nothing_even_next_to_infinities():
    loss, gradient = mx.value_and_grad(lambda p: losses.sft(p, mx.zeros((1, 2))).total)(mx.array([[-np.inf, np.nan]]))
    assert loss.item() == 0
    assert gradient.tolist() == [[0, 0]]


def test_sft_gradient_is_minus_the_mask():
    mask = mx.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    gradient = mx.grad(lambda p: losses.sft(p, mask).total)(mx.array(POLICY))
    np.testing.assert_array_equal(gradient, -mask)


@pytest.mark.slow
def test_compiled_equals_plain(monkeypatch):
    plain = losses.sft(mx.array(POLICY), mx.ones((2, 3)))
    monkeypatch.setattr(compiling, "by_default", lambda: True)
    traced = losses.sft(mx.array(POLICY), mx.ones((2, 3)))
    np.testing.assert_allclose(plain.total.item(), traced.total.item(), rtol=1e-6)
