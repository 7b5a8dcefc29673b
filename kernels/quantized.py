"""How a product with a quantised matrix is run: MLX's fused op, or unpack the matrix and use a dense product.

On the CPU backend the fused op does one row after another, so from a few rows on it pays to unpack the matrix first. On
Metal and CUDA the fused op is used.
"""

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

# Up to how many rows the fused op is used, by device: for x @ W.T (forward), and for x @ W (backward), where it takes a
# quarter of the time. `python benchmarks/kernels.py products` prints where the two ways meet. With 2 cores and MKL, 4
# or 8 bits, groups of 32 or 64, 576 x 1536 to 2048 x 2048: at 2 to 3 rows, and at 8 to 16; bits, groups and shapes
# matter less than what else the machine is doing. On a GPU nothing was measured.
FORWARD_ROWS = {mx.cpu: 2, mx.gpu: math.inf}
BACKWARD_ROWS = {mx.cpu: 8, mx.gpu: math.inf}


class Quantized(NamedTuple):
    """A quantised matrix W of shape (O, I), as `mx.quantize` packs it along its last axis."""

    weight: mx.array  # (O, I * bits / 32) uint32
    scales: mx.array  # (O, I / group_size)
    biases: mx.array | None  # (O, I / group_size); None in modes that have none
    group_size: int
    bits: int
    mode: str = "affine"

    def dense(self) -> mx.array:
        """W unpacked, (O, I), in the scales' type."""
        return mx.dequantize(
            self.weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits, mode=self.mode
        )

    def rows(self, which: slice | mx.array) -> "Quantized":
        """Some rows of W."""
        biases = None if self.biases is None else self.biases[which]
        return self._replace(weight=self.weight[which], scales=self.scales[which], biases=biases)

    def product(self, x: mx.array, *, transpose: bool) -> mx.array:
        """x @ W.T, or x @ W, by MLX's fused op."""
        return mx.quantized_matmul(
            x,
            self.weight,
            self.scales,
            self.biases,
            transpose=transpose,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


class Dense(NamedTuple):
    """A matrix W of shape (O, I) as it is, with the methods of `Quantized`."""

    weight: mx.array

    def dense(self) -> mx.array:
        return self.weight

    def rows(self, which: slice | mx.array) -> "Dense":
        return Dense(self.weight[which])

    def product(self, x: mx.array, *, transpose: bool) -> mx.array:
        return x @ (self.weight.T if transpose else self.weight)


def packed(layer: nn.QuantizedLinear | nn.QuantizedEmbedding) -> Quantized:
    """The matrix of a quantised layer."""
    return Quantized(layer.weight, layer.scales, layer.get("biases"), layer.group_size, layer.bits, layer.mode)


def unpacks(rows: int, *, transpose: bool) -> bool:
    """Whether x @ W.T, or x @ W, of this many rows is run by unpacking W first, on the default device."""
    return rows > (FORWARD_ROWS if transpose else BACKWARD_ROWS)[mx.default_device().type]


def matmul(x: mx.array, matrix: Quantized) -> mx.array:
    """x @ W.T for x (..., I) -> (..., O); differentiable in x, W is frozen.

    The backward pass unpacks W again instead of keeping it: the dense copy lives only as long as one product.
    """
    rows = x.size // x.shape[-1]
    if not (unpacks(rows, transpose=True) or unpacks(rows, transpose=False)):
        return matrix.product(x, transpose=True)

    def run(x: mx.array, *, transpose: bool) -> mx.array:
        return (Dense(matrix.dense()) if unpacks(rows, transpose=transpose) else matrix).product(x, transpose=transpose)

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return run(x, transpose=True)

    @product.vjp
    def product_vjp(primals: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:  # noqa: ARG001
        return run(cotangent, transpose=False)

    return product(x)  # ty: ignore[invalid-explicit-return] - mlx types it as object
