"""The named cases of hostile mail that the other tests here do not hold: in one message, in a folder, in an archive."""

import contextlib
import io
import os
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_email.errors import DataError
from mlx_email.mail import sources
from mlx_email.mail.message import Message, NotMail
from mlx_email.mail.read import read_message
from mlx_email.mail.sources import archives, formats, read_source, survey
from mlx_email.mail.sources.raw import FORMATS, RawMail, Refused
from mlx_email.mail.sources.trees import folder_members

MAIL = b"From: bob@y.org\nSubject: Oak\n\nhi\n"
MEGABYTE = 2**20  # a quadratic step over this many bytes takes minutes


# --- one message ------------------------------------------------------------------------------------------------------


def read(headers: bytes, body: bytes = b"hi") -> Message:
    return read_message(b"From: bob@y.org\n" + headers + b"\n\n" + body)


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        (b"Content-Type: text/plain; charset=x-none", "caf\u00e9".encode(), "caf\u00e9"),
        (b"Content-Type: text/plain", b"one\0two", "onetwo"),
        (b"Content-Type: text/plain", b"one\xed\xa0\x80", None),
        (b"Content-Type: text/plain", b"one\r\ntwo\nthree\rfour", "one\ntwo\nthree\nfour"),
        (b"Content-Type: text/plain", b"a" * 10 * MEGABYTE, "a" * 10 * MEGABYTE),
        (b"Content-Type: multipart/mixed", b"--b\n\none\n--b--", "--b\n\none\n--b--"),
        (b'Content-Type: multipart/mixed; boundary="none"', b"one", "one"),
        (b"Content-Transfer-Encoding: base64", b"!!!", ""),
        (b"Content-Transfer-Encoding: base64", b"aGkgQm9i", "hi Bob"),
        (b"Content-Type: text/plain; name*", b"hi", "hi"),
        (b"To: (c):", b"hi", "hi"),
        (b'To: "', b"hi", "hi"),
    ],
    ids=["unknown charset", "NUL", "lone surrogate", "mixed line ends", "10 MB line", "boundary absent",
         "boundary never met", "base64 garbage", "base64", "name*", "To: (c):", 'To: "'],
)  # fmt: skip
def test_a_hostile_message_is_read(headers, body, text):
    found = read(headers, body).body
    found.encode()
    assert "\0" not in found
    assert found == text if text is not None else found.startswith("one")


def test_the_first_of_duplicated_headers_is_read():
    message = read(
        b"Subject: one\nSubject: two\nFrom: cy@z.org\nTo: a@x.org\nTo: b@x.org\nMessage-ID: <1@x>\nMessage-ID: <2@x>"
    )
    assert (message.sender, message.subject, message.to, message.message_id) == (
        "bob@y.org",
        "one",
        ("a@x.org",),
        "<1@x>",
    )


def test_missing_headers():
    message = read_message(b"Subject: Oak\n\nhi")
    assert (message.sender, message.to, message.date, message.in_reply_to) == ("", (), None, None)
    assert message.message_id.endswith("@no-message-id>")


@pytest.mark.parametrize("depth", [200, 400])
def test_a_message_in_a_message_in_a_message(depth):
    data = b"From: a@x.org\nContent-Type: message/rfc822\n\n" * depth + MAIL
    message = read_message(data)
    assert message.body.count("-----Original Message-----") == depth
    assert message.body.endswith("hi\n") or message.body.endswith("hi")


def test_ten_thousand_parts():
    body = b"".join(b"--b\n\npart %d\n" % n for n in range(10_000))
    found = read(b"Content-Type: multipart/mixed; boundary=b", body).body
    assert found.count("part") == 10_000


def test_references_that_are_none():
    message = read(b"In-Reply-To: your letter of Monday\nReferences: <a@x> and <b@x>\n <c@x>, <<d@x>> <> <e@x")
    assert message.in_reply_to is None
    assert message.references == ("<a@x>", "<b@x>", "<c@x>", "<d@x>")


@pytest.mark.parametrize(
    "name", [b"X-Gmail-Labels", b"Reply-To", b"Status", b"X-Status", b"X-Mozilla-Status", b"In-Reply-To"]
)
@pytest.mark.parametrize("text", [b",", b'"', b'",', b"(", b"<", b"=?", b"=?utf-8?q?a?= ", b"\0", b"\xff", b"a\n "])
def test_a_hostile_megabyte_in_a_header_is_read_in_time(name, text):
    started = time.perf_counter()
    with contextlib.suppress(NotMail):
        read(name + b": " + text * (MEGABYTE // len(text)))
    assert time.perf_counter() - started < 10.0


NAMES = [b"X-Gmail-Labels", b"Reply-To", b"Status", b"X-Status", b"X-Mozilla-Status", b"In-Reply-To", b"References"]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=60))))
@example([(b"X-Mozilla-Status", b"\xb2")])  # a digit that is no number
def test_any_headers_of_programs_are_read(headers):
    lines = b"\n".join(name + b": " + value for name, value in headers)
    try:
        message = read(lines)
    except NotMail as error:
        assert "\n" not in str(error)
        return
    assert read(lines) == message
    assert list(message.marks) == sorted(set(message.marks))
    for label in message.labels:
        assert label.encode()
        assert label == label.strip() != ""


# --- a folder ---------------------------------------------------------------------------------------------------------


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(MAIL)
    return root


def reasons(source: Path) -> dict[str, str]:
    return {Path(item.path).name: item.reason for item in read_source(source) if isinstance(item, Refused)}


@pytest.mark.parametrize("name", ["a.eml", "a.mbox", "1."])
def test_a_folder_where_a_file_should_be(tmp_path, name):
    """It is a folder, whatever its name."""
    (tmp_path / "box" / name).mkdir(parents=True)
    make(tmp_path, "box/b.eml", f"box/{name}/c.eml")
    assert [item.path for item in read_source(tmp_path)] == ["box/b.eml", f"box/{name}/c.eml"]


def test_an_unreadable_file(tmp_path, monkeypatch):
    """By a system that refuses to open it: tests may run as a user who may read everything."""
    make(tmp_path, "a.eml", "b.eml", "c.eml")
    opened = os.open

    def refuse(path, *rest):
        if str(path).endswith("b.eml"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert reasons(tmp_path) == {"b.eml": "not readable (Permission denied)"}
    assert sum(isinstance(item, RawMail) for item in read_source(tmp_path)) == 2


def test_an_unreadable_folder(tmp_path, monkeypatch):
    make(tmp_path, "a.eml", "box/b.eml")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("box"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert reasons(tmp_path) == {"box": "not readable"}


def test_a_file_that_grows_during_the_walk(tmp_path, monkeypatch):
    make(tmp_path, "a.eml", "b.eml")
    monkeypatch.setattr(sources, "MAX_BYTES", 2 * MEGABYTE)
    items = read_source(tmp_path)
    next(items)
    (tmp_path / "b.eml").write_bytes(MAIL * MEGABYTE)
    [grown] = items
    assert isinstance(grown, RawMail)
    assert len(grown.data) == 2 * MEGABYTE + 1  # what `read_message` refuses


def test_a_file_that_becomes_something_else_after_the_walk(tmp_path):
    make(tmp_path, "link.eml", "pipe.eml", "folder.eml", "gone.eml")
    members = {member.name: member for member in folder_members(str(tmp_path))}
    assert {member.refusal for member in members.values()} == {""}
    for name in members:
        (tmp_path / name).unlink()
    (tmp_path / "link.eml").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.eml")
    (tmp_path / "folder.eml").mkdir()
    for name, error in (("link.eml", OSError), ("pipe.eml", NotMail), ("folder.eml", NotMail), ("gone.eml", OSError)):
        with pytest.raises(error):
            members[name].open()


def test_a_device(tmp_path):
    make(tmp_path, "a.eml")
    try:
        os.mknod(tmp_path / "zero.eml", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root may make a device")
    assert reasons(tmp_path) == {"zero.eml": "device"}


def test_a_large_file_is_refused_unread(tmp_path, monkeypatch):
    make(tmp_path, "a.eml", "b.eml")
    (tmp_path / "b.eml").write_bytes(MAIL * 10)
    monkeypatch.setattr(formats, "MAX_BYTES", 100)
    assert reasons(tmp_path) == {"b.eml": formats.TOO_LARGE}
    assert survey(tmp_path).size == len(MAIL)


# --- a tar ------------------------------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(MAIL) if kind == tarfile.REGTYPE else 0
    return info


def make_tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(MAIL) if info.isreg() else None)
    return path


def test_a_file_through_a_link_of_the_tar_is_the_tars_own(tmp_path):
    """Nothing is unpacked, so nothing goes through the link: the bytes are those in the archive."""
    (tmp_path / "in").mkdir()
    source = make_tar(tmp_path / "in" / "x.tar", member("box", tarfile.SYMTYPE, "/etc"), member("box/passwd.eml"))
    items = list(read_source(source))
    assert items == [Refused("box", "link"), RawMail("", "box", "box/passwd.eml", MAIL)]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.tar"]


def test_a_sparse_member_of_ten_gigabytes_is_refused_unread(tmp_path):
    info = member("huge.eml")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[124:136] = b"%011o\0" % 0
    header[386:410] = b"%011o\0" % 0 * 2
    header[483:495] = b"\x80" + (10 * 2**30).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    source = make_tar(tmp_path / "x.tar", member("a.eml"), member("b.eml"))
    whole = source.read_bytes()
    source.write_bytes(whole[:1024] + header + whole[1024:])
    tracemalloc.start()
    found = reasons(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"huge.eml": "not a regular file"}
    assert [item.path for item in read_source(source) if isinstance(item, RawMail)] == ["a.eml", "b.eml"]
    assert peak < 4 * MEGABYTE


def test_a_member_of_a_name_that_was_there_is_refused(tmp_path):
    source = make_tar(tmp_path / "x.tar", member("a.eml"), member("b.eml"), member("./a.eml"))
    assert list(read_source(source)) == [
        RawMail("", "", "a.eml", MAIL),
        RawMail("", "", "b.eml", MAIL),
        Refused("a.eml", "second file of its name"),
    ]


def test_a_damaged_header_is_an_error_and_no_short_mailbox(tmp_path):
    """tarfile alone takes it for the end."""
    source = make_tar(tmp_path / "x.tar", *(member(f"{n}.eml") for n in range(3)))
    whole = bytearray(source.read_bytes())
    whole[1024 + 100] ^= 1
    source.write_bytes(whole)
    with pytest.raises(DataError, match=r"x\.tar is a damaged archive .*: get it again"):
        survey(source)


def test_a_tar_that_is_cut_after_its_survey_ends_in_an_error_at_once(tmp_path):
    source = make_tar(tmp_path / "x.tar", *(member(f"{n}.eml") for n in range(3)))
    known = survey(source)
    source.write_bytes(source.read_bytes()[: 1024 + 512 + 5])
    items = read_source(source, known)
    assert next(items) == RawMail("", "", "0.eml", MAIL)
    with pytest.raises(DataError, match=r"x\.tar is a damaged archive"):
        next(items)


def test_too_many_members_are_an_error(tmp_path, monkeypatch):
    source = make_tar(tmp_path / "x.tar", *(member(f"{n}.eml") for n in range(10)))
    assert survey(source).format == "eml"
    monkeypatch.setattr(archives, "MAX_ENTRIES", 9)
    with pytest.raises(DataError, match=r"x\.tar has more than 9 members: split it"):
        survey(source)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_refuses_what_is_unsafe(tmp_path, kind):
    bad = [member("../cur/a.eml"), member("/cur/b.emlx"), member("cur/c.mbox", tarfile.SYMTYPE, "/etc/passwd")]
    good = [member("cur/1.h:2,S"), member("d.eml"), member("e.emlx"), member("f.mbox")]
    source = make_tar(tmp_path / "x.tar", *bad, *good)
    items = list(read_source(source, survey(source, kind)))
    refused = {item.path: item.reason for item in items if isinstance(item, Refused)}
    assert {name: refused[name] for name in ("../cur/a.eml", "/cur/b.emlx", "cur/c.mbox")} == {
        "../cur/a.eml": "unsafe path",
        "/cur/b.emlx": "unsafe path",
        "cur/c.mbox": "link",
    }
    assert len(items) == 7


# --- any damage -------------------------------------------------------------------------------------------------------


def tree(way: str) -> bytes:
    """A small archive of each kind, as bytes."""
    data = io.BytesIO()
    names = ("cur/1.h:2,S", "d.eml", "e.emlx", "f.mbox", "ann/inbox/1.")
    if way == "zip":
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, b"From a Fri Jan  2 10:00:00 2026\n" + MAIL * 20)
        return data.getvalue()
    with tarfile.open(fileobj=data, mode="w:gz" if way == "tar.gz" else "w") as packed:
        for name in names:
            info = member(name)
            packed.addfile(info, io.BytesIO(MAIL))
    return data.getvalue()


ARCHIVES = {way: tree(way) for way in ("tar", "tar.gz", "zip")}


@pytest.mark.parametrize("way", ARCHIVES)
def test_a_torn_archive_is_an_error(tmp_path, way):
    source = tmp_path / "x"
    end = {"tar": 5 * 1024, "tar.gz": len(ARCHIVES[way]), "zip": len(ARCHIVES[way])}[way]  # of a tar: of its members
    for length in [*range(40), *range(40, end, 97)]:
        source.write_bytes(ARCHIVES[way][:length])
        if way == "tar" and length % 1024 == 0 and length:
            continue  # between two members: nothing says that more should come
        with pytest.raises(DataError):
            list(read_source(source))


@pytest.mark.parametrize("way", ARCHIVES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_archive_is_read_or_an_error(tmp_path_factory, way, data):
    whole = bytearray(ARCHIVES[way])
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    source = tmp_path_factory.mktemp("damaged") / "x"
    source.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for kind in (None, *FORMATS):
        try:
            items = list(read_source(source, survey(source, kind)))
        except DataError as error:
            assert "\n" not in str(error)
            continue
        assert items
        for item in items:
            item.path.encode()
