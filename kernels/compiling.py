"""Whether functions are traced by `mx.compile`.

On Metal and CUDA compiling fuses element-wise work and is the point. On the CPU backend it calls the C++ compiler at
run time, costs about 20 s for the first training step and gains nothing, so the default follows the device.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import mlx.core as mx

P = ParamSpec("P")
R = TypeVar("R")


def by_default() -> bool:
    """Whether the default device is one where compiling pays."""
    return mx.default_device() == mx.Device(mx.gpu)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`mx.compile` where it pays. Call with arrays only: a Python number would be traced anew for every value."""
    traced = mx.compile(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (traced if by_default() else function)(*args, **kwargs)

    return call
