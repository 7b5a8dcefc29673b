"""A synthetic corpus to measure reading with: `python benchmarks/corpus.py OUT.tar --messages 500000 --owners 150`.

Streams a .tar (or .tar.gz) of `maildir/<owner>/<folder>/<n>.` with the bytes of the CMU release: headers with CRLF, a
body with LF and no end of line at its end, X-From to X-FileName of Outlook, a Message-ID of its own in every file. A
third of the files are copies in all_documents. Bodies are log-normal in length (mean about 1.8 kB, a few 200 kB), made
of invented words; senders are Zipf among 200 an owner. Of the received mail 10% are answered and 4% forwarded in
sent_items, 35% deleted. `--format mbox` writes one owner's mailbox as Gmail's takeout does: one file, X-Gmail-Labels
instead of folders, no copies. The same arguments give the same bytes; memory does not grow with the messages.
"""

import argparse
import gzip
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

START, DAYS = datetime(2000, 5, 1, tzinfo=UTC), 730
SENDERS, WORDS, PROJECTS = 200, 5_000, 8
ANSWERED, FORWARDED, DELETED, FILED = 0.10, 0.04, 0.35, 0.15
COPIED = 0.5  # of all messages: then a third of the files are copies
LONGEST = 30_000  # words: about 200 kB
OWN_BYTES = 300  # of a reply, at most
BLOCK = 512  # messages whose random numbers are drawn at once
ZONE = timedelta(hours=-7)


@dataclass(frozen=True)
class Mail:
    """One message, its words still to be written."""

    sent: datetime
    sender: str
    to: str
    subject: str
    body: bytes
    folder: str
    thread: int  # the number of the received message that it is, or answers


def make_words(rng: np.random.Generator, count: int) -> list[str]:
    """Pronounceable words, all different, the short ones first: frequent words are short."""
    begin, vowel, end = (
        "b c d f g h k l m n p r s t v w br cl dr fl gr pl st tr".split(),
        "aeiou",
        " n r s t l nd".split(" "),
    )
    found: dict[str, None] = {}
    while len(found) < count:
        picks = rng.integers(0, 2**16, 13)
        syllables = 1 + int(picks[12]) % 4
        found.setdefault(
            "".join(
                begin[picks[3 * at] % len(begin)] + vowel[picks[3 * at + 1] % 5] + end[picks[3 * at + 2] % len(end)]
                for at in range(syllables)
            )
        )
    return sorted(found, key=len)


def zipf(rng: np.random.Generator, among: int, count: int) -> np.ndarray:
    """Numbers below `among`; the nth has a share of about 1/n."""
    shares = np.cumsum(1 / np.arange(1, among + 1))
    return np.searchsorted(shares, rng.random(count) * shares[-1])


class Writer:
    """Invents text: thousands of words at a time."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.words = make_words(self.rng, WORDS)
        plain = [word.encode() for word in self.words]
        ends = (b" ",) * 9 + (b", ", b". ", b"\n")
        self.table = np.array([[word + end for end in ends] for word in plain], object)  # (WORDS, 12)

    def bodies(self, count: int) -> list[bytes]:
        """Log-normal lengths: mean about 1.8 kB, median about 700 bytes."""
        lengths = np.clip(np.exp(self.rng.normal(4.85, 1.45, count)), 3, LONGEST).astype(int)
        total = int(lengths.sum())
        pieces = self.table[zipf(self.rng, WORDS, total), self.rng.integers(0, self.table.shape[1], total)].tolist()
        stops = np.cumsum(lengths).tolist()
        return [b"".join(pieces[a:b]).rstrip() for a, b in zip([0, *stops], stops, strict=False)]

    def subjects(self, count: int) -> list[str]:
        picks = zipf(self.rng, WORDS, 4 * count).reshape(count, 4)
        return [" ".join(self.words[at] for at in row).capitalize() for row in picks.tolist()]

    def address(self) -> str:
        first, last, domain = (self.words[at] for at in self.rng.integers(500, WORDS, 3))
        return f"{first}.{last}@{domain}.example"


def mailbox(writer: Writer, owner: str, count: int) -> Iterator[Mail]:
    """About `count` messages of one owner, in the order of time; what the owner sends follows what it answers."""
    senders = [writer.address() for _ in range(SENDERS)]
    projects = [writer.words[at] for at in writer.rng.integers(100, WORDS, PROJECTS)]
    waiting: list[tuple[datetime, int, Mail]] = []  # to be sent
    received = max(1, round(count / (1 + ANSWERED + FORWARDED)))
    step = timedelta(days=DAYS) / received
    for start in range(0, received, BLOCK):
        size = min(BLOCK, received - start)
        bodies, subjects = writer.bodies(size), writer.subjects(size)
        chance, folder, jitter = writer.rng.random((3, size)).tolist()
        who = zipf(writer.rng, SENDERS, size).tolist()
        hours = np.minimum(np.exp(writer.rng.normal(0.5, 1.8, size)), 24 * 20).tolist()  # median 1.6 h, under 30 days
        for at in range(size):
            sent = START + (start + at + jitter[at]) * step
            while waiting and waiting[0][0] <= sent:
                yield heappop(waiting)[2]
            place = _folder(folder[at], projects)
            mail = Mail(sent, senders[who[at]], owner, subjects[at], bodies[at], place, start + at)
            if chance[at] < ANSWERED + FORWARDED:
                forward = chance[at] >= ANSWERED
                mail = replace(mail, folder="inbox")
                to = senders[(who[at] + 1 + at) % SENDERS] if forward else mail.sender
                answer = _answer(mail, to, sent + timedelta(hours=hours[at]), bodies[at - 1], forward=forward)
                heappush(waiting, (answer.sent, start + at, answer))
            yield mail
    while waiting:
        yield heappop(waiting)[2]


def _folder(chance: float, projects: list[str]) -> str:
    if chance < DELETED:
        return "deleted_items"
    return projects[int((chance - DELETED) / FILED * PROJECTS)] if chance < DELETED + FILED else "inbox"


def _answer(mail: Mail, to: str, sent: datetime, words: bytes, *, forward: bool) -> Mail:
    """The owner's reply or forward, with the original below; a reply has some words of its own."""
    mark, own = ("FW", b"") if forward else ("RE", words[-OWN_BYTES:] + b"\n")
    heading = (
        f"\n -----Original Message-----\nFrom: \t{mail.sender}\nSent:\t{mail.sent + ZONE:%A, %B %d, %Y %I:%M %p}\n"
        f"To:\t{mail.to}\nSubject:\t{mail.subject}\n\n"
    )
    return Mail(
        sent, mail.to, to, f"{mark}: {mail.subject}", own + heading.encode() + mail.body, "sent_items", mail.thread
    )


def cmu_bytes(mail: Mail, number: int, folder: str, owner: str) -> bytes:
    """One file of the CMU release."""
    sender, to = (address.partition("@")[0] for address in (mail.sender, mail.to))
    head = (
        f"Message-ID: <{10_000_000 + number}.{1_075_840_000_000 + 7 * number}.JavaMail.evans@thyme.example>\n"
        f"Date: {mail.sent + ZONE:%a, %d %b %Y %H:%M:%S} -0700 (PDT)\nFrom: {mail.sender}\nTo: {mail.to}\n"
        f"Subject: {mail.subject}\nMime-Version: 1.0\nContent-Type: text/plain; charset=us-ascii\n"
        f"Content-Transfer-Encoding: 7bit\nX-From: {_display(sender)}\nX-To: {_display(to)}\nX-cc: \nX-bcc: \n"
        f"X-Folder: \\{owner}\\{folder}\nX-Origin: {owner.upper()}\nX-FileName: {owner}.pst\n\n"
    )
    return head.replace("\n", "\r\n").encode() + mail.body


def _display(local: str) -> str:
    first, _, last = local.partition(".")
    return f"{last.title()}, {first.title()} </O=NORTHGATE/OU=NA/CN=RECIPIENTS/CN={first[0].upper()}{last.upper()}>"


def write_tar(file: BinaryIO, *, messages: int, owners: int, seed: int) -> None:
    """`messages` files of `owners` people, whose mailboxes differ in size."""
    writer = Writer(seed)
    shares = np.exp(writer.rng.normal(0, 0.7, owners))
    ends = np.round(np.cumsum(shares) / shares.sum() * messages).astype(int).tolist()
    number = 0
    for end in ends:
        address = writer.address()
        first, last = address.partition("@")[0].split(".")
        owner, numbers = f"{last}-{first[0]}{number}", Counter[str]()
        for mail in mailbox(writer, address, _enough((end - number) / (1 + COPIED))):
            copied = writer.rng.random() < COPIED
            for folder in (mail.folder, "all_documents") if copied else (mail.folder,):
                if number < end:
                    numbers[folder] += 1
                    number += 1
                    _add(file, f"maildir/{owner}/{folder}/{numbers[folder]}.", cmu_bytes(mail, number, folder, owner))
            if number >= end:
                break
    file.write(bytes(2 * tarfile.BLOCKSIZE))


def _enough(count: float) -> int:
    """A little more than is needed, as chance decides how many are answered or copied; cut where it is full."""
    return round(1.02 * count + 3 * count**0.5) + 5


def _add(file: BinaryIO, name: str, data: bytes) -> None:
    """One member; tarfile itself would remember them all."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.write(info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE))


LABELS = {"deleted_items": "Trash,Opened", "sent_items": "Sent,Opened", "inbox": "Inbox,Opened"}


def write_mbox(file: BinaryIO, *, messages: int, seed: int) -> None:
    """One owner's mailbox as one file in Gmail's takeout."""
    writer = Writer(seed)
    for number, mail in enumerate(mailbox(writer, writer.address(), _enough(messages)), 1):
        if number > messages:
            break
        labels = LABELS.get(mail.folder, f"{mail.folder.title()},Archived,Opened")
        head = (
            f"From {10**18 + number}@xxx {mail.sent:%a %b %d %H:%M:%S +0000 %Y}\nX-GM-THRID: {10**18 + mail.thread}\n"
            f"X-Gmail-Labels: {labels}\nMIME-Version: 1.0\nDate: {mail.sent:%a, %d %b %Y %H:%M:%S} +0000\n"
            f"Message-ID: <{number:x}.{seed}@mail.example>\nSubject: {mail.subject}\nFrom: {mail.sender}\n"
            f"To: {mail.to}\nContent-Type: text/plain; charset=UTF-8\n\n"
        )
        body = mail.body.replace(b"\nFrom ", b"\n>From ")
        file.write((head.encode() + body + b"\n\n").replace(b"\n", b"\r\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--messages", type=int, default=500_000, help="files, or messages of an mbox")
    parser.add_argument("--owners", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=["maildir", "mbox"], default="maildir")
    given = parser.parse_args()
    with ExitStack() as stack:
        file: BinaryIO = stack.enter_context(given.out.open("wb"))
        if given.out.suffix == ".gz":  # without a name and a time in its head: the same bytes every time
            packed = gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0)
            file = cast(BinaryIO, stack.enter_context(packed))
        if given.format == "mbox":
            write_mbox(file, messages=given.messages, seed=given.seed)
        else:
            write_tar(file, messages=given.messages, owners=given.owners, seed=given.seed)


if __name__ == "__main__":
    main()
