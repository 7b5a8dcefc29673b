"""The golden table: hand-made threads, and what a person would say the owner did with every message of them.

golden_threads.txt holds the table and explains its notation. Every thread lies in a mailbox of other mail, and is
labelled from messages in memory, twice from the bytes of real mail, and in three orders of the files.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.header import Header
from email.utils import format_datetime
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import pytest

from mlx_email.labels.duplicates import unique
from mlx_email.labels.letters import Letter, letter
from mlx_email.labels.mailbox import label_owner
from mlx_email.mail.message import Message
from mlx_email.mail.quotes import Parts
from mlx_email.mail.read import read_message

TABLE = Path(__file__).with_name("golden_threads.txt")
START = datetime(2026, 1, 5, 9, tzinfo=UTC)
UNITS = {"s": "seconds", "h": "hours", "d": "days"}
HOUSTON = timedelta(hours=-6)  # in winter; what Notes wrote as if it were UTC


class Line(NamedTuple):
    """One mail of a thread, as the table has it."""

    number: int
    when: str
    folder: str
    sender: str
    to: str
    cc: str
    subject: str
    extras: list[tuple[str, str]]
    expected: str

    def extra(self, name: str) -> str | None:
        return next((value for key, value in self.extras if key == name), None)


class Thread(NamedTuple):
    """A name, its mails, and what is said in lines that begin with "!"."""

    name: str
    lines: list[Line]
    options: dict[str, str]

    def line(self, number: int) -> Line:
        return self.lines[number - 1]


Form = Callable[[Thread, Line], Message]

_LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+) > ([^|+]*?)(?: \+ ([^|]*?))?\s*\|([^|]*)(?:\|(.*))?")


def read_table(text: str) -> Iterator[Thread]:
    for name, block in re.findall(r"^([^\s#=].*)\n((?: .*\n)+)", text, re.MULTILINE):
        options = dict(re.findall(r"^ +! (\w+) ?(.*)", block, re.MULTILINE))
        rows = [row for row in block.splitlines() if not row.lstrip().startswith("!")]
        for word in options.get("each", "~").split():
            lines = [parse_line(number, row.replace("~", word)) for number, row in enumerate(rows, 1)]
            yield Thread(name.replace("~", word), lines, options)


def parse_line(number: int, row: str) -> Line:
    mail, _, expected = row.partition("=> ")
    match = _LINE.fullmatch(mail.strip())
    assert match, row
    when, folder, sender, to, cc, subject, extras = (group or "" for group in match.groups())
    pairs = [tuple(plain(part.strip()).partition("=")[::2]) for part in extras.split(";") if part.strip()]
    return Line(number, when, folder, sender, to, cc, plain(subject.strip()), pairs, expected or "-")


def plain(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def address(person: str) -> str:
    return person if "@" in person else f"{person}@{'x' if person in ('ann', 'pat') else 'y'}.org"


def addresses(people: str | None) -> tuple[str, ...]:
    return tuple(address(person.strip()) for person in (people or "").split(",") if person.strip())


def date_of(line: Line) -> datetime | None:
    if line.when in ("none", "2044"):
        return datetime(2044, 1, 5, 9, tzinfo=UTC) if line.when == "2044" else None
    return START + timedelta(**{UNITS[line.when[-1]]: int(line.when[:-1])})


def original(line: Line) -> int:
    return int(line.extra("copy") or line.number)


def id_of(line: Line) -> str:
    given = line.extra("id")
    return f"<{original(line)}.oak@y.org>" if given is None else given


def ids(thread: Thread, line: Line, name: str) -> tuple[str, ...]:
    found: list[str] = []
    for part in (line.extra(name) or "").split(","):
        if part == "999*":
            found += [f"<old{n}@z.org>" for n in range(999)]
        elif part:
            found.append(id_of(thread.line(int(part))) if part.isdigit() else part)
    return tuple(found)


def body_of(thread: Thread, line: Line) -> str:
    """The mail's own words, and below them those that it quotes."""
    words = (line.extra("says") or f"Here speaks letter {original(line)}, of the trees by the river.") + "\n"
    for name, value in line.extras:
        for number in value.split(",") if name in ("quotes", "cites", "forwards") else ():
            other = thread.line(int(number))
            text = body_of(thread, other._replace(extras=[(k, v) for k, v in other.extras if k == "says"]))
            if name == "cites":
                words += f"\nOn Mon, 5 Jan 2026 at 9:00, {other.sender} wrote:\n" + re.sub("(?m)^", "> ", text.strip())
            else:
                border = "-----Original Message-----" if name == "quotes" else "---------- Forwarded message ---------"
                words += f"\n{border}\nFrom: {other.sender}\nSent: then\nTo: {other.to}\nSubject: z\n\n{text}"
    return words


def in_memory(thread: Thread, line: Line) -> Message:
    """The message, made by hand."""
    return Message(
        owner="low-a",
        folder=line.folder,
        path=f"{line.folder}/{line.number}.",
        message_id=id_of(line),
        date=date_of(line),
        sender=address(line.sender),
        sender_names=tuple(filter(None, [line.extra("name")])),
        to=addresses(line.to),
        cc=addresses(line.cc),
        recipient_names=tuple(filter(None, [line.extra("to-name")])),
        subject=" ".join(line.subject.split()),
        body=body_of(thread, line),
        in_reply_to=next(iter(ids(thread, line, "re")), None),
        references=ids(thread, line, "refs"),
        reply_to=addresses(line.extra("reply-to")),
        labels=tuple(filter(None, (line.extra("labels") or "").split(","))),
        marks=tuple(filter(None, (line.extra("marks") or "").split(","))),
        era="other" if line.extra("notes") is None else "notes",
    )


def only_bytes(line: Line) -> bool:
    """Whether it is the reader of mail that is asked here."""
    told = {"header", "attached", "labels"} & {name for name, _ in line.extras}
    return bool(told) or "=?" in line.subject or re.fullmatch(r"<.+>", id_of(line)) is None


def in_bytes(thread: Thread, line: Line) -> bytes:
    """The mail as it would lie in a file."""
    date, notes = date_of(line), line.extra("notes") is not None
    zone = datetime.strptime(line.extra("zone") or "+0000", "%z").tzinfo or UTC
    written = date and (date + HOUSTON if notes else date).astimezone(zone)
    name, to_name = line.extra("name"), line.extra("to-name")
    headers = [
        ("Message-ID", id_of(line)),
        ("Date", written and format_datetime(written)),
        ("From", f'"{name}" <{address(line.sender)}>' if name else address(line.sender)),
        ("To", f'"{to_name}" <{address(line.to)}>' if to_name else ", ".join(addresses(line.to))),
        ("Cc", ", ".join(addresses(line.cc))),
        ("Subject", encoded(line.subject)),
        ("In-Reply-To", " ".join(ids(thread, line, "re"))),
        ("References", "\n ".join(ids(thread, line, "refs"))),
        ("Reply-To", ", ".join(addresses(line.extra("reply-to")))),
        ("X-Gmail-Labels", encoded(line.extra("labels") or "")),
        ("X-FileName", "low.nsf" if notes else "low.pst"),
    ]
    lines = [f"{name}: {value}" for name, value in headers if value]
    lines += [
        re.sub(r"%(\d)", lambda match: id_of(thread.line(int(match[1]))), value)
        for name, value in line.extras
        if name == "header"
    ]
    text, attached = body_of(thread, line), line.extra("attached")
    if attached is None:
        lines += ["Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit", "", text]
        return "\n".join(lines).encode()
    inner = in_bytes(thread, thread.line(int(attached))).decode()
    lines += ['Content-Type: multipart/mixed; boundary="b"', "", "--b", "Content-Type: text/plain", "", text]
    lines += ["--b", "Content-Type: message/rfc822", "Content-Disposition: attachment", "", inner, "--b--", ""]
    return "\n".join(lines).encode()


def encoded(text: str) -> str:
    return text if text.isascii() else Header(text, "utf-8", maxlinelen=60).encode()


def from_bytes(thread: Thread, line: Line, newline: bytes = b"\n") -> Message:
    data = in_bytes(thread, line).replace(b"\n", newline)
    marks: Any = tuple(filter(None, (line.extra("marks") or "").split(",")))
    return read_message(data, owner="low-a", folder=line.folder, path=f"{line.folder}/{line.number}.", marks=marks)


def other_mail() -> list[Letter]:
    """Ann's mailbox around a thread: she writes to Eve, something was deleted, and it goes on for long."""
    found = []
    for number, day in enumerate([*range(-60, -12), 99, 100]):
        ann, eve, sent = "ann@x.org", "eve@z.org", number < 48
        found.append(
            Message(
                owner="low-a",
                folder="sent" if sent else "Trash",
                path=f"other/{number}",
                message_id=f"<other{number}@x.org>",
                date=START + timedelta(days=day, hours=1),
                sender=ann if sent else eve,
                to=(eve if sent else ann,),
                subject=f"Chore {number}",
            )
        )
    return [letter(message) for message in found]


OTHER = other_mail()
FEW = OTHER[-6:]  # enough for most threads, and quick: for the planted faults
THREADS = list(read_table(TABLE.read_text("utf-8")))


def rows_of(thread: Thread, letters: Iterable[Letter]) -> list[tuple[str, dict[str, Any]]]:
    """(path, row) of the table that the letters become."""
    owner = addresses(thread.options.get("owner"))
    labelled = label_owner(unique(letters), name="low-a", addresses=owner)
    return [(mail.message.path, row) for mail, row in zip(labelled.mails, labelled.rows(), strict=True)]


def found_in(thread: Thread, rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What the rows say of the thread's lines, as the table would write it."""
    by_path = {f"{line.folder}/{line.number}.": original(line) for line in thread.lines}
    by_number = {by_path[path]: row for path, row in rows if path in by_path}
    letters = dict[str, str]()
    found = []
    for line in thread.lines:
        row = by_number.get(line.number)
        text = (row or {}).get("action", "-")
        if text != "-":
            hours, quality = row["response_time_hours"], row["label_quality"]
            text += "" if hours is None else f" {round(hours, 6):g}"
            text += "" if quality == "good" else f" {quality}"
            text += f" p{row['priority_target']:g}" if " p" in line.expected else ""
        if "@" in line.expected and row:
            text += f" @{letters.setdefault(row['thread_id'], ascii_lowercase[len(letters)])}"
        found.append(text)
    return found


def letters_of(thread: Thread, form: Form, other: Sequence[Letter] = OTHER) -> list[Letter]:
    letters = [letter(form(thread, line)) for line in thread.lines]
    return letters if "bare" in thread.options else [*letters, *other]


def windows_bytes(thread: Thread, line: Line) -> Message:
    return from_bytes(thread, line, b"\r\n")


def forms(thread: Thread) -> list[Form]:
    return [from_bytes, windows_bytes] + ([] if any(map(only_bytes, thread.lines)) else [in_memory])


def expected(thread: Thread) -> list[str]:
    return [line.expected for line in thread.lines]


def cases() -> Iterator[Any]:
    for thread in THREADS:
        limit = thread.options.get("xfail")
        marks = [pytest.mark.xfail(strict=True, raises=AssertionError, reason=limit)] if limit else []
        yield pytest.param(thread, id=thread.name, marks=marks)


@pytest.mark.parametrize("thread", list(cases()))
def test_what_a_person_would_say(thread):
    for form in forms(thread):
        assert found_in(thread, rows_of(thread, letters_of(thread, form))) == expected(thread), form.__name__


def depends_on_order(thread: Thread, other: Sequence[Letter] = OTHER) -> bool:
    """Whether any column of any row, or the order of the rows, is another one when the files come in another order."""
    letters = letters_of(thread, forms(thread)[-1], other)
    orders = letters, letters[::-1], random.Random(thread.name).sample(letters, len(letters))
    first, *others = (rows_of(thread, order) for order in orders)
    return any(rows != first for rows in others)


def test_the_order_of_the_files_changes_nothing():
    assert [thread.name for thread in THREADS if depends_on_order(thread)] == []


def test_the_table_is_large():
    assert len({thread.name for thread in THREADS}) == len(THREADS) >= 60
    assert all(1 <= len(thread.lines) <= 6 for thread in THREADS)


def wrong() -> set[str]:
    """The threads of which the labels say something else than the table."""
    rows = ((thread, rows_of(thread, letters_of(thread, from_bytes, FEW))) for thread in THREADS)
    return {thread.name for thread, found in rows if found_in(thread, found) != expected(thread)}


@pytest.fixture(scope="module")
def wrong_anyway() -> set[str]:
    return wrong()


FAULTS = {
    "labels.answers.SLACK": (timedelta(0), "clocks differ by 60 s | clocks differ by 119 s"),
    "labels.answers.split": (
        lambda body: Parts(body, "", False),
        "of two with one subject the quoted one | of two with one subject the one cited by marks"
        " | two answers in the other order | the attached one of two is the forwarded one"
        " | a forward of one's own mail",
    ),
    "labels.actions.is_trashed": (
        lambda mail: False,
        "moved to the trash | one of two is thrown away | flagged for the trash | spam | never opened | kept late"
        " | Gmail labels are the folders | Gmail labels in German",
    ),
    "mail.read.message_ids": (
        lambda header: (),
        "of two with one subject the named one | going on from one's own reply by id"
        " | a reply after 31 days by id | a forward after 31 days by id | an id wakes what rested for 40 days"
        " | a new subject by id | an empty subject answered by id | another subject in one thread | a circle of four"
        " | two that name each other | a thousand references | references with commas, comments and folds"
        " | the old way to name a letter | the header's name in capitals, and twice",
    ),
}


@pytest.mark.parametrize("place", FAULTS)
def test_a_planted_fault_is_seen(place, wrong_anyway, monkeypatch):
    """It makes those threads wrong that are there for it, and few others."""
    fault, names = FAULTS[place]
    monkeypatch.setattr(f"mlx_email.{place}", fault)
    found = wrong() - wrong_anyway
    assert set(names.split(" | ")) <= found
    assert len(found) < len(THREADS) / 5


def test_labels_in_the_order_of_the_files_would_be_seen(monkeypatch):
    """Mail of one second, and undated mail, left in the order in which it came."""

    def by_time(items, key=None):
        times = (
            {} if key is None else {"key": lambda mail: mail.message.date.timestamp() if mail.message.date else 1e12}
        )
        return sorted(items, **times)

    monkeypatch.setattr("mlx_email.labels.duplicates.sorted", by_time, raising=False)
    monkeypatch.setattr("mlx_email.labels.quality.sorted", by_time, raising=False)
    names = {thread.name for thread in THREADS if depends_on_order(thread, FEW)}
    assert names == {
        "of two with one subject and one second the quoted one",
        "a list sends the reply back",
        "a date that is none",
        "one of two is thrown away",
    }
