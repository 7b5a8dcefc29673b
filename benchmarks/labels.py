"""Our labels against reference labels, and why they differ: `python benchmarks/labels.py SAMPLE.tar.gz LABELS.tsv`.

Exit code 1 where less than 97% agree. The reference is a heuristic too, so each difference is judged by a witness that
neither side uses: the heading (sender and minute) of what the owner's answer quotes first.
"""

import argparse
import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from mlx_email.labels.actions import Outcome
from mlx_email.labels.duplicates import Mail, unique
from mlx_email.labels.letters import Letter, letter, squash
from mlx_email.labels.mailbox import Labelled, label_owner
from mlx_email.labels.owners import is_received, is_sent, sender_keys
from mlx_email.labels.subjects import normal_subject
from mlx_email.labels.threads import MIN_FINGERPRINT
from mlx_email.mail.dates import houston_to_utc
from mlx_email.mail.quotes import split
from mlx_email.mail.read import read_message
from mlx_email.mail.sources import read_source
from mlx_email.mail.sources.raw import RawMail

ENOUGH = 0.97
ACTIONS = {"reply": "replied", "forward": "forwarded", "deleted": "deleted", "archived": "archived"}
SLACK = 180  # seconds between a heading's minute and the message's own date

# Outlook's "From: Low, Ann / Sent: Monday, May 07, 2001 2:30 PM", and Notes' "Ann Low@ECT on 05/07/2001 02:30:10 PM".
_DATE = r"(?P<day>\w+ +\d{1,2}, \d{4}|\d{1,2}/\d{1,2}/\d{4})\s+(?P<time>\d{1,2}:\d\d)(?::\d\d)? (?P<half>[AP]M)"
_HEADINGS = (
    re.compile(rf"From:\s*(?P<who>.{{1,200}}?)\s*\n(?:.*\n)?\s*Sent:\s*(?:\w+,? +)?{_DATE}"),
    re.compile(rf"^(?!-)[ \t>]*(?P<who>\S.{{0,150}}?)(?: on)?\s+{_DATE}", re.MULTILINE),
)
UNEXPLAINED = "unexplained"  # the other reasons stand in `reason`
KINDS = {  # the same answer, called by another name
    ("replied", "forwarded"): "sent on, its sender only in copy",
    ("forwarded", "replied"): "an answer to its other readers",
}


class Row(NamedTuple):
    """One received message, labelled by both sides."""

    path: str
    theirs: str
    ours: str
    reason: str  # why they differ; "" where they agree


def read_owners(sample: Path) -> list[Labelled]:
    """Every owner of the sample, labelled."""
    letters: dict[str, list[Letter]] = defaultdict(list)
    for raw in read_source(sample):
        if isinstance(raw, RawMail):
            message = read_message(raw.data, owner=raw.owner, folder=raw.folder, path=raw.path, marks=raw.marks)
            letters[raw.owner].append(letter(message))
    return [label_owner(unique(letters[owner]), name=owner) for owner in sorted(letters)]


def heading(quoted: str) -> tuple[str, datetime] | None:
    """Sender and minute (of Houston, as UTC) of the first message in a quotation."""
    forms = [found for form in _HEADINGS if (found := form.search(quoted))]
    if not forms:
        return None
    first = min(forms, key=lambda found: found.start())
    clock = f"{' '.join(first['day'].split())} {first['time']} {first['half']}"
    day = "%m/%d/%Y" if "/" in clock else "%B %d, %Y"
    try:
        return first["who"].lower(), houston_to_utc(datetime.strptime(clock, f"{day} %I:%M %p"))
    except ValueError:
        return None


def quoted_first(answer: Mail, thread: Sequence[Mail]) -> list[Mail] | None:
    """The messages that an answer's first heading may mean, several where they are of one minute; None: no heading."""
    shown = heading(split(answer.message.body).quoted)
    if shown is None:
        return None
    who, minute = shown
    fitting: list[tuple[float, Mail]] = []
    for mail in thread:
        named = any(all(part in who for part in key.split()) for key in sender_keys(mail.message))
        if named and mail.message.date and mail is not answer:
            fitting.append((abs((mail.message.date - minute).total_seconds()), mail))
    nearest = min((seconds for seconds, _ in fitting), default=0.0)
    return [mail for seconds, mail in fitting if nearest <= SLACK and seconds <= max(nearest, 60)]


def reason(mail: Mail, answer: Mail | None, theirs: bool, thread: Sequence[Mail], done: dict[str, Outcome]) -> str:
    """Why the two sides differ about a message; `theirs`: `answer` was given to it by the reference, not by us."""
    candidates = quoted_first(answer, thread) if answer else None
    if answer is None or answer.message.date is None or candidates is None:
        return UNEXPLAINED
    if not candidates:
        return "quotes a message that is not here"
    quoted = candidates[0]
    words, short = quoted.digest.fingerprint, len(quoted.digest.fingerprint) < MIN_FINGERPRINT
    if len(candidates) > 1 or (quoted is not mail and not short and words == mail.digest.fingerprint):
        return "two alike: one sender and minute or text"
    outcome = done.get(quoted.message.message_id)
    if outcome is None:
        return "goes on from the owner's own mail"
    times = [time for time in (outcome.replied_at, outcome.forwarded_at) if time]
    answered = any(time <= answer.message.date for time in times)
    if (answered and quoted is not mail) if theirs else quoted is mail:
        return "quotes ours, the reference took another"
    if short:
        return "the quoted one is too short to be found"
    found = words in squash(split(answer.message.body).quoted)
    return UNEXPLAINED if found else "the quoted one's words are not found"


def compare(labelled: Labelled, reference: Sequence[dict[str, str]]) -> list[Row]:
    """Both sides' actions of every message that the reference labels for this owner."""
    threads: dict[str, list[Mail]] = defaultdict(list)
    sent: dict[tuple[str, datetime | None], Mail] = {}
    for mail in labelled.mails:
        subject = normal_subject(mail.message.subject)
        threads[subject].append(mail)
        if is_sent(mail, labelled.owner):
            sent.setdefault((subject, mail.message.date), mail)
    mails = {mail.message.message_id: mail for mail in labelled.mails if is_received(mail, labelled.owner)}
    done = {labelled.mails[index].message.message_id: labels.outcome for index, labels in labelled.labels.items()}
    rows = []
    for entry in reference:
        mail, theirs, ours, why = mails[entry["message_id"]], ACTIONS[entry["action"]], "undated", "undated here"
        outcome = done.get(entry["message_id"])
        if outcome and mail.message.date:
            ours, subject = outcome.action, normal_subject(mail.message.subject)
            at, after = outcome.replied_at or outcome.forwarded_at, entry["reply_after_s"] or entry["forward_after_s"]
            answer = sent.get((subject, mail.message.date + timedelta(seconds=float(after)) if after else at))
            if ours != theirs:
                kind = KINDS.get((theirs, ours), UNEXPLAINED)
                why = kind if at and after else reason(mail, answer, bool(after), threads[subject], done)
            else:
                why = ""
        rows.append(Row(f"{labelled.user}/{mail.message.path}", theirs, ours, why))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sample", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print every difference")
    options = parser.parse_args()
    reference: dict[str, list[dict[str, str]]] = defaultdict(list)
    with options.labels.open(newline="") as file:
        for entry in csv.DictReader(file, delimiter="\t"):
            reference[entry["user"]].append(entry)
    rows = [row for labelled in read_owners(options.sample) for row in compare(labelled, reference[labelled.user])]
    different = sorted((row for row in rows if row.reason), key=lambda row: (row.reason, row.path))
    agreement = 1 - len(different) / len(rows)
    print(f"agreement {agreement:.4f}: {len(rows) - len(different)} of {len(rows)} received\n")
    pairs = Counter((row.theirs, row.ours) for row in rows)
    print(f"{'reference / ours':>18s}" + "".join(f"{ours:>11s}" for ours in (*ACTIONS.values(), "undated")))
    for theirs in ACTIONS.values():
        print(f"{theirs:>18s}" + "".join(f"{pairs[theirs, ours]:11d}" for ours in (*ACTIONS.values(), "undated")))
    print("\nwhy they differ")
    examples = {row.reason: row.path for row in reversed(different)}
    for why, count in Counter(row.reason for row in different).most_common():
        print(f"  {count:4d}  {why:42s}{examples[why]}")
    if options.verbose:
        print("\n" + "\n".join("  ".join(row) for row in different))
    sys.exit(agreement < ENOUGH)


if __name__ == "__main__":
    main()
