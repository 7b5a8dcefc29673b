"""What all losses share."""

import difflib
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import mlx.core as mx

T = TypeVar("T")

# exp(20) = 4.9e8: far from float32's end even when squared or summed over a batch, far beyond any sane ratio.
LARGEST_EXPONENT = 20.0


class Loss(NamedTuple):
    """A sum, the number it is to be divided by, and sums to report: never a mean.

    Sums of micro-batches and of ranks can be added; means cannot. A NamedTuple passes through `mx.compile`.
    """

    total: mx.array  # scalar, float32: sum over what is counted
    count: mx.array  # scalar, float32: number of tokens, sequences or pairs; 0 for a batch of padding
    metrics: dict[str, tuple[mx.array, mx.array]]  # name -> (sum, count)


def named(table: Mapping[str, T], name: str, argument: str) -> T:
    """The entry `name` of a table of variants; ValueError with the argument and the nearest name when there is none.

    >>> named({"hinge": 1, "ipo": 2}, "hing", "loss_type")
    Traceback (most recent call last):
    ValueError: loss_type 'hing' is not known; nearest: 'hinge'; known: hinge, ipo
    """
    if name in table:
        return table[name]
    close = difflib.get_close_matches(str(name), table, n=1, cutoff=0.0)
    raise ValueError(f"{argument} {name!r} is not known; nearest: {close[0]!r}; known: {', '.join(table)}")


def number(value: float | mx.array) -> mx.array:
    """A setting as an array: a compiled function is traced anew for every value of a Python number."""
    return value.astype(mx.float32) if isinstance(value, mx.array) else mx.array(value, dtype=mx.float32)


def real_values(values: mx.array, real: mx.array) -> mx.array:
    """`values` in float32 where `real`, 0 elsewhere, in value and in gradient.

    where, not a product, and before anything else is done: a masked position may hold anything, and 0 * inf is not 0.
    """
    return mx.where(real, values.astype(mx.float32), 0.0)


def bounded(exponent: mx.array) -> mx.array:
    """A log-ratio (nats) before its exp, at most 20 either way: beyond, exp is finite and its gradient 0."""
    return mx.clip(exponent, -LARGEST_EXPONENT, LARGEST_EXPONENT)


def log_sigmoid(x: mx.array) -> mx.array:
    """log(sigmoid(x)) without overflow: slope between 0 and 1 at any x."""
    return -mx.logaddexp(-x, 0.0)
