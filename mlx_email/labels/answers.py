"""Which received message each of the owner's mails answers or sends on.

By the id that it names, else by subject, people, time and quotation. What an answer of one moment is given to depends
on no mail that came later than that, but for the clocks' slack.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from mlx_email.labels.duplicates import BodyOf, Mail, sent_at
from mlx_email.labels.letters import squash
from mlx_email.labels.owners import Identity, is_sent, recipient_keys, sender_keys
from mlx_email.labels.subjects import marked_forward, marked_reply, normal_subject
from mlx_email.labels.threads import MIN_FINGERPRINT, WINDOW
from mlx_email.mail.message import Message
from mlx_email.mail.quotes import split

SLACK = timedelta(seconds=120)  # between two machines' clocks: an answer may seem to be sent before the question
CANDIDATES = 50  # of one subject and window that are compared, the latest first: keeps hot subjects linear


class Answers(NamedTuple):
    """Index of a received message -> the time of its first answer of a kind; None for one of no known time."""

    replied: dict[int, datetime | None]
    forwarded: dict[int, datetime | None]


class _Entry(NamedTuple):
    index: int  # into the mails
    time: datetime


class _Answered(NamedTuple):
    """What one mail of the owner's answers."""

    index: int | None = None  # of the received message; None: nobody's
    is_reply: bool = False  # or a forward


class _Index:
    """The messages that an answer may point at, by everything by which it may do so."""

    def __init__(self, mails: Sequence[Mail], received: Iterable[int], owner: Identity, body_of: BodyOf) -> None:
        self.mails, self.body_of = mails, body_of
        self.own_keys = owner.addresses | owner.names
        self.by_id: dict[str, list[_Entry]] = defaultdict(list)  # several, where ids are not unique
        self.by_subject: dict[str, list[_Entry]] = defaultdict(list)
        self.from_sender: dict[tuple[str, str], list[_Entry]] = defaultdict(list)  # by subject and sender's key
        self.own_ids: set[str] = set()  # of the owner's mail, filled in the order of time
        self.own: dict[str, list[_Entry]] = defaultdict(list)  # by subject, filled in the order of time
        for index in received:
            message = mails[index].message
            if message.date is None:
                continue
            entry = _Entry(index, message.date)
            for name in mails[index].ids:
                self.by_id[name].append(entry)
            if subject := normal_subject(message.subject):
                self.by_subject[subject].append(entry)
                for key in sender_keys(message):
                    self.from_sender[subject, key].append(entry)

    def add_own(self, index: int) -> None:
        message = self.mails[index].message
        self.own_ids.update(self.mails[index].ids)
        if (subject := normal_subject(message.subject)) and message.date:
            self.own[subject].append(_Entry(index, message.date))

    def message(self, entry: _Entry) -> Message:
        return self.mails[entry.index].message


def find_answers(mails: Sequence[Mail], received: Sequence[int], owner: Identity, body_of: BodyOf) -> Answers:
    """Give every mail of the owner's to at most one received message; `mails` oldest first, undated ones last."""
    index = _Index(mails, received, owner, body_of)
    answers = Answers({}, {})
    for number, mail in enumerate(mails):
        if not is_sent(mail, owner):
            continue
        others = recipient_keys(mail.message) - index.own_keys
        if others and "automatic" not in mail.marks:  # neither a reminder to oneself nor "I am away" is an answer
            found = _by_id(mail, index)
            if found is None and mail.message.date is not None:
                found = _by_subject(mail, others, index)
            if found is not None and found.index is not None:
                kind = answers.replied if found.is_reply else answers.forwarded
                kind.setdefault(found.index, mail.message.date)
        index.add_own(number)
    return answers


def _by_id(mail: Mail, index: _Index) -> _Answered | None:
    """What an answer names by id; None where it names nothing that lay in the mailbox before it.

    A mail that goes on from the owner's own one, or from one that is gone while an earlier one of its thread is here,
    answers nobody.
    """
    message = mail.message
    for name in (message.in_reply_to or "", *message.references[-1:]):
        entries = [e for e in index.by_id.get(name, ()) if message.date is None or e.time <= message.date + SLACK]
        if entries:
            return _named(mail, entries, index)
        if name in index.own_ids:
            return _Answered()
    here = (name in index.own_ids or name in index.by_id for name in message.references[:-1])
    return _Answered() if any(here) else None


def _named(mail: Mail, entries: list[_Entry], index: _Index) -> _Answered:
    subject = normal_subject(mail.message.subject)
    same = [entry for entry in entries if normal_subject(index.message(entry).subject) == subject] or entries
    entry = same[0] if len(same) == 1 else _first_quoted(mail, same, (), index) or same[0]
    if _goes_to_sender(mail.message, index.message(entry)):
        return _Answered(entry.index, is_reply=True)
    marked = marked_reply(mail.message.subject)
    forward = marked_forward(mail.message.subject) or (mail.digest.shows_forward and not marked)
    return _Answered(entry.index, is_reply=not forward)


def _goes_to_sender(answer: Message, question: Message) -> bool:
    """Whether the sender is whom the answer is for. In a copy of what is sent on to others, they are not."""
    senders = sender_keys(question)
    only_copied = not senders.isdisjoint(answer.cc) and senders.isdisjoint(answer.to)
    return bool(senders & recipient_keys(answer)) and not (only_copied and marked_forward(answer.subject))


def _by_subject(mail: Mail, others: frozenset[str], index: _Index) -> _Answered:
    """What an answer answers by subject, people, time and quoted text; `others`: whom it is for."""
    message = mail.message
    date, subject = sent_at(message), normal_subject(message.subject)
    fitting = _window([index.by_subject.get(subject, ())], date)
    if not fitting:
        return _Answered()
    own = _window([index.own.get(subject, ())], date)
    from_others = _window((index.from_sender.get((subject, key), ()) for key in others), date)
    if marked_reply(message.subject) and from_others:
        return _Answered(_choose(mail, from_others, own, from_others, index), is_reply=True)
    if marked_reply(message.subject):  # to a list, or to all but the sender
        shared = [entry for entry in fitting if others & recipient_keys(index.message(entry))]
        if shared:
            return _Answered(_choose(mail, shared, own, shared, index), is_reply=True)
    elif not marked_forward(message.subject) and from_others:
        quoted = _first_quoted(mail, fitting, own, index)
        return _Answered(quoted.index, is_reply=True) if quoted in from_others else _Answered()
    if not marked_forward(message.subject) and not mail.digest.shows_forward:
        return _Answered()
    # Sent on, or answered under a forward's mark: what stands first in it decides, and whether its sender gets it.
    chosen = _choose(mail, fitting, own, from_others or fitting, index)
    return _Answered(chosen, chosen is not None and _goes_to_sender(message, index.mails[chosen].message))


def _window(lists: Iterable[Sequence[_Entry]], date: datetime) -> list[_Entry]:
    """Those that an answer of `date` can be to, latest first, at most CANDIDATES; of lists in the order of time."""
    fitting: set[_Entry] = set()
    for entries in lists:
        last = bisect_right(entries, date + SLACK, key=_time)
        first = bisect_left(entries, date - WINDOW, key=_time)
        fitting.update(entries[max(first, last - CANDIDATES) : last])
    return sorted(fitting, key=lambda e: (e.time, e.index), reverse=True)[:CANDIDATES]


def _time(entry: _Entry) -> datetime:
    return entry.time


def _choose(
    answer: Mail, candidates: Sequence[_Entry], own: Sequence[_Entry], usual: Sequence[_Entry], index: _Index
) -> int | None:
    """The candidate whose own words stand first in what the answer quotes; None where the words of one of the owner's
    `own` mails do: going on from that, or sending it on, is no action on a received one.

    Where it quotes none of them, the latest of the `usual` ones that had come when the answer was sent; only then one
    within the clocks' slack.
    """
    quoted = _first_quoted(answer, candidates, own, index)
    if quoted is not None:
        return None if quoted in own else quoted.index
    date = sent_at(answer.message)
    return next((entry for entry in usual if entry.time <= date), usual[0]).index


def _first_quoted(answer: Mail, candidates: Sequence[_Entry], own: Sequence[_Entry], index: _Index) -> _Entry | None:
    """The message, received or the owner's own, whose words stand first in what the answer quotes."""
    if not answer.digest.quotes:
        return None
    text = squash(split(index.body_of(answer)).quoted)
    first, place = None, len(text)
    for entry in (*candidates, *own):
        fingerprint = index.mails[entry.index].digest.fingerprint
        found = text.find(fingerprint) if len(fingerprint) >= MIN_FINGERPRINT else -1
        if 0 <= found < place:
            first, place = entry, found
    return first
