"""What the machine's memory allows, and what to say when it does not suffice."""

import contextlib
import os
from collections.abc import Generator

import mlx.core as mx

from mlx_email.errors import MlxEmailError

ADVICE = (
    "lower the stage's batch_size (with accumulation raised as much the result is the same), lower max_prompt_tokens, "
    "or set gradient_checkpointing=true"
)


def settle(cache_gb: float | None) -> None:
    """Prepare MLX's allocator for a long run.

    On Apple silicon the weights are wired, up to what Metal recommends, so that the system does not page them out
    between steps. `cache_gb` bounds the memory that MLX keeps for reuse after it was freed; None leaves MLX's default.
    """
    if mx.metal.is_available():
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    if cache_gb is not None:
        mx.set_cache_limit(int(cache_gb * 1e9))


def ceiling_gb(limit_gb: float | None) -> float:
    """The memory in GB that MLX may use at most: `limit_gb`, or where that is None the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if limit_gb is None else limit_gb


def peak_gb() -> float:
    """The most that MLX has used since the peak was last reset, in GB."""
    return mx.get_peak_memory() / 1e9


@contextlib.contextmanager
def exhausted(what: str) -> Generator[None]:
    """Turn what MLX says of memory that it did not get into an MlxEmailError with advice.

    MLX has no exception of its own for that: Metal's driver says "Insufficient Memory", the allocators "Unable to
    allocate", CUDA "out of memory".
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if isinstance(error, MemoryError) or any(
            sign in said for sign in ("insufficient memory", "unable to allocate", "out of memory", "malloc")
        ):
            raise MlxEmailError(f"{what}: the memory does not suffice ({_line(error)}): {ADVICE}") from error
        raise


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
