"""Whether a policy may act alone on a message: the rule, chosen on validation mail, and how it did on later mail.

RUN/STAGE/acting.json holds both. A message may be acted on alone at a goal (right 95% of the time) where

- its confidence, calibrated, is at least the goal's threshold (`coverage.threshold`),
- what it would do is one of the actions that were right so often, above the threshold, and
- the expected cost of doing so is at most `most_cost` (`costs`).
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mlx_email import files
from mlx_email.config import Acting
from mlx_email.errors import DataError
from mlx_email.evaluate import costs as costing
from mlx_email.evaluate import coverage
from mlx_email.labels.schema import ACTIONS

FILE = "acting.json"
GOAL = 0.95  # how often what is done alone must be right, where nothing else is asked for
FEWEST = 10  # validation messages of an action, above the threshold: of fewer nothing is known of it


class Goal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule; and what it is worth on mail that it was not chosen on."""

    goal: float
    threshold: float | None  # None: it may never act alone
    actions: tuple[str, ...]  # those for which it may
    validation: dict[str, float] = {}  # coverage, accuracy: of the messages that it was chosen on
    test: dict[str, float] = {}


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What acting.json holds."""

    goals: tuple[Goal, ...] = ()
    costs: tuple[tuple[float, ...], ...] = ()  # (5, 5), as `costs.matrix` gives them
    most_cost: float = 0.0


def choose(probabilities: np.ndarray, target: np.ndarray, settings: Acting) -> Rules:
    """The rules, by calibrated probabilities (N, 5) of validation messages and their right actions (N,)."""
    costs = costing.matrix(settings.costs)
    said, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    goals = []
    for goal in settings.goals:
        limit = coverage.threshold(confidence, said == target, goal, certainty=settings.certainty)
        above = np.zeros(len(target), bool) if limit is None else confidence >= limit
        known = [(name, above & (said == number)) for number, name in enumerate(ACTIONS)]
        actions = [name for name, of in known if of.sum() >= FEWEST and (said == target)[of].mean() >= goal]
        goals.append(Goal(goal, limit, tuple(actions)))
    rules = Rules(tuple(goals), tuple(map(tuple, costs.tolist())), settings.most_cost)
    return _with(rules, "validation", probabilities, target)


def verified(rules: Rules, probabilities: np.ndarray, target: np.ndarray) -> Rules:
    """The rules with what they are worth on other messages, `test`."""
    return _with(rules, "test", probabilities, target)


def _with(rules: Rules, split: str, probabilities: np.ndarray, target: np.ndarray) -> Rules:
    right = probabilities.argmax(axis=1) == target
    goals = []
    for goal in rules.goals:
        sure = np.zeros(len(target), bool) if goal.threshold is None else probabilities.max(axis=1) >= goal.threshold
        acts = may_act(rules, goal.goal, probabilities)
        found = {"coverage": share(sure), "accuracy": share(right[sure]), "acts": share(acts)}
        found["acts_accuracy"] = share(right[acts])
        goals.append(msgspec.structs.replace(goal, **{split: found}))
    return msgspec.structs.replace(rules, goals=tuple(goals))


def share(which: np.ndarray) -> float:
    """Of booleans; 0 of none."""
    return float(which.mean()) if len(which) else 0.0


def may_act(rules: Rules, goal: float, probabilities: np.ndarray) -> np.ndarray:
    """Whether it may act alone on each message, (N,) bool, by calibrated probabilities (N, 5)."""
    rule = rule_of(rules, goal)
    if rule.threshold is None or not len(probabilities):
        return np.zeros(len(probabilities), bool)
    said = probabilities.argmax(axis=1)
    known = np.isin(said, [ACTIONS.index(name) for name in rule.actions])
    cost = costing.expected(probabilities, np.array(rules.costs))[np.arange(len(said)), said]
    return (probabilities.max(axis=1) >= rule.threshold) & known & (cost <= rules.most_cost)


def usual(rules: Rules) -> Goal | None:
    """The rule to go by where no goal is asked for: that of GOAL, or the strictest; None where there is none."""
    known = {each.goal: each for each in rules.goals}
    return known.get(GOAL) or (known[max(known)] if known else None)


def rule_of(rules: Rules, goal: float) -> Goal:
    """The rule of a goal; DataError where the rules have none for it."""
    found = next((each for each in rules.goals if abs(each.goal - goal) < 1e-9), None)
    if found is None:
        known = ", ".join(f"{each.goal:g}" for each in rules.goals) or "none"
        raise DataError(f"there is no rule for acting at {goal:g}: this run has {known} (acting.goals)")
    return found


def write(folder: Path, rules: Rules) -> None:
    """Publish a stage's rules."""
    files.write_json(folder / FILE, msgspec.to_builtins(rules))


def read(folder: Path) -> Rules | None:
    """A stage's rules; None where it has none. DataError where the file is something else."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Rules, strict=False)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{folder / FILE} holds no rules for acting: {' '.join(str(error).split())}") from error


def told(rules: Rules) -> dict[str, Any]:
    """What they are worth, by the goal: for metrics.json."""
    return {
        f"{each.goal:g}": {"threshold": each.threshold, "actions": each.actions, **each.test} for each in rules.goals
    }
