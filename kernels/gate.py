"""The gate of a feed-forward layer, silu(gate) * x, with the cheaper exp of `exponential` on the CPU."""

import mlx.core as mx

from mlx_email.kernels import exponential


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """gate * sigmoid(gate) * x for arrays of one shape, float32, differentiable in both.

    Shazeer 2020, arXiv:2002.05202, equation 6. One array, the sigmoid, is kept for the backward pass.
    """
    return _swiglu(gate, x)[0]  # ty: ignore[not-subscriptable] - mlx types it as object


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = exponential.sigmoid(gate)
    return gate * sigmoid * x, sigmoid


@_swiglu.vjp
def _swiglu_vjp(primals: tuple, cotangents: tuple, outputs: tuple) -> tuple[mx.array, mx.array]:
    (gate, x), (cotangent, _), (_, sigmoid) = primals, cotangents, outputs
    silu = gate * sigmoid
    return cotangent * x * (sigmoid + silu * (1 - sigmoid)), cotangent * silu
