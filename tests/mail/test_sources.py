"""Sources: every file is read or refused with a reason, from a folder and from a tar alike."""

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from mlx_email.errors import DataError
from mlx_email.mail.sources import RawMail, Refused, read_source

MAIL = b"From: a@x.org\n\nhi"
FILES = ("maildir/low-a/inbox/2.", "maildir/low-a/inbox/10.", "maildir/low-a/projects/oak/1.", "maildir/roe-b/sent/1.")
PLACES = [
    ("low-a", "inbox", "inbox/2."),
    ("low-a", "inbox", "inbox/10."),
    ("low-a", "projects/oak", "projects/oak/1."),
    ("roe-b", "sent", "sent/1."),
]


def make_folder(root: Path) -> Path:
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(MAIL)
    return root


def make_tar(path: Path, members: list[tarfile.TarInfo], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            archive.addfile(member, io.BytesIO(MAIL) if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(MAIL) if kind == tarfile.REGTYPE else 0
    return info


def places(source: Path) -> list[tuple[str, str, str]]:
    return [(item.owner, item.folder, item.path) for item in read_source(source) if isinstance(item, RawMail)]


def refused(source: Path) -> dict[str, str]:
    return {item.path: item.reason for item in read_source(source) if isinstance(item, Refused)}


@pytest.mark.parametrize("start", [".", "maildir"])
def test_a_folder_of_owners_in_order(tmp_path, start):
    assert places(make_folder(tmp_path) / start) == PLACES


def test_the_folder_of_one_owner(tmp_path):
    assert places(make_folder(tmp_path) / "maildir" / "low-a") == PLACES[:3]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("prefix", ["", "./", "export/of/2026/"])
def test_a_tar_of_owners_whatever_lies_before_them(tmp_path, mode, prefix):
    assert places(make_tar(tmp_path / "x.tar", [member(prefix + name) for name in FILES], mode)) == PLACES


def test_a_tar_of_one_owner_is_named_after_the_file(tmp_path):
    source = make_tar(tmp_path / "low-a.tar.gz", [member("inbox/1."), member("sent/1.")])
    assert places(source) == [("low-a", "inbox", "inbox/1."), ("low-a", "sent", "sent/1.")]


def test_owners_without_a_folder_of_a_known_name(tmp_path):
    source = make_tar(tmp_path / "x.tar", [member("low-a/oak/1."), member("roe-b/elm/1.")])
    assert [owner for owner, _, _ in places(source)] == ["low-a", "roe-b"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (member("../escaped"), "unsafe path"),
        (member("inbox/../../escaped"), "unsafe path"),
        (member("/escaped"), "unsafe path"),
        (member("C:/escaped"), "unsafe path"),
        (member("inbox/link", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (member("inbox/hard", tarfile.LNKTYPE, "inbox/1."), "link"),
        (member("inbox/device", tarfile.CHRTYPE), "not a regular file"),
        (member("inbox/pipe", tarfile.FIFOTYPE), "not a regular file"),
        (member("inbox/.DS_Store"), "hidden file"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
def test_unsafe_members_are_refused_and_nothing_is_unpacked(tmp_path, bad, reason):
    (tmp_path / "in").mkdir()
    source = make_tar(tmp_path / "in" / "x.tar.gz", [member("inbox/1."), bad, member("inbox/2.")])
    assert refused(source) == {bad.name: reason}
    assert [path for _, _, path in places(source)] == ["inbox/1.", "inbox/2."]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.tar.gz"]


def test_what_is_no_regular_file_is_refused(tmp_path):
    inbox = make_folder(tmp_path) / "maildir" / "low-a" / "inbox"
    os.mkfifo(inbox / "pipe")
    (inbox / "dangling").symlink_to(inbox / "nothing")
    (inbox / "outside").symlink_to("/etc/passwd")
    (inbox / "loop").symlink_to(inbox)
    (inbox / ".hidden").write_bytes(MAIL)
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(inbox)  # the path of a socket may not be long
        server.bind("socket")
        os.chdir(here)
        assert {Path(path).name: reason for path, reason in refused(tmp_path).items()} == {
            "pipe": "named pipe",
            "dangling": "symbolic link",
            "outside": "symbolic link",
            "loop": "symbolic link",
            ".hidden": "hidden file",
            "socket": "socket",
        }
    assert places(tmp_path) == PLACES


def test_a_file_that_vanishes_during_the_walk(tmp_path):
    items = read_source(make_folder(tmp_path))
    next(items)
    (tmp_path / FILES[1]).unlink()
    assert [type(item) for item in items] == [Refused, RawMail, RawMail]


def test_a_file_name_that_is_not_unicode(tmp_path):
    inbox = make_folder(tmp_path) / "maildir" / "low-a" / "inbox"
    try:
        Path(os.fsdecode(bytes(inbox) + b"/caf\xe9")).write_bytes(MAIL)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert ("low-a", "inbox", "inbox/caf\\xe9") in places(tmp_path)


def not_there(root: Path) -> Path:
    return root / "nothing"


def empty_folder(root: Path) -> Path:
    return root


def text_file(root: Path) -> Path:
    (root / "notes.txt").write_text("not a mailbox")
    return root / "notes.txt"


def empty_file(root: Path) -> Path:
    (root / "empty").touch()
    return root / "empty"


def torn_archive(root: Path) -> Path:
    whole = make_tar(root / "whole.tar.gz", [member(f"inbox/{n}.") for n in range(2000)])
    (root / "torn.tar.gz").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return root / "torn.tar.gz"


def empty_archive(root: Path) -> Path:
    return make_tar(root / "x.tar", [], "w")


@pytest.mark.parametrize("make", [not_there, empty_folder, text_file, empty_file, torn_archive, empty_archive])
def test_what_is_no_source_is_one_line_with_its_path_and_what_to_do(tmp_path, make):
    source = make(tmp_path)
    with pytest.raises(DataError) as caught:
        list(read_source(source))
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)
