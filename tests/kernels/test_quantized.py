"""A product with a quantised matrix is that with the unpacked one, forward and backward, whichever way it is run."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear

from mlx_email.kernels import quantized
from mlx_email.model.load import QuantizedLinear

# What is unpacked, and the limits that make it so.
WAYS = {"forward": (0, math.inf), "backward": (math.inf, 0), "both": (0, 0), "neither": (math.inf, math.inf)}


def limits(monkeypatch, forward: float, backward: float) -> None:
    monkeypatch.setattr(quantized, "FORWARD_ROWS", {mx.cpu: forward, mx.gpu: forward})
    monkeypatch.setattr(quantized, "BACKWARD_ROWS", {mx.cpu: backward, mx.gpu: backward})


def layer(bits: int, group: int = 32) -> nn.QuantizedLinear:
    mx.random.seed(bits)
    made = nn.Linear(96 if group == 32 else 128, 64).to_quantized(group, bits)
    made.__class__ = QuantizedLinear
    return made


def unpacked(layer: nn.QuantizedLinear) -> nn.Linear:
    weight = quantized.packed(layer).dense()
    dense = nn.Linear(*weight.shape[::-1])
    dense.weight, dense.bias = weight, layer.bias
    return dense


def value_and_gradient(layer: nn.Module, x: mx.array) -> tuple[mx.array, mx.array]:
    weights = mx.random.normal((*x.shape[:-1], 64), key=mx.random.key(1))
    gradient = mx.grad(lambda x: (layer(x) * weights).sum())(x)
    return layer(x), gradient


def distance(layer: nn.QuantizedLinear, rows: tuple[int, ...]) -> float:
    """The largest difference from the dense layer, values and gradients."""
    x = mx.random.normal((*rows, layer.scales.shape[-1] * layer.group_size), key=mx.random.key(0))
    pairs = zip(value_and_gradient(layer, x), value_and_gradient(unpacked(layer), x), strict=True)
    return max(mx.abs(ours - theirs).max().item() for ours, theirs in pairs)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("rows", [(1,), (2,), (3,), (8,), (9,), (2, 17)])  # both sides of both limits
def test_equals_the_dense_layer(bits, group, rows):
    assert distance(layer(bits, group), rows) < 2e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bits", [4, 8])
def test_equals_the_dense_layer_whichever_way_it_is_run(bits, way, monkeypatch):
    limits(monkeypatch, *WAYS[way])
    assert distance(layer(bits), (2, 5)) < 2e-5


@pytest.mark.parametrize("way", WAYS)
def test_each_direction_is_run_as_its_own_limit_says(way, monkeypatch):
    limits(monkeypatch, *WAYS[way])
    fused = []
    honest = quantized.Quantized.product
    monkeypatch.setattr(
        quantized.Quantized,
        "product",
        lambda self, x, *, transpose: fused.append(transpose) or honest(self, x, transpose=transpose),
    )
    mx.grad(lambda x: quantized.matmul(x, quantized.packed(layer(4))).sum())(mx.ones((5, 96)))
    # Where neither is unpacked MLX's own gradient is used, which does not pass by here.
    assert fused == {"forward": [False], "backward": [True], "both": [], "neither": [True]}[way]


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="the choice by rows is made on the CPU")
def test_few_rows_are_fused_and_many_are_not():
    for limit, transpose in ((quantized.FORWARD_ROWS, True), (quantized.BACKWARD_ROWS, False)):
        assert 1 <= limit[mx.cpu] < 64
        assert not quantized.unpacks(int(limit[mx.cpu]), transpose=transpose)
        assert quantized.unpacks(int(limit[mx.cpu]) + 1, transpose=transpose)


def test_a_gpu_keeps_the_fused_op(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert not quantized.unpacks(100_000, transpose=True) and not quantized.unpacks(100_000, transpose=False)


@pytest.mark.parametrize("fault", ["the other direction", "scales of another row"])
def test_a_planted_fault_is_seen(fault, monkeypatch):
    limits(monkeypatch, 0, 0)
    honest = quantized.Quantized.dense
    faults = {
        "the other direction": lambda self: honest(self)[::-1],
        "scales of another row": lambda self: honest(self._replace(scales=mx.roll(self.scales, 1, axis=0))),
    }
    made = layer(4)
    reference = unpacked(made)
    monkeypatch.setattr(quantized.Quantized, "dense", faults[fault])
    x = mx.random.normal((5, 96))
    for ours, theirs in zip(value_and_gradient(made, x), value_and_gradient(reference, x), strict=True):
        assert mx.abs(ours - theirs).max().item() > 0.05


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_rows_of_a_matrix_are_rows_of_the_unpacked_one(mode):
    matrix = quantized.packed(nn.Linear(64, 40).to_quantized(mode=mode))
    for which in (slice(3, 11), mx.array([5, 5, 0, 39])):
        np.testing.assert_array_equal(
            matrix.rows(which).dense().astype(mx.float32), matrix.dense()[which].astype(mx.float32)
        )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [2, 5, 20])  # fused; unpacked forward only; unpacked both ways
def test_lora_over_it_has_the_gradients_of_lora_over_the_dense_layer(bits, rows):
    base = layer(bits)
    over, over_dense = (LoRALinear.from_base(b, r=4) for b in (base, unpacked(base)))
    over.lora_b = mx.random.normal(over.lora_b.shape)
    over_dense.lora_a, over_dense.lora_b = over.lora_a, over.lora_b
    x, weights = mx.random.normal((rows, 96)), mx.random.normal((rows, 64))

    def gradients(lora: LoRALinear) -> dict[str, mx.array]:
        lora.freeze()
        lora.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
        # Two in a row, so that one layer's gradient passes through the other's product.
        gradients = nn.value_and_grad(lora, lambda x: (lora(mx.tanh(lora(x) @ up)) * weights).sum())(x)[1]
        return dict(tree_flatten(gradients))

    up = mx.random.normal((64, 96))
    ours, theirs = gradients(over), gradients(over_dense)
    assert set(ours) == {"lora_a", "lora_b"} == set(theirs)  # none for what is frozen
    for name in ours:
        assert mx.linalg.norm(theirs[name]).item() > 1
        assert (mx.linalg.norm(ours[name] - theirs[name]) / mx.linalg.norm(theirs[name])).item() < 1e-4
