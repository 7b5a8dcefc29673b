"""Which candidate of an export is published: the smallest that agrees with the adapter."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_email.errors import UserError

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
