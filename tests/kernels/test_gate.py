"""The feed-forward gate against float64, values and gradients."""

import runpy
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations

from mlx_email.kernels import gate as kernel
from mlx_email.kernels.exponential import sigmoid
from mlx_email.kernels.gate import swiglu

reference = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "attention.py"))
GATES = np.concatenate([np.linspace(-30, 30, 4_001), [0.0, -0.0, -88.0, 88.0, -1e4, 1e4]])


def distance() -> float:
    """Of the values and both gradients, by central differences of the reference, relative to 1 + the gate."""
    x = np.random.default_rng(0).standard_normal(GATES.shape)
    gate32, x32 = mx.array(GATES, mx.float32), mx.array(x, mx.float32)
    gate, x = np.array(gate32, np.float64), np.array(x32, np.float64)
    by_gate, by_x = mx.grad(lambda gate, x: swiglu(gate, x).sum(), argnums=[0, 1])(gate32, x32)
    exact = reference["swiglu"]
    step = 1e-5
    wanted = [exact(gate, x), (exact(gate + step, x) - exact(gate - step, x)) / (2 * step), exact(gate, 1.0)]
    found = [swiglu(gate32, x32), by_gate, by_x]
    return max((np.abs(np.array(a) - b) / (1 + np.abs(gate))).max() for a, b in zip(found, wanted, strict=True))


def test_equals_float64():
    assert distance() < 1e-6


def test_a_planted_fault_is_seen(monkeypatch):
    monkeypatch.setattr(kernel.exponential, "sigmoid", lambda x: mx.sigmoid(1.001 * x))
    assert distance() > 1e-4


def test_equals_mlx_lm_s():
    gate, x = mx.random.normal((2, 5, 7), key=mx.random.key(0)), mx.random.normal((2, 5, 7), key=mx.random.key(1))
    np.testing.assert_allclose(swiglu(gate, x), activations.swiglu(gate, x), atol=1e-6)


def test_the_sigmoid_at_the_ends():
    values = sigmoid(mx.array([np.inf, 1e4, 0.0, -1e4, -np.inf, np.nan])).tolist()
    assert values[:3] == [1, 1, 0.5] and max(values[3:5]) < 1.2e-38 and np.isnan(values[5])


@pytest.mark.slow
def test_compiled_equals_plain():
    gate, x = mx.random.normal((300,), key=mx.random.key(0)), mx.random.normal((300,), key=mx.random.key(1))
    np.testing.assert_allclose(mx.compile(swiglu)(gate, x), swiglu(gate, x), rtol=1e-5, atol=1e-7)
