"""One owner's mail, labelled: the steps of a preparation that need no more than one mailbox."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from mlx_email.labels.actions import Outcome, find_actions, priority_target
from mlx_email.labels.duplicates import BodyOf, Mail, body_in_memory, sent_at
from mlx_email.labels.features import TextFeatures
from mlx_email.labels.owners import Identity, find_owner, is_mail, is_sent
from mlx_email.labels.people import Standing, standings
from mlx_email.labels.quality import drop_stray_dates, has_trash, label_quality
from mlx_email.labels.schema import Split
from mlx_email.labels.split import repeated, split_by_time, straddling
from mlx_email.labels.threads import thread_ids
from mlx_email.mail.message import Message

Key = tuple[str, str]  # of a count: its name, and which kind of it

NOBODY = "me"  # the owner of a mailbox in which nothing tells who that is


class Labels(msgspec.Struct, frozen=True):
    """The labels of one received message."""

    outcome: Outcome
    standing: Standing
    quality: str
    split: Split | None  # None: it nearly repeats a message of an earlier split
    straddles: bool


class Labelled(msgspec.Struct, frozen=True):
    """One owner's mail, labelled."""

    user: str
    owner: Identity
    mails: list[Mail]  # oldest first
    threads: list[str]
    labels: dict[int, Labels]  # index into the mails -> labels, of all received, dated messages
    people: dict[str, Standing]  # sender -> what was known at the end
    received: int

    def rows(self, body_of: BodyOf = body_in_memory) -> Iterator[dict[str, Any]]:
        """The rows of messages.parquet, in order. Those of features.parquet are the ones with a split."""
        for index, (mail, thread) in enumerate(zip(self.mails, self.threads, strict=True)):
            row = message_row(mail.message, self.user, body_of(mail), thread)
            if index in self.labels:
                row |= _label_columns(mail, self.labels[index])
            yield row

    def counts(self) -> Counter[Key]:
        """What `prepare.json` says of this owner: by name, and by name and kind."""
        kept = [label for label in self.labels.values() if label.split]
        counts: Counter[Key] = Counter()
        counts["owners", ""] = 1
        counts["messages", ""] = len(self.mails)
        counts["sent", ""] = sum(is_sent(mail, self.owner) for mail in self.mails)
        counts["received", ""] = self.received
        counts["undated", ""] = self.received - len(self.labels)
        counts["repeated", ""] = len(self.labels) - len(kept)
        counts["labelled", ""] = len(kept)
        for label in kept:
            counts["actions", label.outcome.action] += 1
            counts["label_quality", label.quality] += 1
            counts["splits", label.split or ""] += 1
            counts["straddling", label.split or ""] += label.straddles
        return counts


def label_owner(
    mails: Sequence[Mail], *, name: str = "", addresses: Sequence[str] = (), body_of: BodyOf = body_in_memory
) -> Labelled:
    """Label the unique mail of one owner.

    `name` is what the source calls the owner; where it says nothing, the owner's main address is the name. `addresses`
    are the owner's, where the caller knows them.
    """
    mails = [mail for mail in drop_stray_dates(mails) if is_mail(mail)]
    owner = find_owner(mails, addresses)
    outcomes = find_actions(mails, owner, body_of)
    before, people = standings(mails, outcomes)
    threads = thread_ids(mails, owner)
    indexes = [index for index in sorted(outcomes) if mails[index].message.date is not None]
    splits = split_by_time([sent_at(mails[index].message) for index in indexes])
    again = repeated(splits, [mails[index].digest.likeness for index in indexes])
    across = straddling(splits, [threads[index] for index in indexes])
    end = max((mail.message.date for mail in mails if mail.message.date), default=datetime.max.replace(tzinfo=UTC))
    trash = has_trash(mails)
    labels = {
        index: Labels(
            outcome=outcomes[index],
            standing=before[index],
            quality=label_quality(mails[index], outcomes[index], trash_exported=trash, export_end=end),
            split=None if dropped else split,
            straddles=straddles,
        )
        for index, split, dropped, straddles in zip(indexes, splits, again, across, strict=True)
    }
    user = name or (addresses[0] if addresses else _main_address(mails, owner))
    return Labelled(user, owner, mails, threads, labels, people, len(outcomes))


def _main_address(mails: Sequence[Mail], owner: Identity) -> str:
    """The address from which the owner writes most, else one at which mail arrives."""
    sent = Counter(mail.message.sender for mail in mails if mail.message.sender in owner.addresses)
    return max(sorted(owner.addresses), key=lambda address: sent[address], default=NOBODY)


def message_row(message: Message, user: str, body: str, thread: str) -> dict[str, Any]:
    """The columns of any message. `body` is all its text, what it quotes included: the quotation was there when it
    arrived, and a prompt takes only the first part."""
    return {
        "message_id": message.message_id,
        "user": user,
        "date": message.date,
        "from": message.sender,
        "to": list(message.to),
        "cc": list(message.cc),
        "subject": message.subject,
        "body": body,
        "in_reply_to": message.in_reply_to,
        "references": list(message.references),
        "thread_id": thread,
    }


def feature_columns(text: TextFeatures, standing: Standing) -> dict[str, Any]:
    """The columns that a prompt may show beside the message itself: known when it arrived."""
    return msgspec.structs.asdict(text) | msgspec.structs.asdict(standing)


def _label_columns(mail: Mail, labels: Labels) -> dict[str, Any]:
    outcome = labels.outcome
    return feature_columns(mail.digest.features, labels.standing) | {
        "action": outcome.action,
        "response_time_hours": outcome.response_hours,
        "forward_time_hours": outcome.forward_hours,
        "priority_target": priority_target(outcome, flagged="flagged" in mail.marks),
        "label_quality": labels.quality,
        "split": labels.split,
        "straddles": labels.straddles,
    }
