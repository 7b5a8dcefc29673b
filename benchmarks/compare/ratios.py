"""From the repetitions of the sides to ratios."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mlx_email.benchmarks.compare.side import Goal

Repetition = dict[str, Any]  # what `pace.Pace` reports


@dataclass(frozen=True)
class Measure:
    """A number of a repetition."""

    of: Callable[[Repetition], float]
    unit: str
    more_is_better: bool = False


MEASURES = {
    "speed": Measure(lambda r: r["tokens"] / r["seconds"], "tokens/s", more_is_better=True),
    "seconds": Measure(lambda r: r["seconds"], "s"),
    "peak": Measure(lambda r: r["peak"] / 1e6, "MB"),
    "beyond": Measure(lambda r: (r["peak"] - r["held"]) / 1e6, "MB"),
}


def compared(goal: Goal, measured: dict[str, list[Repetition]], *, judged: bool) -> dict[str, Any]:
    """How many times better ours is than the best of the goal's peers, by the medians, with the least and the largest
    ratio of repetitions that ran next to each other."""
    measure = MEASURES[goal.measure]
    values = {side: [measure.of(repetition) for repetition in taken] for side, taken in measured.items()}
    record: dict[str, Any] = {"title": goal.title, "measure": goal.measure, "unit": measure.unit, "ours": None}
    record |= {"peer": None, "peer_value": None, "ratio": None, "range": None}
    record |= {"at_least": goal.at_least if judged else None, "reached": None}
    if goal.ours not in values:
        return record
    record["ours"] = median(values[goal.ours])
    peers = [peer for peer in goal.peers if peer in values]
    if not peers:
        return record
    best = (max if measure.more_is_better else min)(peers, key=lambda peer: median(values[peer]))

    def better(ours: float, peer: float) -> float:
        return ours / peer if measure.more_is_better else peer / ours

    beside = [better(ours, peer) for ours, peer in zip(values[goal.ours], values[best], strict=True)]
    record |= {"peer": best, "peer_value": median(values[best])}
    record["ratio"] = better(record["ours"], record["peer_value"])
    record["range"] = [min(beside), max(beside)]
    if record["at_least"] is not None:
        record["reached"] = record["ratio"] >= record["at_least"]
    return record


def agreement(files: Sequence[Path], losses: Sequence[float]) -> dict[str, Any]:
    """How far two sides' gradients at the same weights are apart: the norm of the difference over the norm."""
    ours, peer = (load_file(file) for file in files)
    if ours.keys() != peer.keys():
        raise ValueError(f"the sides have gradients of different arrays: {sorted(ours.keys() ^ peer.keys())[:3]}")

    def norm(arrays: list[np.ndarray]) -> float:
        return float(np.sqrt(sum(np.square(array.astype(np.float64)).sum() for array in arrays)))

    difference = norm([ours[name].astype(np.float64) - peer[name] for name in ours])
    return {
        "losses": list(losses),
        "gradient_norm": norm(list(peer.values())),
        "difference": difference / norm(list(peer.values())),
    }
