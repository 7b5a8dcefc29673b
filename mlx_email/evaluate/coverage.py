"""How much of the mail a policy may act on alone: selective prediction (El-Yaniv and Wiener 2010; Geifman and El-Yaniv
2017, arXiv 1705.08500). Arrays of confidences and of what was right in, plain values out."""

import math

import numpy as np


def curve(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and accuracy (N,) of acting on the 1, 2, ..., N messages that are surest; 1 less the accuracy is the
    risk. Messages that are equally sure have the values of all of them: no threshold tells them apart.

    >>> coverage, accuracy = curve(np.array([0.9, 0.6, 0.8]), np.array([True, False, True]))
    >>> accuracy.round(2).tolist()
    [1.0, 1.0, 0.67]
    """
    order = np.argsort(-confidence, kind="stable")
    sure = confidence[order]
    last = np.searchsorted(-sure, -sure, side="right") - 1  # the last of those equally sure
    count = np.arange(1, len(sure) + 1)
    return (count / max(len(sure), 1))[last], (right[order].cumsum() / count)[last]


def threshold(
    confidence: np.ndarray, right: np.ndarray, goal: float, *, certainty: float | None = None
) -> float | None:
    """The lowest confidence from which on messages are right `goal` of the time; None where there is none.

    With `certainty` (0.9) one that does not merely look so: a threshold that misses the goal is chosen in at most 1 -
    certainty of all cases. Thresholds are tried from a high one down, each by a binomial test, up to the first that
    fails: in such a fixed sequence no test takes anything from the others (Angelopoulos et al. 2021, arXiv 2110.01052,
    section 2.1). The first has as many messages above it as could be with FORGIVEN of them wrong.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, correct = confidence[order], right[order].cumsum()
    ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True)) + 1 if len(sure) else np.zeros(0, int)
    if certainty is None:
        reached = ends[correct[ends - 1] >= goal * ends - ROUNDING]
        return float(sure[reached[-1] - 1]) if len(reached) else None
    found = None
    for count in _sequence(ends, goal, certainty):
        if at_most(count - int(correct[count - 1]), count, 1 - goal) > 1 - certainty:
            break
        found = float(sure[count - 1])
    return found


FORGIVEN = 5  # errors among the messages above the first threshold that is tried: were it 0, one would end it all
STEPS = 25  # thresholds that are tried, at most
ROUNDING = 1e-9


def _sequence(ends: np.ndarray, goal: float, certainty: float) -> list[int]:
    """How many messages lie above each threshold that is tried; it depends on none of what was right."""
    enough = [count for count in ends.tolist() if at_most(FORGIVEN, count, 1 - goal) <= 1 - certainty]
    places = np.unique(np.linspace(0, len(enough) - 1, STEPS).round().astype(int)) if enough else []
    return [enough[place] for place in places]


def at_most(wrong: int, count: int, risk: float) -> float:
    """The probability of at most `wrong` errors among `count` messages where each is one with probability `risk`.

    >>> at_most(0, 10, 0.5) == 0.5**10
    True
    """
    if risk <= 0 or wrong >= count:
        return 1.0
    if risk >= 1:
        return 0.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(risk) + (count - k) * math.log1p(-risk)
        for k in range(wrong + 1)
    ]  # fmt: skip
    top = max(logs)
    return min(1.0, math.exp(top) * sum(math.exp(each - top) for each in logs))
