"""Hostile zips: what is unsafe is refused, the rest is read, nothing is written, and memory stays small."""

import os
import stat
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from mlx_email.errors import DataError
from mlx_email.mail.sources import archives, read_source, survey
from mlx_email.mail.sources.raw import RawMail, Refused

MAIL = b"From: bob@y.org\nSubject: Oak\n\nhi\n"
ZEROS = bytes(2**20)


def entry(name: str, mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name  # the constructor would repair it
    info.external_attr = mode << 16
    info.compress_type = method
    return info


def make_zip(path: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in [(entry("first.eml"), MAIL), *entries, (entry("last.eml"), MAIL)]:
            archive.writestr(info, data)
    return path


def outcome(source: Path) -> tuple[list[str], dict[str, str]]:
    """The paths of the mail, and the reasons of what was refused."""
    items = list(read_source(source))
    refused = {item.path: item.reason for item in items if isinstance(item, Refused)}
    return [item.path for item in items if isinstance(item, RawMail)], refused


@pytest.mark.parametrize(
    ("info", "data", "reason"),
    [
        (entry("../x.eml"), MAIL, "unsafe path"),
        (entry("a/../../x.eml"), MAIL, "unsafe path"),
        (entry("/x.eml"), MAIL, "unsafe path"),
        (entry("\\x.eml"), MAIL, "unsafe path"),
        (entry("..\\x.eml"), MAIL, "unsafe path"),
        (entry("C:\\x.eml"), MAIL, "unsafe path"),
        (entry("../"), b"", "unsafe path"),
        (entry("link.eml", stat.S_IFLNK | 0o777), b"/etc/passwd", "link"),
        (entry("pipe.eml", stat.S_IFIFO | 0o600), MAIL, "not a regular file"),
        (entry("device.eml", stat.S_IFCHR | 0o600), MAIL, "not a regular file"),
        (entry("bomb.eml"), ZEROS * 2, "compressed more than 200 times"),
        (entry("large.eml", method=zipfile.ZIP_STORED), os.urandom(2**16) * 1025, "larger than 64 MiB"),
        (entry("bzip2.eml", method=zipfile.ZIP_BZIP2), MAIL, "compressed in a way that is not read"),
        (entry("lzma.eml", method=zipfile.ZIP_LZMA), MAIL, "compressed in a way that is not read"),
        (entry("first.eml"), MAIL, "second file of its name"),
        (entry("a/.DS_Store"), b"", "hidden file"),
    ],
    ids=lambda value: value.filename if isinstance(value, zipfile.ZipInfo) else "",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_member_is_refused_and_the_rest_is_read(tmp_path, info, data, reason):
    (tmp_path / "in").mkdir()
    source = make_zip(tmp_path / "in" / "x.zip", (info, data))
    assert outcome(source) == (["first.eml", "last.eml"], {info.filename: reason})
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.zip"]


def patch(path: Path, name: bytes, offset: int, data: bytes) -> None:
    """Writes into the directory's record of a member; its name stands at 46, its flags at 8, its sizes at 20 and 24."""
    whole = bytearray(path.read_bytes())
    start = whole.rindex(name) - 46
    assert whole[start : start + 4] == b"PK\x01\x02"
    whole[start + offset : start + offset + len(data)] = data
    path.write_bytes(whole)


def test_an_encrypted_member_is_refused(tmp_path):
    source = make_zip(tmp_path / "x.zip", (entry("secret.eml"), MAIL))
    patch(source, b"secret.eml", 8, b"\x01\x00")
    assert outcome(source) == (["first.eml", "last.eml"], {"secret.eml": "encrypted"})


def test_a_member_without_a_name_is_refused(tmp_path):
    source = make_zip(tmp_path / "x.zip", (entry("zz."), MAIL))
    patch(source, b"zz.", 28, b"\x00\x00\x03\x00")  # what was the name is now an extra field
    assert outcome(source) == (["first.eml", "last.eml"], {"": "unsafe path"})


def test_a_bomb_that_declares_a_small_size_is_read_to_that_size(tmp_path):
    source = make_zip(tmp_path / "x.zip", (entry("bomb.eml"), ZEROS * 100))
    patch(source, b"bomb.eml", 24, (1000).to_bytes(4, "little"))
    tracemalloc.start()
    found = outcome(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == (["first.eml", "last.eml"], {"bomb.eml": "damaged (BadZipFile)"})
    assert peak < 4 * 2**20


@pytest.mark.parametrize("name", ["x.eml", "x.mbox"])
def test_a_damaged_member_is_refused_and_the_rest_is_read(tmp_path, name):
    body = b"".join(b"%d," % (n**9) for n in range(9000))
    mail = b"From a Fri Jan  2 10:00:00 2026\n" + MAIL + body
    source = make_zip(tmp_path / "x.zip", (entry(name), mail))
    whole = bytearray(source.read_bytes())
    middle = whole.index(name.encode()) + 20_000
    whole[middle : middle + 100] = bytes(100)
    source.write_bytes(whole)
    known = survey(source, "eml" if name == "x.eml" else "mbox")
    refused = [item for item in read_source(source, known) if isinstance(item, Refused) and item.path == name]
    assert len(refused) == 1
    assert refused[0].reason in ("damaged (error)", "damaged (BadZipFile)")
    assert refused[0].size == len(mail)


def test_members_that_lie_over_each_other_are_an_error(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            info = entry(f"{number}.eml", method=zipfile.ZIP_STORED)
            if not number:
                archive.writestr(info, MAIL * 100)
                first = archive.filelist[0]
            else:
                info.header_offset, info.CRC = first.header_offset, first.CRC
                info.compress_size, info.file_size = first.compress_size, first.file_size
                archive.filelist.append(info)
    with pytest.raises(DataError, match=r"x\.zip is a damaged archive \(its members overlap\): get it again"):
        survey(path)


@pytest.mark.parametrize("limit", ["MAX_ENTRIES", "MAX_DIRECTORY"])
def test_a_zip_of_too_many_members_is_an_error(tmp_path, monkeypatch, limit):
    source = make_zip(tmp_path / "x.zip", (entry("a.eml"), MAIL))
    assert survey(source).format == "eml"
    monkeypatch.setattr(archives, limit, 2)
    with pytest.raises(DataError, match=r"x\.zip has .* members: split it"):
        survey(source)


def test_the_size_of_a_zip64_directory_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)  # so that zipfile writes the records of a zip64
    source = make_zip(tmp_path / "x.zip")
    data = source.read_bytes()
    assert b"PK\x06\x06" in data
    assert b"PK\x06\x07" in data
    end = data.rindex(b"PK\x05\x06")
    source.write_bytes(data[: end + 12] + b"\xff" * 8 + data[end + 20 :])  # as a large one declares its sizes
    assert outcome(source)[0] == ["first.eml", "last.eml"]
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 100)
    with pytest.raises(DataError, match="too many members"):
        survey(source)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, -1])
def test_a_torn_zip_is_an_error(tmp_path, keep):
    source = make_zip(tmp_path / "x.zip", *((entry(f"{n}.eml"), MAIL) for n in range(50)))
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * keep) if keep > 0 else -1])
    with pytest.raises(DataError, match=r"x\.zip is a damaged archive .*: get it again"):
        list(read_source(source))


def test_an_empty_zip_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w"):
        pass
    with pytest.raises(DataError, match=r"x\.zip holds no files: give"):
        survey(tmp_path / "x.zip")


def test_folders_in_a_zip_are_no_files(tmp_path):
    source = make_zip(tmp_path / "x.zip", (entry("oak/"), b""), (entry("oak/a.eml"), MAIL))
    assert outcome(source) == (["first.eml", "oak/a.eml", "last.eml"], {})


def test_a_name_that_is_not_unicode_is_escaped(tmp_path):
    source = make_zip(
        tmp_path / "x.zip", (entry("caf\udce9.eml".encode("utf-8", "surrogateescape").decode("cp437")), MAIL)
    )
    paths, _ = outcome(source)
    assert len(paths) == 3
    assert all(path.encode() for path in paths)
