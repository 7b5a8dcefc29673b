"""What all losses share."""

from typing import NamedTuple

import mlx.core as mx


class Loss(NamedTuple):
    """A sum, the number it is to be divided by, and sums to report: never a mean.

    Sums of micro-batches and of ranks can be added; means cannot. A NamedTuple passes through `mx.compile`.
    """

    total: mx.array  # scalar, float32: sum over what is counted
    count: mx.array  # scalar, float32: number of tokens, sequences or pairs; 0 for a batch of padding
    metrics: dict[str, tuple[mx.array, mx.array]]  # name -> (sum, count)
