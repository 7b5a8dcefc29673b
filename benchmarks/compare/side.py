"""What a piece of work, its sides and its goals are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_email.benchmarks.compare.workload import Sizes

if TYPE_CHECKING:
    from mlx_email.benchmarks.compare.keep import Keep


@dataclass(frozen=True)
class Job:
    """What the process of one side does."""

    folder: Path  # of the workload
    sizes: Sizes
    warmup: int  # steps
    steps: int  # of one repetition
    repetitions: int
    pace: Callable[[float, int], None]  # (loss, real supervised tokens), after each step
    keep: "Keep | None" = None  # the optimiser, where the gradient of one step is all that is wanted

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.warmup + self.steps * self.repetitions


@dataclass(frozen=True)
class Side:
    """One way to do a piece of work."""

    run: Callable[[Job], None]
    package: str | None = None  # the distribution of the peer whose code it calls
    steps: Callable[[Sizes], int] = lambda sizes: sizes.steps  # of one repetition


@dataclass(frozen=True)
class Goal:
    """A ratio to be reached. Where a peer has several sides, the best of them counts."""

    title: str
    measure: str  # a key of ratios.MEASURES
    ours: str
    peers: tuple[str, ...]
    at_least: float | None = None  # of the full sizes; None: only to be seen


@dataclass(frozen=True)
class Work:
    """Sides that do the same, and what is compared."""

    sides: dict[str, Side]  # ours first
    goals: tuple[Goal, ...]
    parity: tuple[str, str] | None  # the sides whose gradients are compared, where there are any
    notes: tuple[str, ...]  # what one has to know to read the figures
    repetitions: Callable[[Sizes], int] = lambda sizes: sizes.repetitions
