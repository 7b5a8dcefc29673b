"""What a report computes itself. Arrays in, plain values out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_email.evaluate import coverage
from mlx_email.report.said import Said

MISTAKES = 20
POINTS = 200  # of a curve in a chart


def wilson(right: int, of: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927): unlike the bootstrap's it says something of few messages too.

    >>> [round(each, 3) for each in wilson(10, 10)]
    [0.722, 1.0]
    """
    if not of:
        return 0.0, 1.0
    z = 1.959964
    share, spread = right / of, z * z / of
    middle = share + spread / 2
    wide = z * math.sqrt(share * (1 - share) / of + spread / of / 4)
    return max((middle - wide) / (1 + spread), 0.0), min((middle + wide) / (1 + spread), 1.0)


@dataclass(frozen=True)
class Bin:
    """Messages whose confidence lies in low..high."""

    low: float
    high: float
    messages: int
    confidence: float  # mean
    right: float  # share


def reliability(probabilities: np.ndarray, actual: np.ndarray, bins: int = 10) -> list[Bin]:
    """Bins of equal width over the confidence, as in `calibration_error`; empty ones are left out."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == actual
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for each in range(bins):
        inside = place == each
        if inside.any():
            values = int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())
            found.append(Bin(each / bins, (each + 1) / bins, *values))
    return found


def gap(bins: Sequence[Bin]) -> float:
    """How far confidence and share right are apart, on average over messages: `calibration_error`."""
    total = sum(each.messages for each in bins)
    return sum(each.messages * abs(each.confidence - each.right) for each in bins) / max(total, 1)


@dataclass(frozen=True)
class Risk:
    """Acting on the surest messages only: coverage and accuracy of ever more of them, and for each goal the coverage at
    which these very messages reach it (None: never)."""

    coverage: list[float]
    accuracy: list[float]
    goals: dict[float, float | None]


def risk(said: Said, goals: Sequence[float]) -> Risk:
    """The risk-coverage curve of what a policy said."""
    shares, accuracy = coverage.curve(said.confidence, said.right)
    reached: dict[float, float | None] = {}
    for goal in goals:
        limit = coverage.threshold(said.confidence, said.right, goal)
        reached[goal] = None if limit is None else float((said.confidence >= limit).mean())
    few = np.unique(np.linspace(0, len(shares) - 1, min(len(shares), POINTS)).astype(int)) if len(shares) else []
    return Risk(shares[few].tolist(), accuracy[few].tolist(), reached)


def by_owner(said: Said) -> dict[str, tuple[int, int]]:
    """Owner -> messages, and right ones."""
    found: dict[str, tuple[int, int]] = {}
    for user, right in zip(said.users, said.right.tolist(), strict=True):
        of, good = found.get(user, (0, 0))
        found[user] = of + 1, good + right
    return found


def mistakes(said: Said, most: int = MISTAKES) -> list[int]:
    """The places of the wrong answers it was surest of, surest first."""
    wrong = np.flatnonzero(~said.right)
    return wrong[np.argsort(-said.confidence[wrong], kind="stable")][:most].tolist()


def thinned(steps: Sequence[int], values: Sequence[float], most: int = POINTS) -> tuple[list[float], list[float]]:
    """A curve of at most so many points: means of as many neighbours each."""
    if len(values) <= most:
        return list(map(float, steps)), list(values)
    parts = np.array_split(np.arange(len(values)), most)

    def means(of: Sequence[float]) -> list[float]:
        return [float(np.take(of, each).mean()) for each in parts]

    return means(steps), means(values)
