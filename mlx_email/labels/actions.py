"""What the owner did with each received message, and when it could be seen: the labels.

Source: "The rule behind the reference labels" of the data's README. Replied before forwarded before deleted before
archived. A lower bound: an answer with a new subject, or by telephone, is not seen.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from math import exp

import msgspec

from mlx_email.labels.duplicates import Mail, sent_at
from mlx_email.labels.folders import folder_kind
from mlx_email.labels.owners import Identity, is_received, is_sent, recipient_keys, sender_keys
from mlx_email.labels.schema import Observed
from mlx_email.labels.threads import WINDOW, marked_forward, marked_reply, normal_subject
from mlx_email.mail.quotes import split

SLACK = timedelta(seconds=120)  # between two machines' clocks: an answer may seem to be sent before the question
CANDIDATES = 50  # of one subject and window that are compared, the latest first: keeps hot subjects linear

FINGERPRINT = 60  # squashed characters of a message's own text by which its quotation is recognised
MIN_FINGERPRINT = 12  # shorter texts ("thanks") stand in any quotation

_FORWARD_SIGN = re.compile(r"Forwarded by\b|Original Message\b", re.IGNORECASE)
_NOT_WORD = re.compile(r"[\W_]+")


class Outcome(msgspec.Struct, frozen=True):
    """What was done with one received message."""

    action: Observed = "archived"
    at: datetime | None = None  # when the reply or forward was sent; None for what leaves no time
    response_hours: float | None = None  # received -> replied, hours, >= 0; None unless replied


class _Received(msgspec.Struct, frozen=True):
    index: int  # into the mails
    time: datetime


def find_actions(mails: Sequence[Mail], owner: Identity) -> dict[int, Outcome]:
    """Index into `mails` (oldest first) -> outcome, for every received message.

    Every answer of the owner is given to one message: the one it quotes first, else the latest that fits. A message
    answered twice has the first answer's time.
    """
    received = [index for index, mail in enumerate(mails) if is_received(mail, owner)]
    replied, forwarded = _answers(mails, received, owner)
    outcomes = {}
    for index in received:
        mail = mails[index]
        if index in replied:
            waited = (replied[index] - sent_at(mail.message)).total_seconds() / 3600
            outcomes[index] = Outcome("replied", replied[index], max(0.0, waited))
        elif index in forwarded:
            outcomes[index] = Outcome("forwarded", forwarded[index])
        elif any(folder_kind(folder) == "trash" for folder in mail.folders):
            outcomes[index] = Outcome("deleted")
        else:
            outcomes[index] = Outcome("archived")
    return outcomes


def _answers(
    mails: Sequence[Mail], received: Sequence[int], owner: Identity
) -> tuple[dict[int, datetime], dict[int, datetime]]:
    """Index of a received message -> time of its first reply, and of its first forward."""
    by_subject: dict[str, list[_Received]] = defaultdict(list)
    by_sender: dict[tuple[str, str], list[_Received]] = defaultdict(list)
    for index in received:
        message = mails[index].message
        subject = normal_subject(message.subject)
        if subject and message.date:
            entry = _Received(index, message.date)
            by_subject[subject].append(entry)
            for key in sender_keys(message):
                by_sender[subject, key].append(entry)

    replied: dict[int, datetime] = {}
    forwarded: dict[int, datetime] = {}
    fingerprints: dict[int, str] = {}
    for mail in mails:
        message = mail.message
        subject = normal_subject(message.subject)
        if message.date is None or subject not in by_subject or not is_sent(mail, owner):
            continue
        everyone = recipient_keys(message)
        answered = _window((entry for key in everyone for entry in by_sender.get((subject, key), ())), message.date)
        forward = marked_forward(message.subject)
        if answered and (forward or marked_reply(message.subject)):
            chosen = _choose(answered, mails, message.body, fingerprints)
            replied.setdefault(chosen, message.date)
        elif not answered and (forward or _FORWARD_SIGN.search(message.body)):
            candidates = _window(by_subject[subject], message.date)
            if candidates:
                forwarded.setdefault(_choose(candidates, mails, message.body, fingerprints), message.date)
    return replied, forwarded


def _window(entries: Iterable[_Received], date: datetime) -> list[_Received]:
    """Those that an answer of `date` can be to, latest first, at most CANDIDATES."""
    fitting = {e.index: e for e in entries if date - WINDOW <= e.time <= date + SLACK}
    return sorted(fitting.values(), key=lambda e: (e.time, e.index), reverse=True)[:CANDIDATES]


def _choose(candidates: Sequence[_Received], mails: Sequence[Mail], body: str, fingerprints: dict[int, str]) -> int:
    """The candidate whose own words stand first in what the answer quotes; without any, the latest."""
    if len(candidates) == 1:
        return candidates[0].index
    quoted = _squash(split(body).quoted)
    best, place = candidates[0].index, len(quoted)
    for entry in candidates:
        if entry.index not in fingerprints:
            fingerprints[entry.index] = _squash(split(mails[entry.index].message.body).new[:400])[:FINGERPRINT]
        fingerprint = fingerprints[entry.index]
        found = quoted.find(fingerprint) if len(fingerprint) >= MIN_FINGERPRINT else -1
        if 0 <= found < place:
            best, place = entry.index, found
    return best


def _squash(text: str) -> str:
    """Letters and digits only: quoting changes line breaks, marks and white space."""
    return _NOT_WORD.sub("", text.lower())


REPLY_PRIORITY, REPLY_BONUS, REPLY_DECAY_HOURS = 0.6, 0.4, 24.0
PRIORITY: Mapping[Observed, float] = {"forwarded": 0.55, "archived": 0.3, "deleted": 0.05}


def priority_target(outcome: Outcome) -> float:
    """How important the message turned out to be, 0..1; made from the outcome, so a label, never a feature.

    replied: 0.6 + 0.4 exp(-hours / 24); forwarded 0.55; archived 0.3; deleted 0.05

    >>> priority_target(Outcome("replied", None, 0.0)), priority_target(Outcome("deleted"))
    (1.0, 0.05)
    """
    if outcome.action == "replied":
        return round(REPLY_PRIORITY + REPLY_BONUS * exp(-(outcome.response_hours or 0.0) / REPLY_DECAY_HOURS), 4)
    return PRIORITY[outcome.action]
