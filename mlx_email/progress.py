"""Progress for people: bars on stderr. Nothing else prints while something runs."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from mlx_email.train.loop import StepResult


@dataclass(frozen=True)
class RollBar:
    """A bar of something that samples."""

    bar: tqdm
    rolled: list[float] = field(default_factory=list)  # of the rollout that is being made: tokens, and since when

    def rolling(self, tokens: int) -> None:
        """Called with how many more tokens were sampled, one for each live completion."""
        if not self.rolled:
            self.rolled[:] = 0.0, time.perf_counter()
        self.rolled[0] += tokens
        speed = self.rolled[0] / max(time.perf_counter() - self.rolled[1], 1e-9)
        self.bar.set_postfix_str(f"rollout: {tokens} live, {speed:.0f} tokens/s", refresh=False)
        self.bar.update(0)

    def done(self, prompts: int, share: float) -> None:
        """Called with how many more prompts have their samples, and the share of all samples that is kept."""
        self.bar.set_postfix_str(f"{share:.0%} of samples kept", refresh=False)
        self.bar.update(prompts)


@dataclass(frozen=True)
class StepBar(RollBar):
    """A bar of optimiser steps: loss and real supervised tokens a second."""

    def step(self, result: "StepResult", steps: int) -> None:
        self.bar.total = steps
        if self.bar.n == 0:  # a run that goes on begins where it stood
            self.bar.initial = self.bar.n = result.step - 1
        self.rolled.clear()
        speed = result.tokens / result.seconds
        said = f"loss {result.loss:.3f}, {speed:.0f} tokens/s"
        if "rollout/kept" in result.metrics:
            said += f", reward {result.metrics['reward']:.3f}, {result.metrics['rollout/kept']:.0%} of groups kept"
        self.bar.set_postfix_str(said, refresh=False)
        self.bar.update(1)


@dataclass(frozen=True)
class Progress:
    """Where progress goes. `quiet` shows nothing: for --json and tests."""

    quiet: bool = False

    @contextlib.contextmanager
    def steps(self, what: str) -> Generator[StepBar]:
        with self._bar(what, "step") as bar:
            yield StepBar(bar)

    @contextlib.contextmanager
    def sampling(self, what: str, prompts: int) -> Generator[RollBar]:
        with self._bar(what, "prompts", prompts) as bar:
            yield RollBar(bar)

    @contextlib.contextmanager
    def count(self, what: str, unit: str, total: int | None = None) -> Generator[Callable[[int], object]]:
        """Gives a function to call with how many more are done."""
        with self._bar(what, unit, total) as bar:
            yield bar.update

    @contextlib.contextmanager
    def reading(self) -> Generator[Callable[[str, int, int], object]]:
        """For `prepare`: gives a function to call with what was done ("read": bytes, "label": messages), how many more,
        and of how many."""
        with self._bar("read mail", "B", scaled=True) as size, self._bar("label", "messages") as messages:
            bars = {"read": size, "label": messages}

            def advance(what: str, more: int, total: int) -> None:
                bars[what].total = total
                bars[what].update(more)

            yield advance

    @contextlib.contextmanager
    def phase(self, what: str) -> Generator[None]:
        """Something short that has no parts to count."""
        started = time.perf_counter()
        yield
        if not self.quiet:
            tqdm.write(f"{what}: {time.perf_counter() - started:.1f} s", file=sys.stderr)

    def note(self, text: str) -> None:
        """One line that the user should see, whatever else is shown."""
        tqdm.write(text, file=sys.stderr)

    def _bar(self, what: str, unit: str, total: int | None = None, *, scaled: bool = False) -> tqdm:
        return tqdm(
            desc=what,
            unit=unit if scaled else f" {unit}",
            unit_scale=scaled,
            total=total,
            disable=self.quiet,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
            delay=0.3,  # what fails at once shows its error, not a bar
        )
