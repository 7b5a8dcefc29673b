"""Every format gives the same mail from a folder, a tar and a zip; and is known by its names."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from mlx_email.errors import DataError
from mlx_email.mail.read import read_message
from mlx_email.mail.sources import read_source, survey
from mlx_email.mail.sources.raw import FORMATS, Format, RawMail, Refused

MAIL = b"From: bob@y.org\nSubject: Oak\n\nhi\n"
BORDER = b"From bob@y.org Fri Jan  2 10:00:00 2026\n"
MBOX = BORDER + MAIL + b"\n" + BORDER + MAIL + b"\n"


def emlx(flags: int) -> bytes:
    plist = (
        f'<?xml version="1.0"?>\n<plist version="1.0"><dict><key>flags</key><integer>{flags}</integer></dict></plist>'
    )
    return b"%-10d\n" % len(MAIL) + MAIL + plist.encode()


Rows = list[tuple[str, str, str, tuple[str, ...]]]  # owner, folder, path, marks
# The files of a tree in the order of a walk; the mail in it; what is refused, and why.
TREES: dict[str, tuple[Format, dict[str, bytes], Rows, dict[str, str]]] = {
    "CMU": (
        "cmu",
        {"maildir/low-a/inbox/2.": MAIL, "maildir/low-a/inbox/10.": MAIL, "maildir/roe-b/sent/x/1.": MAIL},
        [("low-a", "inbox", "inbox/2.", ()), ("low-a", "inbox", "inbox/10.", ()), ("roe-b", "sent/x", "sent/x/1.", ())],
        {},
    ),
    "Maildir++": (
        "maildir",
        {
            "Maildir/dovecot-uidlist": b"3 V1 N2",
            "Maildir/maildirsize": b"0S",
            "Maildir/notes.txt": b"about this",
            "Maildir/subscriptions": b"Sent",
            "Maildir/.Archive.2020/cur/5.h:2,S": MAIL,
            "Maildir/.Entw&APw-rfe/cur/6.h;2,DS": MAIL,
            "Maildir/.Sent/cur/7.h!2,RS": MAIL,
            "Maildir/cur/1.h:2,": MAIL,
            "Maildir/cur/2.h:2,RS": MAIL,
            "Maildir/cur/3.h:2,FPST": MAIL,
            "Maildir/cur/.hidden": MAIL,
            "Maildir/new/4.h": MAIL,
            "Maildir/new/5.h:2,S": MAIL,
            "Maildir/tmp/8.h": MAIL,
        },
        [
            ("", "Archive/2020", "Maildir/.Archive.2020/cur/5.h:2,S", ()),
            ("", "Entwürfe", "Maildir/.Entw&APw-rfe/cur/6.h;2,DS", ("draft",)),
            ("", "Sent", "Maildir/.Sent/cur/7.h!2,RS", ("answered",)),
            ("", "INBOX", "Maildir/cur/1.h:2,", ("unseen",)),
            ("", "INBOX", "Maildir/cur/2.h:2,RS", ("answered",)),
            ("", "INBOX", "Maildir/cur/3.h:2,FPST", ("flagged", "forwarded", "trashed")),
            ("", "INBOX", "Maildir/new/4.h", ("unseen",)),
            ("", "INBOX", "Maildir/new/5.h:2,S", ("unseen",)),
        ],
        {
            "Maildir/dovecot-uidlist": "index file of the mail server",
            "Maildir/maildirsize": "index file of the mail server",
            "Maildir/notes.txt": "not in cur or new",
            "Maildir/subscriptions": "index file of the mail server",
            "Maildir/cur/.hidden": "hidden file",
            "Maildir/tmp/8.h": "still being delivered",
        },
    ),
    "Maildir in plain folders": (
        "maildir",
        {"Mail/Oak/Elm/new/1.h": MAIL, "Mail/Sent/cur/2.h:2,S": MAIL},
        [("", "Oak/Elm", "Mail/Oak/Elm/new/1.h", ("unseen",)), ("", "Sent", "Mail/Sent/cur/2.h:2,S", ())],
        {},
    ),
    "Thunderbird's Maildir": (
        "maildir",
        {"Mail/Inbox/cur/1.eml": b"X-Mozilla-Status: 0001\n" + MAIL, "Mail/Sent/cur/2.eml": MAIL},
        [("", "Inbox", "Mail/Inbox/cur/1.eml", ()), ("", "Sent", "Mail/Sent/cur/2.eml", ())],
        {},
    ),
    "Takeout": (
        "mbox",
        {
            "Takeout/archive_browser.html": b"<html>",
            "Takeout/Mail/All mail Including Spam and Trash.mbox": MBOX,
            "Takeout/Mail/Oak.mbox": MBOX.replace(b"\n", b"\r\n"),
            "Takeout/Mail/User Settings/Filters.json": b"{}",
        },
        [
            ("", f"Takeout/Mail/{name}", f"Takeout/Mail/{name}.mbox/{number}", ())
            for name in ("All mail Including Spam and Trash", "Oak")
            for number in (1, 2)
        ],
        {
            "Takeout/archive_browser.html": "not an mbox",
            "Takeout/Mail/User Settings/Filters.json": "not an mbox",
        },
    ),
    "Thunderbird": (
        "mbox",
        {
            "prefs.js": b"user_pref()",
            "Mail/Local Folders/Drafts": b"",
            "Mail/Local Folders/Drafts.msf": b"// <!-- <mdb:mork",
            "Mail/Local Folders/Inbox": MBOX,
            "Mail/Local Folders/Inbox.msf": b"// <!-- <mdb:mork",
            "Mail/Local Folders/old.gz": gzip.compress(MBOX, mtime=0),
            "Mail/Local Folders/Inbox.sbd/Oak": MBOX,
            "Mail/Local Folders/Inbox.sbd/Oak.msf": b"// <!-- <mdb:mork",
        },
        [
            ("", f"Mail/Local Folders/{folder}", f"Mail/Local Folders/{path}/{number}", ())
            for folder, path in (("Inbox", "Inbox"), ("old", "old.gz"), ("Inbox/Oak", "Inbox.sbd/Oak"))
            for number in (1, 2)
        ],
        {
            "prefs.js": "not an mbox",
            "Mail/Local Folders/Drafts": "empty mbox",
            "Mail/Local Folders/Drafts.msf": "not an mbox",
            "Mail/Local Folders/Inbox.msf": "not an mbox",
            "Mail/Local Folders/Inbox.sbd/Oak.msf": "not an mbox",
        },
    ),
    "Apple's exported mboxes": (
        "mbox",
        {"Oak.mbox/mbox": MBOX, "Oak.mbox/table_of_contents": b"\x00\x01"},
        [("", "Oak", f"Oak.mbox/mbox/{number}", ()) for number in (1, 2)],
        {"Oak.mbox/table_of_contents": "not an mbox"},
    ),
    "eml": (
        "eml",
        {"top.EML": MAIL, "Oak/a.eml": MAIL, "Oak/b.txt": MAIL, "Oak/Elm/c.eml": MAIL},
        [("", "", "top.EML", ()), ("", "Oak", "Oak/a.eml", ()), ("", "Oak/Elm", "Oak/Elm/c.eml", ())],
        {"Oak/b.txt": "not an .eml file"},
    ),
    "Apple Mail": (
        "emlx",
        {
            "V10/MailData/Envelope Index": b"SQLite format 3",
            "V10/0E-1/INBOX.mbox/Info.plist": b"<plist/>",
            "V10/0E-1/INBOX.mbox/7F-2/Data/Attachments/3/2/offer.eml": MAIL,
            "V10/0E-1/INBOX.mbox/7F-2/Data/Messages/3.partial.emlx": emlx(0),
            "V10/0E-1/INBOX.mbox/7F-2/Data/Messages/3.2.emlxpart": b"JVBERi0",
            "V10/0E-1/INBOX.mbox/7F-2/Data/Messages/4.emlx": emlx(0b1_0101_0101),
            "V10/0E-1/Oak.mbox/Elm.mbox/9A-3/Data/1/Messages/12.emlx": emlx(0b11),
        },
        [
            ("", "INBOX", "V10/0E-1/INBOX.mbox/7F-2/Data/Messages/3.partial.emlx", ("unseen",)),
            (
                "",
                "INBOX",
                "V10/0E-1/INBOX.mbox/7F-2/Data/Messages/4.emlx",
                ("answered", "draft", "flagged", "forwarded"),
            ),
            ("", "Oak/Elm", "V10/0E-1/Oak.mbox/Elm.mbox/9A-3/Data/1/Messages/12.emlx", ("trashed",)),
        ],
        {
            "V10/MailData/Envelope Index": "not an .emlx file",
            "V10/0E-1/INBOX.mbox/Info.plist": "not an .emlx file",
            "V10/0E-1/INBOX.mbox/7F-2/Data/Attachments/3/2/offer.eml": "attachment kept beside its message",
            "V10/0E-1/INBOX.mbox/7F-2/Data/Messages/3.2.emlxpart": "attachment kept beside its message",
        },
    ),
}


@pytest.mark.parametrize("way", ["folder", "tar", "tar.gz", "zip"])
@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_known_and_read_alike_from_a_folder_a_tar_and_a_zip(pack, name, way):
    kind, files, rows, refused = TREES[name]
    known = survey(pack(files, way))
    items = list(read_source(known.source, known))
    mails = [item for item in items if isinstance(item, RawMail)]
    assert known.format == kind
    assert sorted((mail.owner, mail.folder, mail.path, mail.marks) for mail in mails) == sorted(rows)
    assert {item.path: item.reason for item in items if isinstance(item, Refused)} == refused
    assert {mail.data.replace(b"\r\n", b"\n").removeprefix(b"X-Mozilla-Status: 0001\n") for mail in mails} == {MAIL}
    counted = known.size - sum(item.size for item in items if isinstance(item, Refused))
    if kind == "mbox":  # the bytes of the borders, and what a gz saves
        assert 0 < sum(len(mail.data) for mail in mails) <= counted + len(MBOX)
    elif kind == "emlx":
        assert counted == sum(len(data) for path, data in files.items() if path.endswith(".emlx"))
    else:
        assert counted == sum(len(mail.data) for mail in mails)


@pytest.mark.parametrize("name", TREES)
def test_a_tar_of_the_folder_it_was_made_in(pack, name):
    """As `tar c .` names its members."""
    files = TREES[name][1]
    plain = list(read_source(pack(files, "tar")))
    assert list(read_source(pack({f"./{path}": data for path, data in files.items()}, "tar.gz"))) == plain


def test_the_order_of_a_folder_and_the_same_again(pack):
    source = pack({f"box/{name}.eml": MAIL for name in ("b", "10", "a", "2")} | {"box.eml": MAIL}, "folder")
    paths = [item.path for item in read_source(source)]
    assert paths == ["box.eml", "box/2.eml", "box/10.eml", "box/a.eml", "box/b.eml"]
    assert [item.path for item in read_source(source)] == paths


@pytest.mark.parametrize("way", ["folder", "tar", "zip"])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_format_can_be_given(pack, kind, way):
    """One tree that holds mail of every format: what is read is what the format takes."""
    files = {
        "1.": MAIL,
        "a.eml": MAIL,
        "b.emlx": emlx(1),
        "c.mbox": MBOX,
        "cur/2.h:2,S": MAIL,
    }
    taken = {"eml": ["a.eml"], "emlx": ["b.emlx"], "mbox": ["c.mbox/1", "c.mbox/2"], "maildir": ["cur/2.h:2,S"]}
    known = survey(pack(files, way), kind)
    items = list(read_source(known.source, known))
    assert known.format == kind
    assert sorted(item.path for item in items if isinstance(item, RawMail)) == taken.get(kind, sorted(files))
    if kind != "cmu":
        assert sum(isinstance(item, Refused) for item in items) == len(files) - 1


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"a.eml": 1, "b.eml": 1, "c.mbox": 9}, "mbox"),  # by bytes: one mbox is a whole mailbox
        ({"a.eml": 9, "c.mbox": 1}, "eml"),
        ({"cur/1.h:2,S": 9, "a.eml": 1}, "maildir"),
        ({"ann/inbox/1.": 1, **{f"ann/inbox/{n}.eml": 9 for n in range(9)}}, "cmu"),  # one in ten
        ({"ann/inbox/1.": 1, **{f"ann/inbox/{n}.eml": 9 for n in range(19)}}, "eml"),
        ({"ann/new/1.": 1, "ann/new/2.": 1}, "cmu"),  # a folder called new
        ({"ann/inbox/letter": 1}, "cmu"),
        ({"mail/sent-mail": 1, "mail/work": 1}, "mbox"),  # a file called as a folder is one
        ({"X.mbox/Messages/1.emlx": 1, "X.mbox/Attachments/1/a.mbox": 9}, "mbox"),
        ({"X.mbox/Messages/1.emlx": 1, "X.mbox/Messages/a.txt": 9}, "emlx"),
        ({"X.mbox/Attachments/1/a.emlx": 9, "b.eml": 1}, "eml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_format_of_a_mixed_tree(pack, files, kind):
    source = pack({name: MAIL * size for name, size in files.items()}, "folder")
    assert survey(source).format == kind
    assert sum(1 for _ in read_source(source)) >= len(files)  # each is accounted for


@pytest.mark.parametrize(("name", "data", "kind"), [
    ("a.eml", MAIL, "eml"), ("a.EML", BORDER + MAIL, "eml"), ("a.emlx", emlx(1), "emlx"), ("a", MBOX, "mbox"),
    ("a.mbox", b"", "mbox"), ("a.gz", gzip.compress(MBOX), "mbox"),
])  # fmt: skip
def test_the_format_of_a_file(tmp_path, name, data, kind):
    (tmp_path / name).write_bytes(data)
    known = survey(tmp_path / name)
    assert (known.format, known.size) == (kind, len(data))
    items = list(read_source(tmp_path / name))
    assert {item.owner for item in items if isinstance(item, RawMail)} <= {""}
    if kind in ("eml", "emlx"):
        assert [(item.folder, item.path) for item in items if isinstance(item, RawMail)] == [("", name)]


def test_a_message_without_an_ending_of_its_name(tmp_path):
    (tmp_path / "letter").write_bytes(MAIL)
    with pytest.raises(DataError):
        survey(tmp_path / "letter")
    assert list(read_source(tmp_path / "letter", survey(tmp_path / "letter", "eml"))) == [
        RawMail("", "", "letter", MAIL)
    ]


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [("a.eml", MAIL, "mbox"), ("a.mbox", MBOX, "cmu"), ("a.mbox", MBOX, "maildir"), ("a.txt", b"text", None),
     ("a.gz", gzip.compress(b"text"), None), ("a.zip", b"PK\x03\x04 and then nothing", None)],
)  # fmt: skip
def test_a_file_that_is_no_source_of_the_format(tmp_path, name, data, kind):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        survey(tmp_path / name, kind)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ": g" in str(caught.value)  # give ..., or get it again


@pytest.mark.parametrize("kind", ["maildir", "eml", "emlx"])
@pytest.mark.parametrize("way", ["folder", "tar", "zip"])
def test_a_tree_without_mail_of_the_format(pack, way, kind):
    source = pack({"notes.txt": b"text"}, way)
    with pytest.raises(DataError, match=f"holds no mail of the format {kind}: give"):
        survey(source, kind)


def replace_one(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data + b"x" if name == "Oak/a.eml" else data for name, data in files.items()}


def rename_one(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.replace("a.eml", "d.eml"): data for name, data in files.items()}


def drop_one(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != "Oak/a.eml"}


@pytest.mark.parametrize("way", ["folder", "tar", "zip"])
@pytest.mark.parametrize("change", [replace_one, rename_one, drop_one])
def test_the_fingerprint_changes_with_the_source(pack, tmp_path, way, change):
    files = TREES["eml"][1]
    first = survey(pack(files, way))
    assert survey(first.source) == first
    first.source.rename(tmp_path / "before")
    first.source.parent.rmdir() if way != "folder" else None
    second = survey(pack(change(files), way))
    assert second.fingerprint != first.fingerprint
    assert len(first.fingerprint) == 64


@pytest.mark.parametrize("change", [replace_one, rename_one])
def test_the_fingerprint_of_a_folder_changes_where_no_time_does(pack, tmp_path, change):
    """The names and sizes are looked at too: a copy can keep all times."""
    files = TREES["eml"][1]
    fingerprints = []
    for way in (files, files, change(files)):
        source = pack(way, "folder")
        for path in source.rglob("*.*"):
            os.utime(path, ns=(1, 1))
        fingerprints.append(survey(source).fingerprint)
        source.rename(tmp_path / f"before-{len(fingerprints)}")
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_the_fingerprint_changes_with_the_time_and_the_format(pack, tmp_path):
    source = pack({"a.eml": MAIL, "b.mbox": MBOX}, "folder")
    first = survey(source)
    assert survey(source, "eml").fingerprint != first.fingerprint == survey(source).fingerprint
    os.utime(source / "a.eml", ns=(1, 1))
    assert survey(source).fingerprint != first.fingerprint
    for name, data in (("a.mbox", MBOX), ("b.tar", pack({"a.eml": MAIL}, "tar").read_bytes())):
        (tmp_path / name).write_bytes(data)
        first = survey(tmp_path / name)
        os.utime(tmp_path / name, ns=(1, 1))
        assert survey(tmp_path / name).fingerprint != first.fingerprint


def test_marks_of_the_place_and_of_the_headers_come_together(pack):
    [raw] = read_source(pack({"cur/1.h:2,RS": b"Status: RO\nX-Status: F\n" + MAIL}, "folder"))
    assert isinstance(raw, RawMail)
    message = read_message(raw.data, owner=raw.owner, folder=raw.folder, path=raw.path, marks=raw.marks)
    assert message.marks == ("answered", "flagged")


def test_a_tar_is_known_without_its_ending_and_old_tars_too(tmp_path):
    path = tmp_path / "backup"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("a.eml")
        info.size = len(MAIL)
        archive.addfile(info, io.BytesIO(MAIL))
    assert survey(path).format == "eml"
    data = bytearray(path.read_bytes())
    data[257:265] = bytes(8)  # as tars before 1988, without a magic number
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert survey(path).format == "eml"
    assert [item.data for item in read_source(path) if isinstance(item, RawMail)] == [MAIL]


def test_a_folder_whose_name_is_a_link(pack, tmp_path):
    source = pack({"a.eml": MAIL}, "folder")
    link = tmp_path / "link"
    link.symlink_to(source)
    assert [Path(item.path).name for item in read_source(link)] == ["a.eml"]


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("Inbox.mbox", "mbox", "Inbox"),
        ("Gelöschte Elemente", "1.eml", "Gelöschte Elemente"),
        ("Deleted Messages.mbox", "1.emlx", "Deleted Messages"),
        (".Trash", "cur/1:2,S", "Trash"),
    ],
)
def test_a_mail_folder_given_by_itself_keeps_its_name(tmp_path, folder, name, expected):
    data = b"From: a@x.org\nSubject: s\n\nhi\n"
    contents = {"mbox": b"From a Mon Jan  5 09:00:00 2026\n" + data, "1.emlx": b"%d\n%s" % (len(data), data)}
    path = tmp_path / folder / name
    path.parent.mkdir(parents=True)
    path.write_bytes(contents.get(name, data))
    (found,) = read_source(tmp_path / folder)
    assert (found.owner, found.folder) == ("", expected)
