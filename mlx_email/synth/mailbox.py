"""Writes the synthetic mailbox: a CMU-style maildir in which owners really file, delete, answer and forward.

No label is written. What the owner did is found out by the ordinary ingest, from folders and sent mail; what the owner
would have done without a slip stands beside the maildir, in `rule.jsonl`, for one purpose: the best possible accuracy.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from random import Random

from mlx_email import files
from mlx_email.errors import DataError, UserError
from mlx_email.labels.schema import ACTIONS, Action, Row, predicted_action
from mlx_email.synth.grammar import Mail, Owner, Person, make_owner, write_mail
from mlx_email.synth.rule import DEPARTMENTS, best_action, sample_facts

FIRST_DAY = datetime(2001, 6, 1, tzinfo=timezone(-timedelta(hours=8)))  # the Outlook era of the corpus it imitates
DAYS = 365
FOLLOW_UPS = 0.04  # share of received mail that answers something of the owner's
DELETED_AFTER_REPLY = 0.05  # answered mail that ends in the trash: the reply still says what was done
FILED = 0.5  # kept mail that is moved to its project's folder; the rest stays in the inbox


@dataclass(frozen=True)
class Mailbox:
    """What `write_mailbox` wrote."""

    path: Path  # of the maildir
    rule_file: Path
    owners: tuple[str, ...]
    received: int
    sent: int
    actions: Mapping[Action, int]  # what the owners did
    best_possible: float  # share of received mail on which the rule was followed


@dataclass(frozen=True)
class _Sent:
    """A mail of the owner's."""

    date: datetime
    to: Person
    subject: str
    body: str


@dataclass(frozen=True)
class _Received:
    """A message in the owner's mailbox and what became of it."""

    date: datetime
    mail: Mail
    best: Action
    action: Action
    folder: str
    sent: tuple[_Sent, ...]  # the owner's reply or forward; a mail that started the thread


def write_mailbox(out: Path, *, messages: int, noise: float, seed: int) -> Mailbox:
    """Write `messages` received messages, and what their owners sent, under `out`, which must be empty or absent.

    With probability `noise` an owner does something else than the rule says. Same arguments, same bytes.
    """
    if messages < len(DEPARTMENTS):
        raise UserError(f"--messages {messages} is too few: one for each of {len(DEPARTMENTS)} owners at least")
    if not 0 <= noise <= 1:
        raise UserError(f"--noise {noise} is not a probability: give a number from 0 to 1")
    rng = Random(f"mailbox {seed}")
    names: set[str] = set()
    owners = [make_owner(rng, department, names) for department in DEPARTMENTS]
    counts: Counter[Action] = Counter()
    followed = sent = 0
    with files.publish(out, flush=False) as folder, open(folder / "rule.jsonl", "w", encoding="utf-8") as rule:
        for index, owner in enumerate(owners):
            share = messages // len(owners) + (index < messages % len(owners))
            received = _live(rng, owner, share, noise)
            for line in _write_owner(folder / "maildir", owner, received, rng):
                rule.write(json.dumps(line) + "\n")
            counts.update(item.action for item in received)
            followed += sum(item.action == item.best for item in received)
            sent += sum(len(item.sent) for item in received)
    return Mailbox(
        path=out / "maildir",
        rule_file=out / "rule.jsonl",
        owners=tuple(_user(owner) for owner in owners),
        received=messages,
        sent=sent,
        actions={action: counts[action] for action in ACTIONS},
        best_possible=followed / messages,
    )


def best_possible(rule_file: Path, rows: Iterable[Row]) -> float:
    """The accuracy that nobody can expect to beat on `rows`: the share on which the owner did what the rule says."""
    kept = kept_to_rule(rule_file, rows)
    if not kept:
        raise DataError(f"no rows to compare with {rule_file}: an empty split has no best accuracy")
    return sum(kept) / len(kept)


def kept_to_rule(rule_file: Path, rows: Iterable[Row]) -> list[bool]:
    """Of each row, whether its owner did what the rule says. For reports only; nothing that trains may ask for it."""
    with open(rule_file, encoding="utf-8") as lines:
        rule = {(line["user"], line["message_id"]): line["best"] for line in map(json.loads, lines)}
    kept = []
    for row in rows:
        key = (row.user, f"<{row.message_id.strip().strip('<>')}>")
        if key not in rule:
            raise DataError(f"{rule_file} has no message {row.message_id!r} of {row.user!r}: is it of another mailbox?")
        kept.append(rule[key] == predicted_action(row.action, row.response_time_hours))
    return kept


def _live(rng: Random, owner: Owner, messages: int, noise: float) -> list[_Received]:
    """A year of `owner`, by date."""
    moments = sorted(rng.sample(range(DAYS * 24 * 60), messages))  # minutes; no two messages share one
    seen: set[tuple[str, str]] = set()
    received = []
    for minute in moments:
        date = FIRST_DAY + timedelta(minutes=minute, seconds=rng.randrange(60))
        facts = sample_facts(rng, owner.department)
        mail = write_mail(rng, owner, facts)
        # Subject and sender name a message: the ingest pairs a reply with its original by them.
        while (mail.subject.casefold(), mail.sender.address) in seen:
            mail = write_mail(rng, owner, facts)
        seen.add((mail.subject.casefold(), mail.sender.address))
        best = best_action(facts)
        action = rng.choice([other for other in ACTIONS if other != best]) if rng.random() < noise else best
        sent = []
        if facts.role in ("boss", "colleague", "customer") and rng.random() < FOLLOW_UPS:
            # The owner wrote first: a new mail (no RE:), which therefore answers nothing.
            started = date - timedelta(minutes=rng.randrange(30, 3 * 24 * 60))
            sent.append(_Sent(started, mail.sender, mail.subject, _opening(rng, owner, mail)))
            mail = Mail(mail.sender, mail.to, f"RE: {mail.subject}", mail.body, mail.project, mail.other)
        answer = _answer(rng, owner, mail, action, date)
        if answer is not None:
            sent.append(answer)
        received.append(_Received(date, mail, best, action, _folder(rng, owner, mail, action), tuple(sent)))
    return received


def _answer(rng: Random, owner: Owner, mail: Mail, action: Action, date: datetime) -> _Sent | None:
    """The mail by which the owner replies or forwards; None where the action is only filing."""
    bare = mail.subject.removeprefix("RE: ")
    first = owner.person.name.split()[0]
    if action in ("reply_now", "reply_later"):
        # Away from the border of 4 hours on both sides, and before a month is over.
        hours = (0.05, 3.0) if action == "reply_now" else (6.0, 400.0)
        when = date + timedelta(minutes=round(60 * math.exp(rng.uniform(math.log(hours[0]), math.log(hours[1])))))
        text = rng.choice(
            ("Done, see below.", "Yes, that is fine.", "I will see to it.", "Thank you for this.", "Agreed.")
        )
        return _Sent(when, mail.sender, f"RE: {bare}", f"{text}\n{first}\n\n{_quoted(mail, date)}")
    if action == "forward":
        when = date + timedelta(minutes=rng.randrange(5, 3 * 24 * 60))
        others = [person for person in owner.colleagues if person != mail.sender]
        named = [person for person in others if person.name == mail.other and mail.other in mail.body]
        to = named[0] if named else rng.choice(others)
        text = rng.choice(("Yours, I think.\n\n", "Could you take this?\n\n", "Please see below.\n\n", "FYI\n\n", ""))
        return _Sent(when, to, f"FW: {bare}", f"{text}{_quoted(mail, date)}")
    return None


def _quoted(mail: Mail, date: datetime) -> str:
    """The original below a reply, as Outlook wrote it."""
    sent = f"{date:%A}, {date:%B} {date.day}, {date.year} {date:%I:%M %p}"
    header = f"From: \t{mail.sender.name}  \nSent:\t{sent}\nTo:\t{mail.to.name}\nSubject:\t{mail.subject}"
    return f" -----Original Message-----\n{header}\n\n{mail.body}"


def _opening(rng: Random, owner: Owner, mail: Mail) -> str:
    ask = rng.choice(("What is the state of this?", "Could you write to me about this?", "Any news here?"))
    return f"{mail.sender.name.split()[0]},\n{ask}\n{owner.person.name.split()[0]}"


def _folder(rng: Random, owner: Owner, mail: Mail, action: Action) -> str:
    if action == "delete":
        return "deleted_items"
    if action != "archive" and rng.random() < DELETED_AFTER_REPLY:
        return "deleted_items"
    if mail.project in owner.projects and mail.project in mail.body and rng.random() < FILED:
        return mail.project.lower()
    return "inbox"


def _write_owner(maildir: Path, owner: Owner, received: list[_Received], rng: Random) -> Iterable[dict[str, str]]:
    """Write one owner's folders; yields the lines of rule.jsonl."""
    user = _user(owner)
    numbers: Counter[str] = Counter()
    writer = owner.person
    outgoing = sorted((mail for item in received for mail in item.sent), key=lambda mail: mail.date)
    for item in received:
        number = _message_id(rng)
        mail = item.mail
        path = _next_file(maildir / user, item.folder, numbers)
        path.write_bytes(_file(owner, number, item.date, mail.sender, mail.to, mail.subject, mail.body, item.folder))
        yield {"message_id": number, "user": user, "best": item.best}
    for sent in outgoing:
        path = _next_file(maildir / user, "sent_items", numbers)
        path.write_bytes(
            _file(owner, _message_id(rng), sent.date, writer, sent.to, sent.subject, sent.body, "sent_items")
        )


def _next_file(home: Path, folder: str, numbers: Counter[str]) -> Path:
    numbers[folder] += 1
    if numbers[folder] == 1:
        (home / folder).mkdir(parents=True)
    return home / folder / f"{numbers[folder]}."


def _message_id(rng: Random) -> str:
    return f"<{rng.randrange(10**8)}.{rng.randrange(10**12):012d}.JavaMail.synth@thyme.example>"


def _file(
    owner: Owner, number: str, date: datetime, sender: Person, to: Person, subject: str, body: str, folder: str
) -> bytes:
    """A message as it lies in the CMU release: headers end in CRLF, lines of the body in LF, no final newline."""
    first, last = owner.person.name.split()
    headers = {
        "Message-ID": number,
        "Date": f"{format_datetime(date)} (PST)",
        "From": sender.address,
        "To": to.address,
        "Subject": subject,
        "Mime-Version": "1.0",
        "Content-Type": "text/plain; charset=us-ascii",
        "Content-Transfer-Encoding": "7bit",
        "X-From": f"{sender.name} <{sender.address}>",
        "X-To": f"{to.name} <{to.address}>",
        "X-cc": "",
        "X-bcc": "",
        "X-Folder": f"\\{first}_{last}_Jun2002\\{last}, {first}\\{folder.replace('_', ' ').title()}",
        "X-Origin": f"{last}-{first[0]}",
        "X-FileName": f"{_user(owner)}.pst",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}\r\n{body}".encode("ascii")


def _user(owner: Owner) -> str:
    """The owner's folder, in the form of the corpus: surname, dash, initial."""
    first, last = owner.person.name.lower().split()
    return f"{last}-{first[0]}"
