"""Gradient checkpointing, layer by layer (Chen et al. 2016, arXiv 1604.06174), for prompts that are shared.

A layer's inner arrays are dropped after the forward pass and computed again in the backward pass. For that the layer
becomes a function whose inputs and outputs are all explicit: its trainable arrays, x, the prompt's keys and values in
the branch pass; y, the new keys and values in the prompt pass. A side effect inside, such as keys written into a cache,
would be a constant to autodiff, and the gradient silently wrong.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlx_email.model import dropout
from mlx_email.model.cache import BranchCache, PromptCache

# What a layer may be called with. Anything else may have a state of its own: such a call is not checkpointed.
KNOWN = (mx.array, PromptCache, BranchCache, str, int, float, type(None))


def apply(model: nn.Module) -> None:
    """Checkpoint every layer of the model from now on, in training mode. Its arrays and their names stay."""
    for layer in model.layers:
        if not isinstance(layer, Checkpointed):
            layer.__class__ = _checkpointed(type(layer))


def remove(model: nn.Module) -> None:
    """Undo `apply`."""
    for layer in model.layers:
        if isinstance(layer, Checkpointed):
            layer.__class__ = layer.plain


@functools.cache
def _checkpointed(plain: type[nn.Module]) -> type[nn.Module]:
    return type(f"Checkpointed{plain.__name__}", (Checkpointed, plain), {"plain": plain})


@dataclass(frozen=True)
class _Slot:
    """Stands in a layer's arguments for one that is an explicit input."""

    number: int
    cache: PromptCache | BranchCache | None = None  # for a cache: one like it that holds nothing


class Checkpointed(nn.Module):
    """A layer whose calls are checkpointed. `apply` puts this class before the layer's own."""

    plain: type[nn.Module]

    def __call__(self, *positional: Any, **named: Any) -> Any:
        call = super().__call__
        leaves = [leaf for _, leaf in tree_flatten((positional, named))]
        if not self.training or not all(isinstance(leaf, KNOWN) for leaf in leaves):
            return call(*positional, **named)
        inputs, template = _taken_out((positional, named))
        droppers = dropout.active(self)

        # `run` is kept until the backward pass. It refers to no cache that will hold its own results: that would be a
        # cycle through mlx, which Python cannot collect.
        def run(trained: Any, inputs: list[Any], keys: list[mx.array]) -> Any:
            arguments, caches = _put_in(template, inputs)
            now = self.trainable_parameters()
            self.update(trained)
            try:
                with dropout.drawing(droppers, [mx.stop_gradient(key) for key in keys]):
                    output = call(*arguments[0], **arguments[1])
            finally:
                self.update(now)
            return output, [cache.arrays() for cache in caches]

        # The keys of dropout are inputs too: what depended on nothing but constants, mx.compile would compute once for
        # both passes, and keep.
        keys = [dropper.mask_key() for dropper in droppers]
        output, arrays = mx.checkpoint(run)(self.trainable_parameters(), inputs, keys)
        for cache, held in zip(_prompt_caches(leaves), arrays, strict=True):
            cache.hold(held)
        return output


def _taken_out(arguments: Any) -> tuple[list[Any], Any]:
    """The explicit inputs among a layer's arguments, and the arguments with a slot in the place of each."""
    inputs: list[Any] = []

    def take(leaf: Any) -> Any:
        if isinstance(leaf, PromptCache | BranchCache):
            inputs.append(leaf.arrays())
            return _Slot(len(inputs) - 1, leaf.empty())
        if isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating):
            inputs.append(leaf)
            return _Slot(len(inputs) - 1)
        return leaf  # masks and positions: nothing is differentiated by them

    return inputs, tree_map(take, arguments)


def _put_in(template: Any, inputs: list[Any]) -> tuple[Any, list[PromptCache]]:
    """The other way: the arguments with the inputs in their places, and the new prompt caches among them."""

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, _Slot):
            return leaf
        if leaf.cache is None:
            return inputs[leaf.number]
        cache = leaf.cache.empty()
        cache.hold(inputs[leaf.number])
        return cache

    arguments = tree_map(put, template)
    return arguments, _prompt_caches(leaf for _, leaf in tree_flatten(arguments))


def _prompt_caches(leaves: Iterable[Any]) -> list[PromptCache]:
    return [leaf for leaf in leaves if isinstance(leaf, PromptCache)]
