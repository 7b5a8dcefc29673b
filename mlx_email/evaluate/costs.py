"""What a wrong action costs: a deletion that should have been an answer is worse than a letter kept for nothing."""

from collections.abc import Mapping

import numpy as np

from mlx_email.labels.schema import ACTIONS, Action

# Of saying the second where the first was right; in units of a letter archived that should have been dealt with. What
# leaves the mailbox (a forward) or is gone (a deletion) weighs most, an answer at another time least.
OF_SAYING: Mapping[Action, float] = {
    "reply_now": 1.0,
    "reply_later": 1.0,
    "forward": 3.0,
    "archive": 1.0,
    "delete": 3.0,
}
BETWEEN: Mapping[tuple[Action, Action], float] = {
    ("reply_now", "reply_later"): 0.5,
    ("reply_later", "reply_now"): 0.25,
    ("delete", "archive"): 0.25,
    ("archive", "delete"): 2.0,
}


def matrix(changes: Mapping[Action, Mapping[Action, float]] | None = None) -> np.ndarray:
    """Costs (5, 5): row = right action, column = the one taken; 0 on the diagonal. `changes` replaces single costs, by
    the right action and the one taken."""
    costs = np.array([[BETWEEN.get((right, said), OF_SAYING[said]) for said in ACTIONS] for right in ACTIONS])
    for right, row in (changes or {}).items():
        for said, cost in row.items():
            costs[ACTIONS.index(right), ACTIONS.index(said)] = cost
    np.fill_diagonal(costs, 0.0)
    return costs


def expected(probabilities: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """What each action is expected to cost, (..., 5), by calibrated probabilities (..., 5)."""
    return probabilities @ costs


def mean(target: np.ndarray, said: np.ndarray, costs: np.ndarray) -> float:
    """What a message cost on average: right actions (N,), those taken (N,)."""
    return float(costs[target, said].mean()) if len(target) else 0.0


def summary(target: np.ndarray, probabilities: np.ndarray, costs: np.ndarray) -> dict[str, float]:
    """What a message costs on average where the likeliest action is taken, and where the one is that is expected to
    cost least, by calibrated probabilities (N, 5)."""
    cheapest = expected(probabilities, costs).argmin(axis=1)
    return {
        "cost": mean(target, probabilities.argmax(axis=1), costs),
        "cost_of_cheapest": mean(target, cheapest, costs),
    }
