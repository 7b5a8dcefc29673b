"""Bytes to messages: what real mail does wrong, and that nothing hostile raises or takes long."""

import contextlib
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlx_email.mail.dates import houston_to_utc
from mlx_email.mail.message import Message, NotMail
from mlx_email.mail.read import read_message


def read(text: str | bytes) -> Message:
    return read_message(text if isinstance(text, bytes) else text.encode())


def test_a_plain_message():
    message = read(
        "Message-ID: <1@x.org>\r\nDate: Fri, 2 Jan 2026 10:00:00 -0600\r\nFrom: Ann Low <Ann@X.org>\r\n"
        'To: bob@y.org, "Roe, Cy" <cy@y.org>\r\nCc: dee@y.org\r\nSubject: Re:\r\n budget\r\n'
        "In-Reply-To: <0@y.org>\r\nReferences: <a@y.org> <0@y.org>\r\n\r\nYes.\r\nAnn"
    )
    assert message.message_id == "<1@x.org>"
    assert message.date is not None
    assert message.date.isoformat() == "2026-01-02T16:00:00+00:00"
    assert (message.sender, message.sender_names) == ("ann@x.org", ("Ann Low",))
    assert (message.to, message.cc) == (("bob@y.org", "cy@y.org"), ("dee@y.org",))
    assert message.recipient_names == ("Roe, Cy",)
    assert (message.subject, message.body) == ("Re: budget", "Yes.\nAnn")
    assert (message.in_reply_to, message.references) == ("<0@y.org>", ("<a@y.org>", "<0@y.org>"))
    assert message.era == "other"


def test_headers_with_crlf_body_with_lf_and_no_final_newline():
    """As four files in five of the corpus: splitting at two newlines fails on it."""
    assert read(b"From: a@x.org\r\nSubject: s\r\n\r\none\n\ntwo").body == "one\n\ntwo"


@pytest.mark.parametrize(
    ("filename", "era", "hour"), [("alow.nsf", "notes", 20), ("ann low 6-26-02.PST", "outlook", 14), ("", "other", 14)]
)
def test_notes_dates_are_read_as_houston_time(filename, era, hour):
    message = read(f"Date: Thu, 16 Nov 2000 06:50:00 -0800 (PST)\nFrom: a@x.org\nX-FileName: {filename}\n\nhi")
    assert message.era == era
    assert message.date is not None
    assert message.date.hour == hour


@pytest.mark.parametrize(
    "date",
    ["Mon, 31 Dec 1979 16:00:00 -0800", "1 Jan 99999 00:00:00 +0000", "1 Jan 2001 00:00:00 +9999", "tomorrow", "",
     "32 Foo 2001", "Thu, 31 Feb 2001 10:00:00 +0000", "1 Jan 2001 99:00:00 +0000"],
)  # fmt: skip
def test_dates_that_cannot_be_true_are_no_date(date):
    assert read(f"From: a@x.org\nDate: {date}\n\nhi").date is None


def test_a_date_without_a_zone_is_utc():
    date = read("From: a@x.org\nDate: 1 Jan 2001 10:00:00 -0000\n\nhi").date
    assert date is not None
    assert date.utcoffset() is not None
    assert date.hour == 10


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("=?utf-8?Q?caf=C3=A9?=", "café"),
        ("=?utf-8?B?Y2Fmw6k=?= =?UTF-8?Q?_au_lait?=", "café au lait"),
        ("=?utf-8?Q?caf=C3?= =?utf-8?Q?=A9?=", "café"),  # a character cut in two
        ("=?ANSI_X3.4-1968?Q?plain_=3F?=", "plain ?"),
        ("=?x-unknown?Q?caf=C3=A9?=", "café"),
        ("=?utf-8?X?broken?=", "=?utf-8?X?broken?="),
        ("=?utf-8?Q?open", "=?utf-8?Q?open"),
    ],
)
def test_encoded_subjects(raw, text):
    assert read(f"From: a@x.org\nSubject: {raw}\n\nhi").subject == text


def test_raw_bytes_in_a_subject():
    assert read("From: a@x.org\nSubject: café\n\nhi".encode()).subject == "café"
    assert read("From: a@x.org\nSubject: café\n\nhi".encode("latin-1")).subject == "café"


@pytest.mark.parametrize("charset", ["us-ascii", "utf-8", "iso-8859-1", "no-such", "punycode", "unicode_escape", "\0"])
def test_a_charset_that_lies(charset):
    body = "café".encode("cp1252")
    assert read(f"From: a@x.org\nContent-Type: text/plain; charset={charset}\n\n".encode() + body).body == "café"


def test_plain_text_is_preferred_and_attachments_are_left_out():
    message = read(
        'From: a@x.org\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="m"\n\n'
        '--m\nContent-Type: multipart/alternative; boundary="a"\n\n'
        "--a\nContent-Type: text/plain\n\nplain words\n--a\nContent-Type: text/html\n\n<p>html words\n--a--\n"
        "--m\nContent-Type: text/plain\nContent-Disposition: attachment; filename=x.txt\n\nattached words\n--m--\n"
    )
    assert message.body == "plain words"


def test_html_only():
    message = read(
        "From: a@x.org\nContent-Type: text/html\n\n<html><head><style>p {}</style></head><body><p>Hello&nbsp;Bob,"
        "<br>see\n <b>this</b></p><script>x()</script><blockquote><p>old</p></blockquote></body></html>"
    )
    assert message.body == "Hello Bob,\nsee this\n>old"


def test_an_attached_message_is_kept_below_a_border():
    message = read(
        'From: a@x.org\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="m"\n\n--m\n\nFor you.\n--m\n'
        "Content-Type: message/rfc822\n\nFrom: b@y.org\nSubject: Lunch\n\nAt noon?\n--m--\n"
    )
    assert message.body.startswith("For you.\n-----Original Message-----\nFrom: b@y.org")
    assert message.body.endswith("At noon?")


def test_the_exchange_directory_names_of_senders_and_recipients():
    message = read(
        "From: ann.low@x.org\nTo: bob.roe@x.org\nX-From: Low, Ann B. </O=X/OU=NA/CN=RECIPIENTS/CN=ALOW>\n"
        "X-To: Roe, Bob </O=X/OU=NA/CN=RECIPIENTS/CN=Broe>, 'Cy Day' <cy@y.org>, dee@y.org @ X, Eve E Fox/HOU/X@X\n\nhi"
    )
    assert message.sender_names == ("Low, Ann B.", "cn=alow")
    assert message.recipient_names == ("Roe, Bob", "Cy Day", "Eve E Fox", "cn=broe")


def test_text_is_clean():
    message = read(b"From: a@x.org\nSubject: a\0b\n\none\0two\r\nthree\rfour\xed\xa0\x80")
    assert message.subject == "ab"
    assert message.body.startswith("onetwo\nthree\nfour")
    message.body.encode()  # no lone surrogate


def test_the_same_bytes_give_the_same_id():
    first, again, other = (read(f"From: a@x.org\n\n{body}") for body in ("hi", "hi", "ho"))
    assert first.message_id == again.message_id != other.message_id


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b" \r\n", "empty file"),
        (b"\x89PNG\r\n\x1a\n...", "no mail header"),
        (b"a,b\n1,2", "no mail"),
    ],
)
def test_what_is_no_mail_is_named(data, reason):
    with pytest.raises(NotMail, match=reason):
        read_message(data)


@given(st.binary(max_size=400))
@example(b"Content-Type: text/plain; name*\nFrom: a@b\n\nx")
@example(b"To: (c):\n\nx")
@example(b'To: "\n\nx')
@example(b"From: <@>\nTo: @,;:<>()\n\nx")
@example(b"From: a@b\nContent-Type: multipart/mixed\n\nx")
@example(b"From: a@b\nContent-Type: text/plain; charset*=a'b'c%zz\n\nx")
@example(b"From: a@b\nContent-Transfer-Encoding: base64\n\n!!!\xff")
@example(b"From: a@b\nContent-Transfer-Encoding: x-uuencode\n\nbegin 666 x\n\xff\n")
def test_any_bytes_are_read_or_refused(data):
    read_or_refuse(data)


@given(st.lists(st.tuples(st.sampled_from([b"From", b"To", b"Subject", b"Date", b"Content-Type", b"References"]),
                          st.binary(max_size=80))), st.binary(max_size=80))  # fmt: skip
def test_any_headers_are_read_or_refused(headers, body):
    read_or_refuse(b"\n".join([b"From: a@x.org", *(name + b": " + value for name, value in headers), b"", body]))


def read_or_refuse(data: bytes) -> None:
    try:
        message = read_message(data)
    except NotMail as error:
        assert "\n" not in str(error)
        return
    assert read_message(data) == message
    for text in (message.subject, message.body, message.sender, message.message_id, *message.to):
        text.encode()
        assert "\0" not in text


def nested(depth: int) -> bytes:
    parts = (b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level) for level in range(depth))
    return b"From: a@x.org\n" + b"".join(parts)


MEGABYTE = 2**20  # a quadratic step over this many bytes takes minutes


@pytest.mark.parametrize(
    "data",
    [
        b"From: a@x.org\n\n" + b">" * MEGABYTE,
        b"From: a@x.org\n\n" + b">\n" * (MEGABYTE // 2),
        b"From: a@x.org\n\n" + b"\n" * MEGABYTE,
        b"From: a@x.org\nTo: " + b"(" * MEGABYTE + b"\n\nx",
        b"From: a@x.org\nTo: " + b"<" * MEGABYTE + b"\n\nx",
        b"From: a@x.org\nTo: " + b"a," * (MEGABYTE // 2) + b"\n\nx",
        b'From: a@x.org\nTo: "' + b'\\"' * (MEGABYTE // 2) + b"\n\nx",
        b"From: a@x.org\nSubject: " + b"=?" * (MEGABYTE // 2) + b"\n\nx",
        b"From: a@x.org\nSubject: " + b"=?a?q?" * (MEGABYTE // 6) + b"\n\nx",
        b"From: a@x.org\nSubject: " + b"=?utf-8?q?a?= " * (MEGABYTE // 14) + b"\n\nx",
        b"From: a@x.org\nReferences: " + b"<" * MEGABYTE + b"\n\nx",
        b"From: a@x.org\nContent-Type: text/html\n\n" + b"<" * MEGABYTE,
        b"From: a@x.org\nContent-Type: text/html\n\n" + b"<!--" * (MEGABYTE // 4),
        b"From: a@x.org\nContent-Type: text/html\n\n" + b"<a " * (MEGABYTE // 3),
        b"From: a@x.org\nContent-Type: text/html\n\n" + b"&" * MEGABYTE,
        b"From: a@x.org\nContent-Type: text/html\n\n&#" + b"9" * MEGABYTE,
        b"From: a@x.org\nContent-Type: text/html\n\n" + b"<style>" * (MEGABYTE // 7),
        b"From: a@x.org\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 10_000,
        nested(200) + b"\nx",
    ],
    ids=lambda data: data[14:50].decode(errors="replace").strip(),
)  # fmt: skip
def test_hostile_megabytes_are_read_in_time(data):
    started = time.perf_counter()
    with contextlib.suppress(NotMail):
        read_message(data)
    assert time.perf_counter() - started < 10.0


def test_endless_nesting_is_refused():
    with pytest.raises(NotMail, match="nested"):
        read_message(nested(3000))


def test_houston_time_is_that_of_the_time_zone_tables():
    zoneinfo = pytest.importorskip("zoneinfo")
    try:
        houston = zoneinfo.ZoneInfo("America/Chicago")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("this machine has no time zone tables")
    for hour in range(0, 24 * 365 * 4, 5):
        clock = datetime(1998, 1, 1, 3) + timedelta(hours=hour)
        if clock.replace(tzinfo=houston).astimezone(UTC).astimezone(houston).replace(tzinfo=None) == clock:
            assert houston_to_utc(clock) == clock.replace(tzinfo=houston).astimezone(UTC)
