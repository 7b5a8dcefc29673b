"""Dropout whose masks are a pure function of an explicit key.

mlx's own draws from a global random state: a compiled function would have to carry that state, and what gradient
checkpointing computes again in the backward pass would get another mask. Here `rekey` gives every Dropout of a model a
key of its own, made from one key; `advance` moves all of them on, for a second pass that draws other masks.
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn


@dataclass(frozen=True)
class _Keys:
    """A key either draws a mask or is split, never both. Not a tuple: mlx would take it for a part of the model."""

    mask: mx.array  # (2,) uint32: draws the masks of this pass
    later: mx.array  # (2,) uint32: what the keys of later passes are made of


class Dropout(nn.Module):
    """Zero each element with probability p and scale the others by 1 / (1 - p), in training mode; else x as it is.

    Without a key (before `rekey`, or after it removed them) the mask comes from `mx.random`'s global state.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the probability {p} of dropout is not in [0, 1)")
        self.p = p
        self._keys: _Keys | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if self.p == 0 or not self.training:
            return x
        kept = mx.random.bernoulli(1 - self.p, x.shape, None if self._keys is None else self._keys.mask)
        return mx.where(kept, x * (1 / (1 - self.p)), 0)  # not a product: the backward pass keeps one byte an element

    def _extra_repr(self) -> str:
        return f"p={self.p}"

    def mask_key(self) -> mx.array:
        """The key of the next mask; where there is none, one drawn from the global state."""
        if self._keys is None:
            return mx.random.randint(0, 2**31 - 1, (2,), mx.uint32)
        return self._keys.mask


def rekey(model: nn.Module, key: mx.array | None) -> None:
    """Give every Dropout of the model its own key split from `key`; with None take their keys away.

    Inside a compiled function, where `key` is an argument, take them away at its end: placeholders would stay behind.
    """
    layers = active(model)
    if key is None:
        for layer in layers:
            layer._keys = None
    elif layers:
        keys = mx.random.split(key, 2 * len(layers))
        for number, layer in enumerate(layers):
            layer._keys = _Keys(keys[2 * number], keys[2 * number + 1])


def advance(model: nn.Module) -> None:
    """Give every Dropout that has a key its next one, so that another pass through the model draws other masks."""
    for layer in active(model):
        if layer._keys is not None and layer.training:
            keys = mx.random.split(layer._keys.later)
            layer._keys = _Keys(keys[0], keys[1])


def active(model: nn.Module) -> list[Dropout]:
    """The Dropouts of a model, or of one layer, that may drop anything; always in the same order."""
    return [module for module in model.modules() if isinstance(module, Dropout) and module.p > 0]


@contextlib.contextmanager
def drawing(layers: Sequence[Dropout], keys: Sequence[mx.array]) -> Generator[None]:
    """Let each of `layers` draw with the key given here, and put back afterwards what it had."""
    held = [layer._keys for layer in layers]
    for layer, key in zip(layers, keys, strict=True):
        layer._keys = _Keys(key, key)
    try:
        yield
    finally:
        for layer, before in zip(layers, held, strict=True):
            layer._keys = before
