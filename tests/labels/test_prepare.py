"""Sources to tables: whole, private, the same every time, and every file accounted for."""

import json
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mlx_email.errors import DataError, MlxEmailError, UserError
from mlx_email.labels import prepare as module
from mlx_email.labels.prepare import Prepared, prepare
from mlx_email.labels.schema import COLUMNS, read_rows
from mlx_email.labels.tables import GROUP_ROWS, read_people

TABLES = ("features.parquet", "messages.parquet", "people.parquet", "prepare.json", "rejected.jsonl")


def mail(day: int, hour: int, sender: str, to: str, subject: str, body: str) -> bytes:
    return (
        f"Message-ID: <{day}.{hour}.{sender}>\r\nDate: {day} Jan 2026 {hour:02d}:00:00 +0000\r\nFrom: {sender}\r\n"
        f"To: {to}\r\nSubject: {subject}\r\nX-FileName: low.pst\r\n\r\n{body}"
    ).encode()


@pytest.fixture
def mailbox(tmp_path) -> Path:
    """Two owners: Ann answers, forwards, deletes and keeps; Cy keeps. With a copy, a calendar entry and three files
    that are no mail."""
    root = tmp_path / "maildir"
    ann, bob, cy = "ann@x.org", "bob@y.org", "cy@x.org"
    files: dict[str, bytes] = {
        "low-a/inbox/1.": mail(1, 9, bob, ann, "Oak", "Can we buy the oak?"),
        "low-a/sent_items/1.": mail(1, 11, ann, bob, "RE: Oak", "Yes.\n\n-----Original Message-----\nFrom: Bob\n"),
        "low-a/inbox/2.": mail(2, 9, bob, ann, "Elm", "For Cy, please read it."),
        "low-a/sent_items/2.": mail(2, 12, ann, cy, "FW: Elm", "-----Original Message-----\nFrom: Bob\n"),
        "low-a/deleted_items/1.": mail(3, 9, bob, ann, "Ash", "An offer."),
        "low-a/inbox/3.": mail(4, 9, bob, ann, "Yew", "For your files."),
        "low-a/trees/1.": mail(4, 9, bob, ann, "Yew", "For your files."),
        "low-a/inbox/4.": mail(5, 9, bob, ann, "Fir", "When?").replace(b"2026", b"1979"),
        "low-a/calendar/1.": mail(6, 9, bob, ann, "Meeting", "at ten"),
        "low-a/inbox/5.": b"",
        "low-a/inbox/6.": b"\x00\x01\x02",
        "day-c/inbox/1.": mail(2, 12, ann, cy, "FW: Elm", "-----Original Message-----\nFrom: Bob\n"),
        "day-c/sent/1.": mail(2, 13, cy, bob, "Hello", "Hello"),
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "low-a/inbox/7.").symlink_to("1.")
    return root


def test_the_tables_of_a_small_mailbox(mailbox, tmp_path):
    done: list[tuple[str, int]] = []
    prepared = prepare([mailbox], tmp_path / "out", progress=lambda what, more: done.append((what, more)))
    assert prepared == Prepared(
        files=14,
        rejected={"empty file": 1, "no mail header": 1, "symbolic link": 1},
        duplicates=1,
        not_mail=1,
        messages=9,
        owners=2,
        received=6,
        undated=1,
        labelled=5,
        actions={"archived": 2, "deleted": 1, "forwarded": 1, "replied": 1},
        label_quality={"good": 3, "kept_late": 1, "no_trash": 1},
        splits={"test": 1, "train": 4},
    )
    assert (
        prepared.files == sum(prepared.rejected.values()) + prepared.duplicates + prepared.not_mail + prepared.messages
    )
    assert sum(more for what, more in done if what == "read") == 14
    assert sum(more for what, more in done if what == "label") == 2

    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(TABLES)
    rows = list(read_rows(out / "features.parquet"))
    assert [(row.user, row.subject, row.action) for row in rows] == [
        ("day-c", "FW: Elm", "archived"),
        ("low-a", "Oak", "replied"),
        ("low-a", "Elm", "forwarded"),
        ("low-a", "Ash", "deleted"),
        ("low-a", "Yew", "archived"),
    ]
    oak = rows[1]
    assert (oak.response_time_hours, oak.is_question, oak.sender, oak.to) == (2.0, True, "bob@y.org", ("ann@x.org",))
    assert rows[-1].people_score == pytest.approx((1 + 0.96 + 0.5) / 4, abs=1e-4)  # a reply in two hours, and a forward
    messages = pq.read_table(out / "messages.parquet")
    assert messages.schema.equals(COLUMNS)
    assert messages.num_rows == 9
    by_subject = {(row["user"], row["subject"]): row for row in messages.to_pylist()}
    assert by_subject["low-a", "RE: Oak"]["action"] is None
    assert by_subject["low-a", "RE: Oak"]["thread_id"] == by_subject["low-a", "Oak"]["thread_id"]
    assert by_subject["low-a", "Fir"]["date"] is None
    assert set(read_people(out / "people.parquet")) == {("low-a", "bob@y.org")}
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {"path": "low-a/inbox/5.", "reason": "empty file"} in rejected
    assert json.loads((out / "prepare.json").read_text())["labelled"] == 5


def digests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_mail_gives_the_same_bytes(mailbox, tmp_path):
    """Twice; from a tar in another order; and given in two parts."""
    archive = tmp_path / "mail.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(mailbox.rglob("*"), reverse=True):
            if path.is_file() and not path.is_symlink():
                tar.add(path, path.relative_to(tmp_path))
    prepare([mailbox], tmp_path / "first")
    prepare([mailbox], tmp_path / "second")
    prepare([archive], tmp_path / "third")
    prepare([mailbox / "low-a", mailbox / "day-c"], tmp_path / "fourth")
    first = digests(tmp_path / "first")
    assert digests(tmp_path / "second") == first
    for name in ("features.parquet", "messages.parquet", "people.parquet"):
        assert digests(tmp_path / "third")[name] == digests(tmp_path / "fourth")[name] == first[name]


def test_only_the_owner_can_read_what_is_written(mailbox, tmp_path):
    before = os.umask(0)
    try:
        prepare([mailbox], tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o600}


def test_no_mail_text_is_rejected_text(mailbox, tmp_path):
    (mailbox / "low-a/inbox/8.").write_bytes(b"a secret that is no mail")
    prepare([mailbox], tmp_path / "out")
    assert "secret" not in (tmp_path / "out" / "rejected.jsonl").read_text()


@pytest.mark.parametrize("step", ["read_message", "label_owner", "people_rows"])
def test_a_failure_leaves_nothing(mailbox, tmp_path, monkeypatch, step):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(module, step, fail)
    with pytest.raises(MlxEmailError, match="No space left"):
        prepare([mailbox], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def refused(sources: list[Path], out: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(sources, out)
    assert "\n" not in str(caught.value)
    assert not any(path.name.startswith(".tmp-") for path in out.parent.iterdir() if out.parent.is_dir())
    return str(caught.value)


def test_what_cannot_be_prepared_is_said_in_one_line(mailbox, tmp_path):
    (tmp_path / "file").write_text("not mail")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    out = tmp_path / "out"
    assert "does not exist" in refused([tmp_path / "nothing"], out)
    assert "not a mail source" in refused([tmp_path / "file"], out)
    assert "no mail source" in refused([], out)
    assert "not empty" in refused([mailbox], tmp_path / "full")
    assert "lies in the mail source" in refused([mailbox], mailbox / "out")
    with pytest.raises(UserError, match="cannot write"):
        prepare([mailbox], tmp_path / "file" / "out")
    assert not out.exists()


def test_mail_without_a_label_is_said_in_one_line(mailbox, tmp_path):
    shutil.rmtree(mailbox / "day-c")
    for folder in ("inbox", "deleted_items", "trees", "calendar"):
        shutil.rmtree(mailbox / "low-a" / folder)
    assert "none of them received" in refused([mailbox], tmp_path / "out")
    shutil.rmtree(mailbox / "low-a")
    (mailbox / "low-a" / "inbox").mkdir(parents=True)
    assert "holds no files" in refused([mailbox], tmp_path / "out")
    (mailbox / "low-a" / "inbox" / "1.").write_bytes(b"no mail")
    assert "none of 1 files is a message" in refused([mailbox], tmp_path / "out")
    (mailbox / "low-a" / "inbox" / "1.").write_bytes(b"From: a@x.org\n\nhi")
    assert "none with a usable date" in refused([mailbox], tmp_path / "out")
    with pytest.raises(DataError):
        prepare([mailbox], tmp_path / "out")


def test_an_owner_larger_than_a_row_group_and_than_the_spools_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_email.labels.spool.BUFFER_BYTES", 10_000)
    monkeypatch.setattr("mlx_email.labels.tables.GROUP_ROWS", 64)
    assert GROUP_ROWS > 64
    for number in range(150):
        folder = tmp_path / "maildir" / ("low-a", "day-c")[number % 2] / "inbox"
        folder.mkdir(parents=True, exist_ok=True)
        body = f"letter {number} " * 20
        (folder / f"{number}.").write_bytes(
            mail(1 + number % 28, number % 24, "b@y.org", "a@x.org", f"s{number}", body)
        )
    prepared = prepare([tmp_path / "maildir"], tmp_path / "out")
    assert (prepared.labelled, prepared.owners) == (150, 2)
    table = pq.ParquetFile(tmp_path / "out" / "features.parquet")
    assert [table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)] == [64, 64, 22]
    rows = list(read_rows(tmp_path / "out" / "features.parquet"))
    assert [row.user for row in rows] == ["day-c"] * 75 + ["low-a"] * 75
    for owner in ("day-c", "low-a"):
        dates = {split: [r.date for r in rows if r.user == owner and r.split == split] for split in ("train", "test")}
        assert max(dates["train"]) <= min(dates["test"])


def test_people_of_another_table_are_refused(mailbox, tmp_path):
    prepare([mailbox], tmp_path / "out")
    with pytest.raises(DataError, match="columns user, sender, people_score"):
        read_people(tmp_path / "out" / "features.parquet")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_people(tmp_path / "out" / "prepare.json")
