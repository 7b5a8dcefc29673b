"""The reward functions that come with the package: each takes samples and gives one number a sample."""

from collections.abc import Callable, Mapping, Sequence

from mlx_email.labels.examples.doubt import doubtful
from mlx_email.labels.schema import Action
from mlx_email.rewards.sample import Sample

RewardFunction = Callable[[Sequence[Sample]], Sequence[float]]

LONG = 48  # tokens: an answer as it is trained has fewer

# What it costs, between 0 and 1, to do one thing (inner) where the owner did another (outer): least where little is
# lost (an answer that could have waited, rubbish that is kept), most where something is gone. An assumption.
COST: Mapping[Action, Mapping[Action, float]] = {
    "reply_now": {"reply_later": 0.5, "forward": 0.75, "archive": 0.9, "delete": 1.0},
    "reply_later": {"reply_now": 0.25, "forward": 0.6, "archive": 0.75, "delete": 1.0},
    "forward": {"reply_now": 0.5, "reply_later": 0.5, "archive": 0.75, "delete": 1.0},
    "archive": {"reply_now": 0.75, "reply_later": 0.6, "forward": 0.75, "delete": 0.75},
    "delete": {"reply_now": 1.0, "reply_later": 0.75, "forward": 0.9, "archive": 0.25},
}


UNKNOWN = 0.5  # what an action is worth at least that the owner may have taken after all (`doubt.doubtful`)


def action(samples: Sequence[Sample]) -> list[float]:
    """1 for what the owner did, 0 for anything else, 1/2 for what they may have done after all."""
    return [_worth(sample, lambda done, said: 0.0) for sample in samples]  # noqa: ARG005


def action_cost(samples: Sequence[Sample]) -> list[float]:
    """1 for what the owner did, less what another action costs (COST), at least 1/2 for what they may have done after
    all; 0 where no action can be read."""
    return [_worth(sample, lambda done, said: 1.0 - COST[done][said]) for sample in samples]


def _worth(sample: Sample, other: Callable[[Action, Action], float]) -> float:
    said = sample.said.action
    if said is None or said == sample.done:
        return float(said is not None)
    return max(other(sample.done, said), UNKNOWN if said in doubtful(sample.row) else 0.0)


def well_formed(samples: Sequence[Sample]) -> list[float]:
    """1 for an answer of three lines as it is asked for, that has come to its end; else 0."""
    return [float(sample.said.well_formed and sample.ended) for sample in samples]


def priority(samples: Sequence[Sample]) -> list[float]:
    """1 less the distance from the message's priority_target; 0 where no priority can be read."""
    return [
        0.0 if sample.said.priority is None else 1.0 - abs(sample.said.priority - sample.row.priority_target)
        for sample in samples
    ]


def brevity(samples: Sequence[Sample]) -> list[float]:
    """0 for up to LONG tokens, then falling to -1 at twice as many."""
    return [-min(max(len(sample.tokens) - LONG, 0) / LONG, 1.0) for sample in samples]


FUNCTIONS: Mapping[str, RewardFunction] = {
    "action": action,
    "action_cost": action_cost,
    "format": well_formed,
    "priority": priority,
    "length": brevity,
}
