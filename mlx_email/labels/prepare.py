"""Mail to labelled tables: the steps in order, each a function of its own that can be called alone.

    sources -> messages -> spool -> for each owner: unique -> dates -> owner -> actions -> features -> split -> tables

The first pass reads every source once; the second takes one owner at a time, so the corpus is never in memory.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from mlx_email import files
from mlx_email.errors import DataError, MlxEmailError, UserError
from mlx_email.labels.actions import find_actions, priority_target
from mlx_email.labels.duplicates import Mail, sent_at, unique
from mlx_email.labels.features import TextFeatures, text_features
from mlx_email.labels.owners import find_owner, is_mail
from mlx_email.labels.people import PRIOR, people_scores
from mlx_email.labels.quality import drop_stray_dates, has_trash, label_quality
from mlx_email.labels.schema import Row
from mlx_email.labels.split import split_by_time
from mlx_email.labels.spool import Spool
from mlx_email.labels.tables import PEOPLE, People, TableWriter, people_rows, table_writer
from mlx_email.labels.threads import thread_ids
from mlx_email.mail.message import Message, NotMail
from mlx_email.mail.read import read_message
from mlx_email.mail.sources import HINT, Refused, read_source

MESSAGES, FEATURES, SENDERS = "messages.parquet", "features.parquet", "people.parquet"
REJECTED, COUNTS = "rejected.jsonl", "prepare.json"

Advance = Callable[[str, int], object]  # what is done ("read", "label"), and how many files or owners more
REPORT_EVERY = 250  # files


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What `prepare` found: what `prepare.json` holds. files = messages + not_mail + duplicates + rejected."""

    files: int = 0
    rejected: dict[str, int] = {}  # reason -> files
    duplicates: int = 0  # files that are copies of a message counted elsewhere
    not_mail: int = 0  # unique calendar entries, contacts and tasks: in no table
    messages: int = 0  # unique: rows of messages.parquet
    owners: int = 0
    received: int = 0  # unique messages that someone sent to an owner
    undated: int = 0  # received, but without a usable date: in messages.parquet only
    labelled: int = 0  # rows of features.parquet
    actions: dict[str, int] = {}
    label_quality: dict[str, int] = {}
    splits: dict[str, int] = {}


class Labelled(msgspec.Struct, frozen=True):
    """One owner's mail, labelled."""

    rows: list[dict[str, Any]]  # of all messages, oldest first; the action of those without a label is None
    people: dict[str, float]  # sender -> score at the end
    received: int


def prepare(sources: Sequence[Path], out: Path, *, progress: Advance | None = None) -> Prepared:
    """Read the sources and write messages.parquet, features.parquet, people.parquet, rejected.jsonl and prepare.json.

    `out` appears only when complete, with files that only their owner can read; the same mail gives the same bytes.
    Raises DataError where a source is no mail source or holds no mail that can be labelled, UserError where `out`
    exists and is not empty, lies in a source, or cannot be made, MlxEmailError where the disk is full.
    """
    _check(sources, out)
    advance = progress or _silent
    with files.publish(out) as folder:
        try:
            with tempfile.TemporaryDirectory(prefix=".spool-", dir=folder) as temporary:
                spool = Spool(Path(temporary))
                read, rejected = _read_all(sources, spool, folder / REJECTED, advance)
                counts = _label_all(spool, folder, advance)
        except OSError as error:  # a full disk; what cannot be read of a source is no OSError any more
            raise MlxEmailError(f"cannot write {out}: {error.strerror or error}") from error
        prepared = msgspec.structs.replace(counts, files=read, rejected=rejected)
        if not prepared.labelled:
            names = ", ".join(map(str, sources))
            raise DataError(f"{names}: {_why_nothing(prepared)}: {HINT}")
        files.write_json(folder / COUNTS, msgspec.to_builtins(prepared))
    return prepared


def _silent(what: str, more: int) -> None:
    """Progress that nobody watches."""


def _check(sources: Sequence[Path], out: Path) -> None:
    if not sources:
        raise DataError(f"no mail source: {HINT}")
    for source in sources:
        if not source.exists():
            raise DataError(f"{source} does not exist: {HINT}")
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{out} lies in the mail source {source}: name a folder outside it")


def _why_nothing(prepared: Prepared) -> str:
    if prepared.files == sum(prepared.rejected.values()):
        reason = max(prepared.rejected, key=lambda name: prepared.rejected[name], default="no files")
        return f"none of {prepared.files} files is a message ({reason})"
    if not prepared.received:
        return f"{prepared.messages} messages, none of them received (no mail outside the sent folders)"
    return f"{prepared.received} received messages, none with a usable date"


def _read_all(
    sources: Sequence[Path], spool: Spool, rejected_file: Path, advance: Advance
) -> tuple[int, dict[str, int]]:
    """Every file of the sources into the spool or the list of the rejected; gives how many files, and why not."""
    reasons: Counter[str] = Counter()
    count = 0
    descriptor = os.open(rejected_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as rejected:
        for source in sources:
            for item in read_source(source):
                count += 1
                if count % REPORT_EVERY == 0:
                    advance("read", REPORT_EVERY)
                try:
                    if isinstance(item, Refused):
                        path, reason = item.path, item.reason
                    else:
                        path = f"{item.owner}/{item.path}"
                        spool.add(read_message(item.data, owner=item.owner, folder=item.folder, path=item.path))
                        continue
                except NotMail as error:
                    reason = str(error)
                reasons[reason] += 1
                rejected.write(json.dumps({"path": path, "reason": reason}, ensure_ascii=False) + "\n")
    advance("read", count % REPORT_EVERY)
    return count, dict(sorted(reasons.items()))


def _label_all(spool: Spool, folder: Path, advance: Advance) -> Prepared:
    """Label one owner after another and write the three tables."""
    people: dict[tuple[str, str], float] = {}
    total: Counter[str] = Counter()
    actions: Counter[str] = Counter()
    quality: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    with ExitStack() as stack:
        messages, features = (stack.enter_context(table_writer(folder / name)) for name in (MESSAGES, FEATURES))
        for owner in spool.owners():
            mails = unique(spool.read(owner))
            labelled = label_owner(mails)
            _write(labelled.rows, messages, features)
            people |= {(owner, sender): score for sender, score in labelled.people.items()}
            rows = [row for row in labelled.rows if row["action"] is not None]
            actions.update(row["action"] for row in rows)
            quality.update(row["label_quality"] for row in rows)
            splits.update(row["split"] for row in rows)
            total.update(
                owners=1,
                not_mail=len(mails) - len(labelled.rows),
                messages=len(labelled.rows),
                duplicates=sum(mail.copies - 1 for mail in mails),
                received=labelled.received,
                labelled=len(rows),
            )
            advance("label", 1)
    with table_writer(folder / SENDERS, PEOPLE) as table:
        for row in people_rows(people):
            table.add(row)
    return Prepared(
        owners=total["owners"],
        messages=total["messages"],
        not_mail=total["not_mail"],
        duplicates=total["duplicates"],
        received=total["received"],
        labelled=total["labelled"],
        undated=total["received"] - total["labelled"],
        actions=dict(sorted(actions.items())),
        label_quality=dict(sorted(quality.items())),
        splits=dict(sorted(splits.items())),
    )


def _write(rows: Sequence[dict[str, Any]], messages: TableWriter, features: TableWriter) -> None:
    for row in rows:
        messages.add(row)
        if row["action"] is not None:
            features.add(row)


def label_owner(mails: Sequence[Mail]) -> Labelled:
    """Label the unique mail of one owner."""
    mails = [mail for mail in drop_stray_dates(mails) if is_mail(mail)]
    owner = find_owner(mails)
    outcomes = find_actions(mails, owner)
    scores, people = people_scores(mails, outcomes)
    threads = thread_ids(mails)
    labelled = [index for index in sorted(outcomes) if mails[index].message.date is not None]
    splits = dict(zip(labelled, split_by_time([sent_at(mails[index].message) for index in labelled]), strict=True))
    end = max((mail.message.date for mail in mails if mail.message.date), default=datetime.max.replace(tzinfo=UTC))
    trash = has_trash(mails)

    rows = []
    for index, (mail, thread) in enumerate(zip(mails, threads, strict=True)):
        row = _message_row(mail.message, thread)
        if index in splits:
            outcome = outcomes[index]
            row |= _features(text_features(mail.message), scores[index])
            row |= {
                "action": outcome.action,
                "response_time_hours": outcome.response_hours,
                "priority_target": priority_target(outcome),
                "label_quality": label_quality(mail, outcome, trash_exported=trash, export_end=end),
                "split": splits[index],
            }
        rows.append(row)
    return Labelled(rows, people, len(outcomes))


def _message_row(message: Message, thread: str) -> dict[str, Any]:
    """The columns of any message. `body` is all its text, what it quotes included: the quotation was there when it
    arrived, and a prompt takes only the first part."""
    return {
        "message_id": message.message_id,
        "user": message.owner,
        "date": message.date,
        "from": message.sender,
        "to": list(message.to),
        "cc": list(message.cc),
        "subject": message.subject,
        "body": message.body,
        "in_reply_to": message.in_reply_to,
        "references": list(message.references),
        "thread_id": thread,
        "action": None,
    }


def _features(text: TextFeatures, people_score: float) -> dict[str, Any]:
    return {
        "people_score": people_score,
        "urgency": text.urgency,
        "is_question": text.is_question,
        "is_action_request": text.is_action_request,
    }


def features_of(message: Message, people: People) -> Row:
    """One fresh message as a row to predict from: its outcome columns stay at their defaults.

    `people` is what `read_people` gives: the senders' scores at the end of the data. A message whose owner is not in
    it is the only owner's, where there is only one; an unknown sender scores 0.5. A message without a date is given
    1970: a row must have one, and no prompt shows it.
    """
    users = {user for user, _ in people}
    user = message.owner if message.owner in users or len(users) != 1 else next(iter(users))
    score = people.get((user, message.sender), PRIOR)
    values = _message_row(message, "") | _features(text_features(message), score)
    values |= {"user": user, "date": message.date or datetime(1970, 1, 1, tzinfo=UTC)}
    return msgspec.convert({name: value for name, value in values.items() if value is not None}, Row)
