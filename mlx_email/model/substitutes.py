"""Functions of ours in the place of mlx-lm's, where MLX's CPU backend is slow: attention and the feed-forward gate.

Each module of mlx-lm's models binds both by name when it is imported, so they are exchanged there, once a process.
What they do not speed up they hand on: other devices and types, mlx-lm's own caches, so its generation is its own.
"""

import sys

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import activations, base

from mlx_email.kernels import gate as kernel
from mlx_email.model.cache import BranchCache, Mask, PromptCache


def install(model: nn.Module) -> None:
    """Exchange them in the modules that the model's layers come from."""
    for name in {type(module).__module__ for module in model.modules()}:
        module = sys.modules[name]
        for function, substitute in SUBSTITUTES.items():
            if getattr(module, function.__name__, None) is function:
                setattr(module, function.__name__, substitute)


def scaled_dot_product_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: object,
    scale: float,
    mask: Mask,
    sinks: mx.array | None = None,
) -> mx.array:
    """mlx-lm's function of this name; by our caches where they are faster."""
    shown = not isinstance(mask, mx.array) or mask.dtype == mx.bool_  # an additive mask carries a gradient
    if _ours(queries) and shown and sinks is None and isinstance(cache, PromptCache | BranchCache):
        return cache.attend(queries, keys, values, scale, mask)
    return base.scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)  # ty: ignore[invalid-argument-type] - it takes "causal" too


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """mlx-lm's function of this name."""
    return (kernel if _ours(gate) else activations).swiglu(gate, x)


def _ours(array: mx.array) -> bool:
    return array.dtype == mx.float32 and mx.default_device() == mx.Device(mx.cpu)


SUBSTITUTES = {
    base.scaled_dot_product_attention: scaled_dot_product_attention,
    activations.swiglu: swiglu,
}
