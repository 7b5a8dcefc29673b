"""Two policies on the same messages: is one better, or is it luck?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_email.evaluate import bootstrap
from mlx_email.evaluate.metrics import change, targets
from mlx_email.labels.schema import Row


def compare(rows: Sequence[Row], first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """How the second policy differs from the first, by their probabilities (N, 5) of the messages `rows`.

    Changes are the second's metric less the first's, with a paired 95% bootstrap interval over threads. `mcnemar` is of
    single messages; where threads are long, the interval is what to go by.
    """
    target, thread = targets(rows), bootstrap.threads(rows)
    was, now = first.argmax(axis=1), second.argmax(axis=1)
    only_first = int(((was == target) & (now != target)).sum())
    only_second = int(((was != target) & (now == target)).sum())
    changes = {}
    for metric in ("accuracy", "macro_f1"):
        gained, low, high = change(target, first, second, metric, thread=thread)
        changes |= {metric: gained, f"{metric}_interval": [low, high]}
    return {
        "messages": len(rows),
        "threads": int(thread.max()) + 1,
        "same_action": float((was == now).mean()),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "mcnemar": mcnemar(only_first, only_second),
        "change": changes,
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact probability, were both policies equally good, of at least as uneven a division of the messages on which
    one is right and the other wrong: a two-sided binomial test at 1/2 (McNemar 1947, Psychometrika 12).

    >>> round(mcnemar(1, 5), 12), mcnemar(3, 3), mcnemar(0, 0)
    (0.21875, 1.0, 1.0)
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    chosen = np.arange(1, fewer + 1)
    # ln(n choose k) for k from 0 to the smaller, since the numbers themselves have as many digits as there are messages
    log_ways = np.concatenate([[0.0], np.cumsum(np.log((count - chosen + 1) / chosen))])
    tail = np.exp(np.logaddexp.reduce(log_ways) - count * np.log(2))
    return float(min(2 * tail, 1.0))


def difference(one: Sequence[Row], other: Sequence[Row]) -> str | None:
    """Why what was measured on two sets of messages cannot be compared, in words; None where it can: they are the same
    messages, in the same order, with the same actions."""
    names = [[(row.user, row.message_id) for row in rows] for rows in (one, other)]
    if names[0] != names[1]:
        shared = len(set(names[0]) & set(names[1]))
        return f"they were measured on other messages: {shared} of {len(one)} and {len(other)} are the same"
    if (changed := int((targets(one) != targets(other)).sum())) > 0:
        return f"what was done with {changed} of {len(one)} messages is not the same in both tables"
    return None
