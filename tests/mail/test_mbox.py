"""An mbox is cut where its messages end, and nowhere else; in bounded memory, whatever it holds."""

import gzip
import io
import re
import time
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlx_email.errors import DataError
from mlx_email.mail import sources
from mlx_email.mail.read import read_message
from mlx_email.mail.sources import mbox
from mlx_email.mail.sources.formats import TOO_LARGE
from mlx_email.mail.sources.mbox import is_mbox, read_mbox
from mlx_email.mail.sources.raw import RawMail, Refused

BORDER = b"From ann@x.org Fri Jan  2 10:00:00 2026\n"


def cut(data: bytes) -> list[bytes | str]:
    """The messages of an mbox, and the reasons of what was refused."""
    items = read_mbox(io.BytesIO(data), folder="oak", path="oak.mbox")
    return [item.data if isinstance(item, RawMail) else item.reason for item in items]


ONE, TWO = b"Subject: one\n\nfirst\n", b"Subject: two\n\nsecond\n"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (BORDER + ONE + b"\n" + BORDER + TWO + b"\n", [ONE, TWO]),
        (BORDER + ONE + b"\n" + BORDER + TWO, [ONE, TWO]),
        (BORDER + ONE + b"\n" + BORDER + b"Subject: two\n\nsec", [ONE, b"Subject: two\n\nsec"]),
        (BORDER + ONE + b"\n" + BORDER, [ONE + b"\n" + BORDER]),
        (b"\xef\xbb\xbf" + BORDER + ONE, [ONE]),
        (b"\n\r\n  \n" + BORDER + ONE, [ONE]),
        (BORDER + b"\n" + BORDER + TWO, [b"\n", TWO]),
        (BORDER, [b""]),
        (BORDER + ONE + BORDER + TWO, [ONE + BORDER + TWO]),
        (BORDER + ONE + b"\n" + BORDER + b"he said, or so\n", [ONE + b"\n" + BORDER + b"he said, or so\n"]),
        (BORDER + ONE + b"\n" + BORDER + b"http://x.org/\n", [ONE + b"\n" + BORDER + b"http://x.org/\n"]),
        (BORDER + ONE + b"\n" + BORDER + BORDER + TWO, [ONE + b"\n" + BORDER + BORDER + TWO]),
        (BORDER + ONE + b"\nFrom here on: nothing\nNote: x\n", [ONE + b"\nFrom here on: nothing\nNote: x\n"]),
        (BORDER + ONE + b"\nFrom May 2026 on\nNote: x\n", [ONE + b"\nFrom May 2026 on\nNote: x\n"]),
        (BORDER + ONE + b"\n" + BORDER[:-1], [ONE + b"\n" + BORDER[:-1]]),
        (BORDER + ONE + b">From oak\n>>From elm\n>Frome\n", [ONE + b"From oak\n>From elm\n>Frome\n"]),
        (BORDER + b"Subject: x\n\n\n\n", [b"Subject: x\n\n\n"]),
    ],
    ids=["two", "no blank line at the end", "truncated", "a border at the end", "byte order mark", "blank lines first",
         "an empty message", "only an empty message", "no blank line before", "text below", "a link below",
         "a border below a border", "no date", "no time", "a border without line end", "quoted", "blank lines last"],
)  # fmt: skip
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_borders(text, messages, ends):
    assert cut(text.replace(b"\r\n", b"\n").replace(b"\n", ends)) == [one.replace(b"\n", ends) for one in messages]


@pytest.mark.parametrize(
    "border",
    [
        b"From ann@x.org Fri Jan  2 10:00:00 2026",
        b"From 1828754568043628583@xxx Mon Apr 07 14:31:02 +0000 2025",  # Gmail
        b"From - Fri Jan 02 10:00:00 2026",  # Thunderbird
        b"From ???@??? Fri Jan 02 10:00:00 2026",  # Eudora
        b"From MAILER-DAEMON Fri Jan  2 10:00 2026",
        b'From "Ann Low"@x.org Fri Jan  2 10:00:00 PST 2026',
        b"From ann@x.org 2026-01-02T10:00:00Z",
    ],
    ids=str,
)
def test_borders_of_many_programs(border):
    assert cut(BORDER + ONE + b"\n" + border + b"\n" + TWO) == [ONE, TWO]
    assert is_mbox(io.BytesIO(border + b"\n" + TWO))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty mbox"),
        (b"\xef\xbb\xbf\r\n \n", "empty mbox"),
        (b"\n" * (mbox.MAX_BLANK + 1), "not an mbox"),
        (b"Subject: x\n\n" + BORDER + ONE, "not an mbox"),
        (b"From 10:30 on 2 Jan 2026 the hall is open.\nPlease come.\n", "not an mbox"),
        (b"\x00\x01" * 1000, "not an mbox"),
        (b"From " + b"a" * 2000 + BORDER[4:] + ONE, "not an mbox"),
    ],
    ids=["empty", "blank", "blank lines without end", "one message", "prose", "binary", "a border too long"],
)
def test_what_is_no_mbox_is_one_refusal(data, reason):
    items = list(read_mbox(io.BytesIO(data), folder="oak", path="Mail/oak", size=7))
    assert items == [Refused("Mail/oak", reason, 7)]
    assert not is_mbox(io.BytesIO(data))


def to_mboxrd(messages: list[bytes]) -> bytes:
    return b"".join(BORDER + re.sub(rb"(?m)^(>*From )", rb">\1", one) + b"\n" for one in messages)


LINES = st.sampled_from([BORDER[:-1], b">" + BORDER[:-1], b"From ", b">>From x", b">", b"", b"", b"Subject: x", b"."])
BODIES = st.lists(LINES | st.binary(max_size=20).map(lambda data: re.sub(rb"[\r\n]", b"", data)), max_size=8)


@given(st.lists(BODIES.map(lambda lines: b"Subject: x\n" + b"".join(line + b"\n" for line in lines)), min_size=1))
@example([b"Subject: x\n\n" + BORDER + b"Subject: y\n"])
@example([b"Subject: x\n\n\n\n", b"Subject: y\n"])
def test_messages_to_mboxrd_and_back(messages):
    assert cut(to_mboxrd(messages)) == messages
    with_crlf = [one.replace(b"\n", b"\r\n") for one in messages]
    assert cut(to_mboxrd(messages).replace(b"\n", b"\r\n")) == with_crlf


def test_the_round_trip_notices_a_lost_quote():
    """The planted fault: a writer that does not quote."""
    message = b"Subject: x\n\n" + BORDER + b"Subject: y\n"
    assert cut(BORDER + message + b"\n") != [message]


class Endless:
    """A stream of a head, `size` bytes without a line end, and a tail, which is never in memory."""

    def __init__(self, head: bytes, size: int, tail: bytes) -> None:
        self.head, self.left, self.tail = io.BytesIO(head), size, io.BytesIO(tail)

    def readline(self, size: int, /) -> bytes:
        line = self.head.readline(size)
        if line:
            return line
        if self.left:
            more = min(size, self.left)
            self.left -= more
            return b"a" * more
        return self.tail.readline(size)


def test_a_line_of_a_gigabyte_is_refused_in_little_memory_and_reading_goes_on(monkeypatch):
    monkeypatch.setattr(mbox, "MAX_BYTES", 2**20)
    stream = Endless(BORDER + ONE + b"\n" + BORDER + b"Subject: x\n\n", 2**30, b"\n\n" + BORDER + TWO)
    tracemalloc.start()
    items = list(read_mbox(stream, folder="", path="oak"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [item.data if isinstance(item, RawMail) else item.reason for item in items] == [ONE, TOO_LARGE, TWO]
    assert items[1] == Refused("oak/2", TOO_LARGE, 2**30 + len(b"Subject: x\n\n\n\n"))
    assert peak < 8 * 2**20


@pytest.mark.parametrize("tail", [b">From oak\n", b"\n" + BORDER + ONE, b"\n\n" + BORDER[1:] + ONE])
def test_what_follows_the_first_piece_of_a_long_line_is_no_line(tail):
    message = b"Subject: x\n\n" + b"a" * mbox.PIECE + tail
    assert cut(BORDER + message) == [message]
    assert cut(BORDER + message[:-1]) == [message[:-1]]


def test_a_line_of_ten_megabytes_is_read():
    long = b"Subject: x\n\n" + b"a" * (10 * 2**20) + b"\n"
    assert cut(BORDER + long + b"\n" + BORDER + TWO) == [long, TWO]


@pytest.mark.parametrize(
    "body",
    [
        BORDER * 40_000,
        (b"\n" + BORDER) * 40_000,
        (b"\n" + BORDER + b"x\n") * 40_000,
        b"From " * 400_000,
        b">" * 2_000_000,
        b">From \n" * 300_000,
        b"\n" * 2_000_000,
    ],
    ids=["borders", "borders after blank lines", "borders above text", "From", ">", ">From", "blank lines"],
)
def test_hostile_bodies_are_cut_in_linear_time(body):
    started = time.perf_counter()
    found = cut(BORDER + ONE + body)
    assert time.perf_counter() - started < 10.0
    assert found[0] != "not an mbox"


# --- as a source ------------------------------------------------------------------------------------------------------


def write(path, data: bytes):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["oak.mbox", "oak", "oak.MBOX", "Oak Elm.txt"])
def test_an_mbox_file_is_known_by_its_first_line(tmp_path, name):
    source = write(tmp_path / name, BORDER + ONE + b"\n" + BORDER + TWO)
    known = sources.survey(source)
    assert (known.format, known.size) == ("mbox", source.stat().st_size)
    folder = "oak" if name.lower() == "oak.mbox" else name
    assert list(sources.read_source(source, known)) == [
        RawMail("", folder, f"{name}/1", ONE),
        RawMail("", folder, f"{name}/2", TWO),
    ]


def test_an_mbox_in_a_gz(tmp_path):
    source = write(tmp_path / "oak.mbox.gz", gzip.compress(BORDER + ONE + b"\n" + BORDER + TWO))
    known = sources.survey(source)
    assert (known.format, known.size) == ("mbox", source.stat().st_size)
    assert [item.folder for item in sources.read_source(source) if isinstance(item, RawMail)] == ["oak", "oak"]


def test_a_truncated_gz_is_an_error_after_what_could_be_read(tmp_path):
    bodies = b"".join(BORDER + b"Subject: %d\n\n" % n + bytes(str(n**60), "ascii") + b"\n\n" for n in range(1, 2000))
    source = write(tmp_path / "oak.mbox.gz", gzip.compress(bodies)[:-2000])
    items = sources.read_source(source)
    assert next(items) == RawMail("", "oak", "oak.mbox.gz/1", b"Subject: 1\n\n1\n")
    with pytest.raises(DataError, match=r"oak\.mbox\.gz is a damaged archive .*: get it again"):
        list(items)


def test_an_empty_mbox_is_one_refusal(tmp_path):
    source = write(tmp_path / "oak.mbox", b"")
    assert list(sources.read_source(source)) == [Refused("oak.mbox", "empty mbox")]


def test_what_is_called_an_mbox_and_is_none(tmp_path):
    source = write(tmp_path / "oak.mbox", b"not mail at all")
    for kind in (None, "mbox"):
        with pytest.raises(DataError, match=r"oak\.mbox is not a mail source.*: give an mbox file"):
            sources.survey(source, kind)


def test_a_message_of_an_mbox_is_read_whole():
    [data] = cut(BORDER + b"From: Ann <ann@x.org>\nSubject: Oak\n\nDear Bob\n\n>From here on\nnothing\n\n")
    assert isinstance(data, bytes)
    message = read_message(data)
    assert (message.sender, message.body) == ("ann@x.org", "Dear Bob\n\nFrom here on\nnothing\n")
