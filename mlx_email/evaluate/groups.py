"""The same metrics of parts of the messages: how far the whole can be believed, and of whom, and of when."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any

import numpy as np

from mlx_email.evaluate.counts import confusions, scores
from mlx_email.labels.schema import Row

MOST = 50  # owners that are listed: those with the most messages


def subsets(rows: Sequence[Row], target: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, Any]]:
    """Parts that say how far the whole can be believed; empty ones are left out.

    straddling: in a thread that began in an earlier split; apart: in none; good_labels: what was done is known for sure
    (kept mail near the end of an export may only not be deleted yet).
    """
    chosen = {
        "straddling": np.array([row.straddles for row in rows], bool),
        "apart": np.array([not row.straddles for row in rows], bool),
        "good_labels": _certain(rows),
    }
    return {name: _of(target[mask], predicted[mask]) for name, mask in chosen.items() if mask.any()}


def owners(rows: Sequence[Row], target: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, Any]]:
    """By owner, those with the most messages first, MOST at most."""
    found = _by([row.user for row in rows], rows, target, predicted)
    return dict(sorted(found.items(), key=lambda item: (-item[1]["messages"], item[0]))[:MOST])


def months(rows: Sequence[Row], target: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, Any]]:
    """By month (UTC), as 2001-05, the earliest first."""
    return dict(sorted(_by([f"{row.date.astimezone(UTC):%Y-%m}" for row in rows], rows, target, predicted).items()))


def _by(
    names: Sequence[str], rows: Sequence[Row], target: np.ndarray, predicted: np.ndarray
) -> dict[str, dict[str, Any]]:
    """By group, each message being in one; `good_labels`: those of its messages whose label is certain, if any."""
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    group, certain = np.array([place[name] for name in names], int), _certain(rows)
    every = confusions(group, target, predicted, len(place))
    good = confusions(group[certain], target[certain], predicted[certain], len(place))
    return {
        name: {**_said(every[number]), **({"good_labels": _said(good[number])} if good[number].any() else {})}
        for name, number in place.items()
    }


def _certain(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row.label_quality == "good" for row in rows], bool)


def _of(target: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    return _said(confusions(np.zeros(len(target), int), target, predicted, 1)[0])


def _said(counts: np.ndarray) -> dict[str, Any]:
    """Of one confusion matrix (5, 5)."""
    measured = {name: float(scores(counts[None], name)[0]) for name in ("accuracy", "macro_f1")}
    return {"messages": int(counts.sum()), **measured}
