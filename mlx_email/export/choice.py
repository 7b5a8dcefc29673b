"""Which candidate of an export is published: the smallest that agrees with the adapter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_email.errors import UserError
from mlx_email.export import bundle

PASS = 0.99  # share of equal actions


def agreement(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How alike two sets of action probabilities (N, 5) are: share of equal actions, mean and largest difference."""
    return {
        "messages": len(before),
        "same_action": float(np.mean(before.argmax(axis=1) == after.argmax(axis=1))),
        "mean_difference": float(np.abs(before - after).mean()),
        "largest_difference": float(np.abs(before - after).max()),
    }


def choose(candidates: Sequence[dict[str, Any]], *, force: bool) -> dict[str, Any]:
    """The smallest that passes; with `force` the only one, whatever it does."""
    good = [each for each in candidates if each["agreement"]["same_action"] >= PASS]
    if not good and not (force and len(candidates) == 1):
        said = ", ".join(f"{each['strategy']} {each['agreement']['same_action']:.1%}" for each in candidates)
        raise UserError(
            f"the same action as the adapter on too few messages ({said}; {PASS:.0%} are asked for): leave --strategy "
            "out, name another, or add --force"
        )
    return min(good or candidates, key=lambda each: each["megabytes"])


def table(record: dict[str, Any], out: Path) -> str:
    """An export's record in words."""
    said = record["agreement"]
    return "\n".join(
        [
            f"{out}: {record['model']} with the adapter of stage {record['stage']}, {record['megabytes']:.1f} MB",
            "",
            f"  {'strategy':14s} {'MB':>8s}  same action  mean difference  largest",
            *map(_line, record["candidates"]),
            "",
            f"{record['strategy']} was taken: the same action as before on {said['same_action']:.1%} of "
            f"{said['messages']} messages",
            f"try: {_try(record['strategy'], out)}",
            *([f"uploaded: {record['uploaded']}"] if "uploaded" in record else []),
        ]
    )


def _line(candidate: dict[str, Any]) -> str:
    said = candidate["agreement"]
    numbers = f"{said['same_action']:11.1%}  {said['mean_difference']:15.2g}  {said['largest_difference']:7.2g}"
    return f"  {candidate['strategy']:14s} {candidate['megabytes']:8.1f}  {numbers}"


def _try(strategy: str, out: Path) -> str:
    beside = f" --adapter-path {out / bundle.ADAPTER}" if strategy == "adapter" else ""
    return f"mlx_lm.generate --model {out}{beside} --prompt '...'"
