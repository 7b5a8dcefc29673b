"""What an owner of the synthetic mailbox does with a message: a function of facts that stand in its prompt.

The labels are not made here. The owner acts (files, deletes, writes a reply or a forward that lies in sent_items) and
the ordinary ingest finds the action out. This file only says what the owner would do without a slip.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar, get_args

from mlx_email.labels.schema import Action

Role = Literal["boss", "colleague", "customer", "newsletter", "automated", "promoter"]
Kind = Literal[
    "request",
    "question",
    "approval",
    "complaint",
    "invitation",
    "information",
    "report",
    "newsletter",
    "notice",
    "alarm",
    "promotion",
]
Urgency = Literal["now", "later", "none"]
Handler = Literal["you", "other", "none"]
Department = Literal["sales", "finance", "legal", "operations", "research"]

T = TypeVar("T", bound=str)

ROLES: tuple[Role, ...] = get_args(Role)
KINDS: tuple[Kind, ...] = get_args(Kind)
URGENCIES: tuple[Urgency, ...] = get_args(Urgency)
HANDLERS: tuple[Handler, ...] = get_args(Handler)
DEPARTMENTS: tuple[Department, ...] = get_args(Department)

ASKS: frozenset[Kind] = frozenset({"request", "question", "approval", "complaint"})
KEEPS_NEWSLETTERS: frozenset[Department] = frozenset({"sales", "research"})  # they live off what others publish


@dataclass(frozen=True)
class Facts:
    """What a reader of the prompt can tell of a message, and all that the owner's action depends on."""

    role: Role  # of the sender: From's address; a boss signs with a title of command
    kind: Kind  # what the body is, from its wording
    urgency: Urgency  # what the body says of time; "none" where it says nothing
    handler: Handler  # who the body says is in charge of the matter
    to_group: bool  # To is the department's list, not the owner
    department: Department  # the owner's, from To


def best_action(facts: Facts) -> Action:
    """What the owner does when nothing slips.

    >>> best_action(Facts("customer", "complaint", "none", "none", False, "legal"))
    'reply_now'
    >>> best_action(Facts("customer", "complaint", "none", "other", False, "legal"))
    'forward'
    """
    if facts.kind == "newsletter":
        return "archive" if facts.department in KEEPS_NEWSLETTERS else "delete"
    if facts.kind == "alarm":  # a failed system is for whoever runs it; without a name it is kept as evidence
        return "forward" if facts.handler == "other" else "archive"
    if facts.kind in ("notice", "promotion"):
        return "delete"
    if facts.kind == "invitation":
        if facts.role == "promoter":
            return "delete"
        if facts.role == "boss":
            return "reply_now"
        return "archive" if facts.to_group else "reply_later"
    if facts.kind in ("information", "report"):
        if facts.handler == "other" and not facts.to_group:
            return "forward"  # it came to the wrong desk
        if facts.to_group and facts.role == "colleague" and facts.kind == "information":
            return "delete"
        return "reply_later" if facts.role == "customer" else "archive"  # a customer is thanked
    return _asked(facts)


def _asked(facts: Facts) -> Action:
    """What the owner does when something is asked."""
    if facts.handler == "other":
        return "reply_now" if facts.role == "boss" and facts.urgency == "now" else "forward"
    if facts.to_group and facts.role == "colleague" and facts.handler == "none":
        return "archive"  # somebody of the department will answer
    if facts.urgency != "none":
        return "reply_now" if facts.urgency == "now" else "reply_later"
    pressing = facts.role == "boss" or facts.kind == "complaint"
    pressing |= facts.kind == "approval" and facts.department == "finance"  # money is held up until finance speaks
    return "reply_now" if pressing else "reply_later"


# How often each fact comes, so that all five actions are frequent and none follows from one fact alone.
_ROLE_WEIGHTS: dict[Role, float] = {
    "boss": 0.17,
    "colleague": 0.40,
    "customer": 0.15,
    "newsletter": 0.08,
    "automated": 0.13,
    "promoter": 0.07,
}
_KIND_WEIGHTS: dict[Role, dict[Kind, float]] = {
    "boss": {"request": 3, "question": 2, "approval": 1, "invitation": 1, "information": 2, "report": 3},
    "colleague": {"request": 3, "question": 2.5, "approval": 2, "invitation": 1.5, "information": 2.5, "report": 4},
    "customer": {"request": 3, "question": 3, "complaint": 3, "information": 1.5},
    "newsletter": {"newsletter": 1},
    "automated": {"notice": 1, "alarm": 2},
    "promoter": {"promotion": 3, "invitation": 1},
}


def sample_facts(rng: Random, department: Department) -> Facts:
    """The facts of one message to an owner of `department`."""
    role = _weighted(rng, _ROLE_WEIGHTS)
    kind = _weighted(rng, _KIND_WEIGHTS[role])
    urgency: Urgency = "none"
    handler: Handler = "none"
    if kind in ASKS:
        urgency = _weighted(rng, {"now": 0.34, "later": 0.33, "none": 0.33})
        handler = _weighted(rng, {"you": 0.28, "other": 0.24, "none": 0.48})
    elif kind in ("information", "report"):
        urgency = _weighted(rng, {"later": 0.3, "none": 0.7})
        handler = _weighted(rng, {"you": 0.30, "other": 0.20, "none": 0.50})
    elif kind == "alarm":
        urgency = _weighted(rng, {"now": 0.5, "none": 0.5})
        handler = _weighted(rng, {"other": 0.45, "none": 0.55})
    elif kind == "promotion":
        urgency = _weighted(rng, {"now": 0.4, "none": 0.6})  # an offer that ends tonight asks for nothing
    to_group = role in ("boss", "colleague", "automated") and rng.random() < 0.35
    return Facts(role, kind, urgency, handler, to_group, department)


def _weighted(rng: Random, weights: dict[T, float]) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]
