"""Both ways of running a quantised product give the same numbers, forward and backward."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_email.kernels import quantized
from mlx_email.model.load import QuantizedLinear


def layer(bits: int) -> nn.QuantizedLinear:
    mx.random.seed(bits)
    return nn.Linear(96, 40).to_quantized(32, bits)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_equals_mlx_layer(bits, rows):
    theirs, ours = layer(bits), layer(bits)
    ours.__class__ = QuantizedLinear
    x = mx.random.normal((2, rows, 96))
    weights = mx.random.normal((2, rows, 40))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    grad_ours = mx.grad(lambda x: (ours(x) * weights).sum())(x)
    grad_theirs = mx.grad(lambda x: (theirs(x) * weights).sum())(x)
    np.testing.assert_allclose(grad_ours, grad_theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="the choice by rows is made on the CPU")
def test_few_rows_are_fused_and_many_are_not(monkeypatch):
    fused = []
    monkeypatch.setattr(quantized.Quantized, "fused", lambda self, x, *, transpose: fused.append(len(x)) or x)
    packed = quantized.Quantized(*mx.quantize(mx.random.normal((32, 32)), 32, 4), 32, 4)
    for rows in (1, quantized.CPU_FUSED_ROWS, quantized.CPU_FUSED_ROWS + 1, 64):
        quantized.matmul(mx.zeros((rows, 32)), packed)
    assert fused == [1, quantized.CPU_FUSED_ROWS]
