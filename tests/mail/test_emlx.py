"""Apple Mail's files are read as well as can be, whatever is damaged in them."""

import plistlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.mail.sources.emlx import MAX_PLIST, read_emlx

MAIL = b"From: bob@y.org\nSubject: Oak\n\nhi\n"


def plist(values: object) -> bytes:
    return plistlib.dumps(values)


READ = plist({"flags": 1, "subject": "Oak"})


@pytest.mark.parametrize(
    ("flags", "marks"),
    [
        (0, ("unseen",)),
        (1, ()),
        (1 | 1 << 1, ("trashed",)),
        (1 | 1 << 2, ("answered",)),
        (1 | 1 << 4, ("flagged",)),
        (1 | 1 << 6, ("draft",)),
        (1 | 1 << 8, ("forwarded",)),
        (1 << 2 | 1 << 8, ("answered", "forwarded", "unseen")),
        (8590195713, ()),  # bits beyond 32, as newer versions write
        (1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 9, ()),  # encrypted, recent, initial, redirected
    ],
)
def test_flags(flags, marks):
    assert read_emlx(b"%d\n" % len(MAIL) + MAIL + plist({"flags": flags})) == (MAIL, marks)


@pytest.mark.parametrize(
    ("data", "message", "marks"),
    [
        (b"%-10d\n" % len(MAIL) + MAIL + READ, MAIL, ()),
        (b"%d\r\n" % len(MAIL) + MAIL + READ, MAIL, ()),
        (b"9\n" + MAIL + READ, MAIL, ()),
        (b"9999999\n" + MAIL + READ, MAIL, ()),
        (b"9" * 5000 + b"\n" + MAIL + READ, MAIL, ()),
        (b"-3\n" + MAIL + READ, b"-3\n" + MAIL, ()),
        (MAIL + READ, MAIL, ()),
        (b"%d\n" % len(MAIL) + MAIL, MAIL, ()),
        (b"9999\n" + MAIL, MAIL, ()),
        (b"%d\n" % len(MAIL) + MAIL + READ[:-20], MAIL, ()),
        (b"%d\n" % len(MAIL) + MAIL + b"\n" + plist({"flags": 4}), MAIL, ("answered", "unseen")),
        (b"%d\n" % len(MAIL) + MAIL + plist({"flags": False}), MAIL, ()),
        (b"%d\n" % len(MAIL) + MAIL + plist({"flags": "4"}), MAIL, ()),
        (b"%d\n" % len(MAIL) + MAIL + plist([4]), MAIL, ()),
        (b"%d\n" % len(MAIL) + MAIL + plist({"flags": 4}).replace(b"4<", b"four<"), MAIL, ()),
        (b"%d\n" % len(MAIL) + MAIL + plistlib.dumps({"flags": 4}, fmt=plistlib.FMT_BINARY), MAIL, ()),
        (b"%d\n" % len(MAIL) + MAIL + b"\x00 rest", MAIL, ()),
        (b"", b"", ()),
        (b"12\n", b"", ()),
    ],
    ids=["whole", "CRLF", "count too small", "count too large", "count of 5000 digits", "count below zero", "no count",
         "no list", "no list and count too large", "list torn", "blank line before the list", "flags a truth",
         "flags a text", "no dictionary", "flags no number", "binary list", "something else", "empty", "only a count"],
)  # fmt: skip
def test_damaged_files(data, message, marks):
    assert read_emlx(data) == (message, marks)


def test_a_property_list_in_the_text_is_not_taken_for_the_files_own():
    mail = MAIL + plist({"flags": 2}) + b"\nis what it looks like\n"
    assert read_emlx(b"%d\n" % len(mail) + mail + READ) == (mail, ())
    assert read_emlx(b"7\n" + mail + READ) == (mail, ())


BOMB = b"""<?xml version="1.0"?><!DOCTYPE plist [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><plist><dict><key>flags</key><string>&c;</string></dict></plist>"""
FILE = b"""<?xml version="1.0"?><!DOCTYPE plist [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<plist><dict><key>flags</key><integer>4</integer><key>a</key><string>&a;</string></dict></plist>"""


@pytest.mark.parametrize(
    "hostile",
    [BOMB, FILE, b"<plist>" + b"<dict>" * 100_000, b"<plist><dict>" + b"<key>a</key><integer>1</integer>" * 30_000,
     b"<plist>" * (MAX_PLIST // 7), b"<?xml" * (MAX_PLIST // 5), plist({"flags": 4, "a": "a" * MAX_PLIST}),
     b"<plist><dict><key>flags</key><integer>" + b"9" * 9000 + b"</integer></dict></plist>"],
    ids=["entities", "an entity that is a file", "deep", "long", "starts", "xml", "too large", "a long number"],
)  # fmt: skip
def test_a_hostile_property_list_says_nothing_and_takes_no_time(hostile):
    started = time.perf_counter()
    message, marks = read_emlx(b"%d\n" % len(MAIL) + MAIL + hostile)
    assert time.perf_counter() - started < 5.0
    assert (message, marks) == (MAIL, ())


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: b"%d\n" % len(data) + data + READ))
def test_any_bytes_are_read(data):
    message, marks = read_emlx(data)
    assert message in data
    assert set(marks) <= {"unseen", "answered", "forwarded", "flagged", "trashed", "draft"}


@given(st.binary(max_size=60))
def test_a_whole_file_gives_its_message_back(message):
    if message:
        assert read_emlx(b"%d\n" % len(message) + message + READ) == (message, ())
