"""Several policies over one base: the layers before the first that has an adapter give the same under all of them, so
they are computed once."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_email.model.cache import PromptCache
from mlx_email.model.frozen import Frozen


def under_each(model: nn.Module, policies: Sequence[Frozen], compute: Callable[[], mx.array]) -> list[mx.array]:
    """What `compute` gives while the model has the adapters of each policy, without gradient; then it has the last's.

    `compute` runs the model on the same inputs, in the same order, every time.
    """
    found = []
    with _remembering(_trunk(model) if len(policies) > 1 else []) as tape:
        for policy in policies:
            policy.put_on(model)
            found.append(compute())
            mx.eval(found[-1])
            tape.rewind()
    return found


@dataclass
class _Tape:
    """What each layer gave in the first pass: for each of its calls its output, and the keys and values that it left
    in a prompt's cache."""

    calls: dict[int, list[tuple[Any, list[mx.array]]]] = field(default_factory=dict)  # by the layer's number
    at: dict[int, int] | None = None  # in a pass after the first: how many of a layer's calls are played back

    def rewind(self) -> None:
        self.at = dict.fromkeys(self.calls, 0)


@contextmanager
def _remembering(trunk: Sequence[nn.Module]) -> Generator[_Tape]:
    """Let these layers compute only in a first pass."""
    tape = _Tape()
    for number, layer in enumerate(trunk):
        layer.__class__ = _remembered(type(layer))
        layer._tape, layer._number = tape, number
    try:
        yield tape
    finally:
        for layer in trunk:
            layer.__class__ = layer.plain
            del layer._tape, layer._number


def _trunk(model: nn.Module) -> list[nn.Module]:
    """The layers before the first that has an adapter: none of a model without any."""
    adapted = [any("lora_a" in module for module in layer.modules()) for layer in model.layers]
    return model.layers[: adapted.index(True)] if True in adapted else []


@cache
def _remembered(plain: type[nn.Module]) -> type[nn.Module]:
    return type(f"Remembered{plain.__name__}", (Remembered, plain), {"plain": plain})


class Remembered(nn.Module):
    """A layer that computes in a first pass only. `_remembering` puts this class before the layer's own."""

    plain: type[nn.Module]
    _tape: _Tape
    _number: int

    def __call__(self, *positional: Any, **named: Any) -> Any:
        caches = [each for each in (*positional, *named.values()) if isinstance(each, PromptCache)]
        tape, number = self._tape, self._number
        if tape.at is None:
            output = super().__call__(*positional, **named)
            tape.calls.setdefault(number, []).append((output, [array for each in caches for array in each.arrays()]))
            return output
        output, held = tape.calls[number][tape.at[number]]
        tape.at[number] += 1
        for each in caches:
            each.hold(held)
        return output
