"""What the owner did with each received message, and when it could be seen: the labels.

Source: "The rule behind the reference labels" of the data's README, and In-Reply-To where mail has it. Replied before
forwarded before deleted before archived. A lower bound: an answer with a new subject, or by telephone, is not seen.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from math import exp

import msgspec

from mlx_email.labels.duplicates import BodyOf, Mail, body_in_memory, sent_at
from mlx_email.labels.folders import folder_kind
from mlx_email.labels.letters import squash
from mlx_email.labels.owners import Identity, is_received, is_sent, recipient_keys, sender_keys
from mlx_email.labels.schema import Observed
from mlx_email.labels.subjects import marked_forward, marked_reply, normal_subject
from mlx_email.labels.threads import MIN_FINGERPRINT, WINDOW
from mlx_email.mail.message import Message
from mlx_email.mail.quotes import split

SLACK = timedelta(seconds=120)  # between two machines' clocks: an answer may seem to be sent before the question
CANDIDATES = 50  # of one subject and window that are compared, the latest first: keeps hot subjects linear


class Outcome(msgspec.Struct, frozen=True):
    """What was done with one received message."""

    action: Observed = "archived"
    replied_at: datetime | None = None  # the first reply's time; None also where only a flag says "answered"
    response_hours: float | None = None  # received -> replied, hours, >= 0; None unless a reply was found
    forwarded_at: datetime | None = None  # the first forward's time, whatever else was done
    trashed: bool = False  # whether it ended in the trash, whatever else was done; when, no mailbox says


class _Entry(msgspec.Struct, frozen=True):
    index: int  # into the mails
    time: datetime


def find_actions(mails: Sequence[Mail], owner: Identity, body_of: BodyOf = body_in_memory) -> dict[int, Outcome]:
    """Index into `mails` (oldest first) -> outcome, for every received message.

    Every answer of the owner is given to one message: the one that its In-Reply-To names, else of those that fit the
    one it quotes first, else the latest. A message answered twice has the first answer's time. What the mail program
    noted (answered, forwarded, trashed) counts where no mail shows it.
    """
    received = [index for index, mail in enumerate(mails) if is_received(mail, owner)]
    replied, forwarded = _answers(mails, received, owner, body_of)
    return {index: _outcome(mails[index], replied.get(index), forwarded.get(index)) for index in received}


def _outcome(mail: Mail, replied_at: datetime | None, forwarded_at: datetime | None) -> Outcome:
    trashed = is_trashed(mail)
    if replied_at is not None:
        waited = (replied_at - sent_at(mail.message)).total_seconds() / 3600
        return Outcome("replied", replied_at, max(0.0, waited), forwarded_at, trashed)
    if "answered" in mail.marks:
        return Outcome("replied", None, None, forwarded_at, trashed)
    if forwarded_at is not None or "forwarded" in mail.marks:
        return Outcome("forwarded", None, None, forwarded_at, trashed)
    return Outcome("deleted" if trashed else "archived", trashed=trashed)


def is_trashed(mail: Mail) -> bool:
    """Whether the message lies in a trash folder, or is flagged to go there."""
    return "trashed" in mail.marks or any(folder_kind(folder) == "trash" for folder in mail.folders)


class _Index:
    """Messages that an answer may point at, by everything by which it may do so."""

    def __init__(self) -> None:
        self.received_ids: dict[str, _Entry] = {}
        self.own_ids: set[str] = set()  # of the owner's mail, filled in the order of time
        self.received: dict[str, list[_Entry]] = defaultdict(list)  # by subject
        self.from_sender: dict[tuple[str, str], list[_Entry]] = defaultdict(list)  # by subject and sender's key
        self.own: dict[str, list[_Entry]] = defaultdict(list)  # by subject, filled in the order of time

    def add_received(self, index: int, message: Message) -> None:
        if message.date is None:
            return
        entry = _Entry(index, message.date)
        self.received_ids.setdefault(message.message_id, entry)
        subject = normal_subject(message.subject)
        if subject:
            self.received[subject].append(entry)
            for key in sender_keys(message):
                self.from_sender[subject, key].append(entry)

    def add_own(self, index: int, message: Message) -> None:
        self.own_ids.add(message.message_id)
        subject = normal_subject(message.subject)
        if subject:
            self.own[subject].append(_Entry(index, sent_at(message)))


def _answers(
    mails: Sequence[Mail], received: Sequence[int], owner: Identity, body_of: BodyOf
) -> tuple[dict[int, datetime], dict[int, datetime]]:
    """Index of a received message -> time of its first reply, and of its first forward."""
    index = _Index()
    for number in received:
        index.add_received(number, mails[number].message)
    replied: dict[int, datetime] = {}
    forwarded: dict[int, datetime] = {}
    for number, mail in enumerate(mails):
        message = mail.message
        if message.date is None or not is_sent(mail, owner):
            continue
        answered, is_reply = _named(message, mails, index) or _by_subject(mail, mails, index, body_of)
        if answered is not None:
            (replied if is_reply else forwarded).setdefault(answered, message.date)
        index.add_own(number, message)
    return replied, forwarded


_Answered = tuple[int | None, bool]  # the received message, if it is one; whether it was replied to, not forwarded


def _named(message: Message, mails: Sequence[Mail], index: _Index) -> _Answered | None:
    """What an answer names by id; None where it names nothing that lay in the mailbox before it.

    A mail that goes on from the owner's own one answers nobody.
    """
    latest = sent_at(message) + SLACK
    for name in (message.in_reply_to, *message.references[-1:]):
        entry = index.received_ids.get(name) if name else None
        if entry is not None and entry.time <= latest:
            to_sender = bool(sender_keys(mails[entry.index].message) & recipient_keys(message))
            return entry.index, to_sender or not marked_forward(message.subject)
        if name in index.own_ids:
            return None, False
    return None


def _by_subject(mail: Mail, mails: Sequence[Mail], index: _Index, body_of: BodyOf) -> _Answered:
    """What an answer answers by subject, people, time and quoted text."""
    message = mail.message
    date, subject = sent_at(message), normal_subject(message.subject)
    if subject not in index.received:
        return None, False
    everyone = recipient_keys(message)
    from_recipients = _window((e for key in everyone for e in index.from_sender.get((subject, key), ())), date)
    if from_recipients and marked_reply(message.subject):
        return _choose(from_recipients, (), mails, mail, body_of), True
    if not marked_forward(message.subject) and (from_recipients or not mail.digest.shows_forward):
        return None, False
    # Sent on, or answered under a forward's mark: what stands first in it decides, and whether its sender gets it.
    fitting = _window(index.received[subject], date)
    if not fitting:
        return None, False
    own = _window(index.own.get(subject, ()), date)
    senders = {entry.index for entry in from_recipients}
    usual = [entry for entry in fitting if entry.index in senders] or fitting
    chosen = _choose(fitting, own, mails, mail, body_of, usual)
    return chosen, chosen in senders


def _window(entries: Iterable[_Entry], date: datetime) -> list[_Entry]:
    """Those that an answer of `date` can be to, latest first, at most CANDIDATES."""
    fitting = {e.index: e for e in entries if date - WINDOW <= e.time <= date + SLACK}
    return sorted(fitting.values(), key=lambda e: (e.time, e.index), reverse=True)[:CANDIDATES]


def _choose(
    candidates: Sequence[_Entry],
    own: Sequence[_Entry],
    mails: Sequence[Mail],
    answer: Mail,
    body_of: BodyOf,
    usual: Sequence[_Entry] = (),
) -> int | None:
    """The candidate whose own words stand first in what the answer quotes. None where the words of one of the owner's
    `own` mails do: sending that on is no action on a received one.

    Where it quotes none of them, the latest of the `usual` ones (all, unless given) that had come when the answer was
    sent; only then one within the clocks' slack.
    """
    date = sent_at(answer.message)
    likely = usual or candidates
    best: int | None = next((entry for entry in likely if entry.time <= date), likely[0]).index
    if len(candidates) == 1 and not own:
        return best
    quoted = squash(split(body_of(answer)).quoted)
    place = len(quoted)
    for entries, is_own in ((candidates, False), (own, True)):
        for entry in entries:
            fingerprint = mails[entry.index].digest.fingerprint
            found = quoted.find(fingerprint) if len(fingerprint) >= MIN_FINGERPRINT else -1
            if 0 <= found < place:
                best, place = None if is_own else entry.index, found
    return best


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
