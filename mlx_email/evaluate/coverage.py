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

    With `certainty` (0.9) only where chance alone would hardly make it look so: were their true accuracy below the
    goal, so many right ones would come up in less than 1 - certainty of all cases (one-sided Clopper-Pearson bound).
    """
    order = np.argsort(-confidence, kind="stable")
    sure = confidence[order]
    for count, share in zip(*_prefixes(sure, right[order]), strict=True):
        if share < goal:
            continue
        wrong = count - round(share * count)
        if certainty is None or at_most(wrong, count, 1 - goal) <= 1 - certainty:
            return float(sure[count - 1])
    return None


def _prefixes(sure: np.ndarray, right: np.ndarray) -> tuple[list[int], list[float]]:
    """Counts and shares right of the messages above each threshold, the most messages first."""
    ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True)) + 1 if len(sure) else np.zeros(0, int)
    return ends[::-1].tolist(), (right.cumsum()[ends - 1] / ends)[::-1].tolist() if len(ends) else []


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
