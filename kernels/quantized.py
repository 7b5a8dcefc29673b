"""How a product with a quantised matrix is run: MLX's fused op, or dequantise and use a dense product.

On the CPU backend the fused op does about 1.2 GFLOP/s where a dense float32 product does 100 and more, so from a few
rows on it pays to unpack the matrix first. On Metal and CUDA the fused op is used.
"""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

# Up to this many rows the fused op is faster than unpacking first (benchmarks/kernels.py: 2 cores, MKL, 1024 wide).
CPU_FUSED_ROWS = 1


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

    def fused(self, x: mx.array, *, transpose: bool) -> mx.array:
        """x @ W.T, or x @ W, by MLX's op."""
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


def packed(layer: nn.QuantizedLinear | nn.QuantizedEmbedding) -> Quantized:
    """The matrix of a quantised layer."""
    return Quantized(layer.weight, layer.scales, layer.get("biases"), layer.group_size, layer.bits, layer.mode)


def unpacks(rows: int) -> bool:
    """Whether a product of this many rows is run by unpacking the matrix first, on the default device."""
    return mx.default_device() == mx.Device(mx.cpu) and rows > CPU_FUSED_ROWS


def matmul(x: mx.array, matrix: Quantized) -> mx.array:
    """x @ W.T for x (..., I) -> (..., O); differentiable in x, W is frozen.

    The backward pass unpacks W again instead of keeping it: the dense copy lives only as long as one product.
    """
    if not unpacks(x.size // x.shape[-1]):
        return matrix.fused(x, transpose=True)

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return x @ matrix.dense().T

    @product.vjp
    def product_vjp(primals: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:  # noqa: ARG001
        return cotangent @ matrix.dense()

    return product(x)  # ty: ignore[invalid-explicit-return] - mlx types it as object
