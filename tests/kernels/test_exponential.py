"""exp of numbers that are not positive, against float64."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.kernels import exponential
from mlx_email.kernels.exponential import exp

NUMBERS = np.concatenate([np.linspace(-87, 0, 100_003), -np.logspace(-9, 1.9, 10_007), [0.0]]).astype(np.float32)
ON_THE_CPU = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="elsewhere it is mx.exp")


def error(numbers: np.ndarray = NUMBERS) -> float:
    """Largest relative error over what the rounding of x itself makes: |x| times half a spacing of float32."""
    exact = np.exp(numbers.astype(np.float64))
    return (np.abs(np.array(exp(mx.array(numbers))) / exact - 1) / (1 + np.abs(numbers))).max()


def test_equals_float64():
    assert error() < 3e-7


@ON_THE_CPU
def test_a_planted_fault_is_seen(monkeypatch):
    monkeypatch.setattr(exponential, "TAYLOR", exponential.TAYLOR[:-1])
    assert error() > 1e-6


@given(st.lists(st.floats(max_value=0, width=32, allow_nan=False), min_size=1))
def test_every_number_that_is_not_positive(numbers):
    x = np.array(numbers, np.float32)
    values = np.array(exp(mx.array(x)))
    assert (values >= 0).all() and (values <= 1).all()
    np.testing.assert_allclose(values, np.exp(x.astype(np.float64)), rtol=3e-5, atol=1.2e-38)


def test_at_the_ends():
    values = exp(mx.array([0.0, -0.0, -1e4, -np.inf, np.nan])).tolist()
    assert values[:4] == [1, 1, 0, 0] and np.isnan(values[4])


@ON_THE_CPU
def test_it_refuses_to_be_differentiated_rather_than_be_wrong():
    with pytest.raises(ValueError, match="vjp"):
        mx.grad(lambda x: exp(x).sum())(mx.array([-1.0]))


@pytest.mark.slow
def test_compiled_equals_plain():
    numbers = mx.array(NUMBERS)
    np.testing.assert_allclose(mx.compile(exp)(numbers), exp(numbers), rtol=1e-6)
