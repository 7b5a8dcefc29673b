"""What the owner did with each received message, and when it could be seen: the labels.

Source: "The rule behind the reference labels" of the data's README, and In-Reply-To where mail has it. Replied before
forwarded before deleted before archived. A lower bound: an answer with a new subject, or by telephone, is not seen.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import exp

import msgspec

from mlx_email.labels.answers import Answers, find_answers
from mlx_email.labels.duplicates import BodyOf, Mail, body_in_memory, sent_at
from mlx_email.labels.folders import folder_kind
from mlx_email.labels.owners import Identity, is_received
from mlx_email.labels.schema import Observed


class Outcome(msgspec.Struct, frozen=True):
    """What was done with one received message."""

    action: Observed = "archived"
    replied_at: datetime | None = None  # the first reply's time; None also where that is not known (only a flag)
    response_hours: float | None = None  # received -> replied, hours, >= 0; None unless a reply was found
    forwarded_at: datetime | None = None  # the first forward's time, whatever else was done
    forward_hours: float | None = None  # received -> forwarded, hours, >= 0; None where that time is not known
    trashed: bool = False  # whether it ended in the trash, whatever else was done; when, no mailbox says


def find_actions(mails: Sequence[Mail], owner: Identity, body_of: BodyOf = body_in_memory) -> dict[int, Outcome]:
    """Index into `mails` (oldest first) -> outcome, for every received message.

    Every answer of the owner is given to one message: the one that its In-Reply-To names, else of those that fit the
    one it quotes first, else the latest. A message answered twice has the first answer's time. What the mail program
    noted (answered, forwarded, trashed) counts where no mail shows it.
    """
    received = [index for index, mail in enumerate(mails) if is_received(mail, owner)]
    answers = find_answers(mails, received, owner, body_of)
    return {index: _outcome(mails[index], index, answers) for index in received}


def _outcome(mail: Mail, index: int, answers: Answers) -> Outcome:
    trashed = is_trashed(mail)
    replied_at, forwarded_at = answers.replied.get(index), answers.forwarded.get(index)
    forwarded = forwarded_at, _hours(mail, forwarded_at)
    if replied_at is not None:
        return Outcome("replied", replied_at, _hours(mail, replied_at), *forwarded, trashed)
    if index in answers.replied or "answered" in mail.marks:
        return Outcome("replied", None, None, *forwarded, trashed)
    if index in answers.forwarded or "forwarded" in mail.marks:
        return Outcome("forwarded", None, None, *forwarded, trashed)
    return Outcome("deleted" if trashed else "archived", trashed=trashed)


def _hours(mail: Mail, answered: datetime | None) -> float | None:
    if answered is None:
        return None
    return max(0.0, (answered - sent_at(mail.message)).total_seconds() / 3600)


def is_trashed(mail: Mail) -> bool:
    """Whether the message lies in a trash folder, or is flagged to go there."""
    return "trashed" in mail.marks or any(folder_kind(folder) == "trash" for folder in mail.folders)


REPLY_PRIORITY, REPLY_BONUS, REPLY_DECAY_HOURS = 0.6, 0.4, 24.0
PRIORITY: Mapping[Observed, float] = {"forwarded": 0.55, "archived": 0.3, "deleted": 0.05}
FLAGGED_PRIORITY = 0.6  # a flag or star is the owner's own word that it matters


def priority_target(outcome: Outcome, *, flagged: bool = False) -> float:
    """How important the message turned out to be, 0..1; made from the outcome, so a label, never a feature.

    replied: 0.6 + 0.4 exp(-hours / 24), 0.6 where the time is not known; forwarded 0.55; archived 0.3; deleted 0.05;
    flagged or starred by the owner: at least 0.6

    >>> priority_target(Outcome("replied", None, 0.0)), priority_target(Outcome("deleted"))
    (1.0, 0.05)
    """
    if outcome.action != "replied":
        value = PRIORITY[outcome.action]
    elif outcome.response_hours is None:
        value = REPLY_PRIORITY
    else:
        value = round(REPLY_PRIORITY + REPLY_BONUS * exp(-outcome.response_hours / REPLY_DECAY_HOURS), 4)
    return max(value, FLAGGED_PRIORITY) if flagged else value
