"""Sources to tables: whole, private, the same every time, and every file accounted for."""

import json
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlx_email import files
from mlx_email.errors import DataError, MlxEmailError, UserError
from mlx_email.labels import prepare as module
from mlx_email.labels.mailbox import label_owner
from mlx_email.labels.prepare import Options, Prepared, prepare
from mlx_email.labels.schema import COLUMNS, read_rows
from mlx_email.labels.tables import GROUP_ROWS, read_people
from mlx_email.mail.read import read_message

TABLES = ("features.parquet", "manifest.json", "messages.parquet", "people.parquet", "prepare.json", "rejected.jsonl")


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
    contents: dict[str, bytes] = {
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
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "low-a/inbox/7.").symlink_to("1.")
    return root


def test_the_tables_of_a_small_mailbox(mailbox, tmp_path):
    done: list[tuple[str, int, int]] = []
    prepared = prepare([mailbox], tmp_path / "out", progress=lambda *more: done.append(more))
    assert prepared == Prepared(
        files=14,
        rejected={"empty file": 1, "no mail header": 1, "symbolic link": 1},
        duplicates=1,
        not_mail=1,
        messages=9,
        owners=2,
        sent=3,
        received=6,
        undated=1,
        labelled=5,
        actions={"archived": 2, "deleted": 1, "forwarded": 1, "replied": 1},
        label_quality={"good": 3, "kept_late": 1, "no_trash": 1},
        splits={"test": 1, "train": 4},
        straddling={"test": 0, "train": 0},
    )
    assert (
        prepared.files == sum(prepared.rejected.values()) + prepared.duplicates + prepared.not_mail + prepared.messages
    )
    size = sum(path.stat().st_size for path in mailbox.rglob("*") if path.is_file() and not path.is_symlink())
    for what, total in (("read", size), ("label", 11)):
        assert sum(more for done_what, more, _ in done if done_what == what) == total
        assert {given for done_what, _, given in done if done_what == what} == {total}

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
    people = read_people(out / "people.parquet")
    assert set(people) == {("day-c", "ann@x.org"), ("low-a", "bob@y.org")}
    bob = people["low-a", "bob@y.org"]  # the three weeks' mail of the calendar and the undated do not count
    assert (bob.history_messages, bob.history_answered, bob.history_forwarded, bob.history_kept) == (4, 1, 1, 0)
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


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("step", ["read_message", "label_owner", "write_people"])
def test_a_full_disk_leaves_no_table_and_says_how_to_go_on(mailbox, tmp_path, monkeypatch, step):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(module, step, fail)
        with pytest.raises(MlxEmailError, match=r"No space left.*the same command goes on"):
            prepare([mailbox], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert left(tmp_path) == [".prepare-out"]
    prepare([mailbox], tmp_path / "out")
    prepare([mailbox], tmp_path / "never-failed")
    assert left(tmp_path) == []
    assert digests(tmp_path / "out") == digests(tmp_path / "never-failed")


@pytest.mark.parametrize("step", ["read_chunk", "label_shard"])
def test_what_was_done_before_a_kill_is_not_done_again(mailbox, tmp_path, monkeypatch, step):
    """Killed at the second call: the chunk or shard of the first is there, and only the others are made anew."""
    monkeypatch.setattr(module, "CHUNK_FILES", 4)
    prepare([mailbox], tmp_path / "never-killed")
    work, calls = getattr(module, step), []

    def killed(*task):
        calls.append(task[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*task)

    monkeypatch.setattr(module, step, killed)
    with pytest.raises(KeyboardInterrupt):
        prepare([mailbox], tmp_path / "out")
    calls = []
    monkeypatch.setattr(module, step, lambda *task: calls.append(task[1]) or work(*task))
    again = []
    monkeypatch.setattr(module, "read_message", lambda *a, **k: again.append(1) or read_message(*a, **k))
    monkeypatch.setattr(module, "label_owner", lambda *a, **k: again.append(1) or label_owner(*a, **k))
    prepare([mailbox], tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "never-killed")
    if step == "read_chunk":
        assert calls == [1, 2, 3]
    else:
        assert len(again) == 1  # the other owner; nothing was read again


def test_another_job_does_not_go_on_from_what_is_left(mailbox, tmp_path, monkeypatch):
    """Changed mail, or other options: what lies there is thrown away."""
    with monkeypatch.context() as broken:
        broken.setattr(module, "_write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare([mailbox], tmp_path / "out")
    (mailbox / "low-a/inbox/9.").write_bytes(mail(8, 9, "bob@y.org", "ann@x.org", "Box", "New."))
    assert prepare([mailbox], tmp_path / "out").files == 15
    with monkeypatch.context() as broken:
        broken.setattr(module, "_write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare([mailbox / "low-a"], tmp_path / "second")
    again = []
    monkeypatch.setattr(module, "read_message", lambda *a, **k: again.append(1) or read_message(*a, **k))
    prepare([mailbox / "low-a"], tmp_path / "second", Options(owner=("ann@x.org",)))
    assert len(again) == 12


@pytest.mark.parametrize("kind", ["done", "letters", "bodies", "shard", "rows"])
def test_what_lost_its_end_is_made_again(mailbox, tmp_path, monkeypatch, kind):
    """A computer that loses its power leaves files shorter than they were written."""
    with monkeypatch.context() as broken:
        broken.setattr(module, "_write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare([mailbox], tmp_path / "out")
    damaged = sorted((tmp_path / ".prepare-out").glob(f"*.{kind}"))
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    prepare([mailbox], tmp_path / "out")
    prepare([mailbox], tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_sources_in_another_order_give_the_same_tables(tmp_path):
    """Two exports of one mailbox with files of the same names: copies with other headers, and other mail of one id."""
    for number, name in enumerate(("one", "two")):
        box = tmp_path / name / "Inbox"
        box.mkdir(parents=True)
        copy = mail(1, 9, "bob@y.org", "ann@x.org", "Oak", "Can we buy the oak?")
        (box / "1.eml").write_bytes(copy.replace(b"<1.9", f"<{number}.copy".encode()))
        (box / "2.eml").write_bytes(mail(2, 9, "bob@y.org", "ann@x.org", "Elm", f"The body number {number}."))
    prepare([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    prepare([tmp_path / "two", tmp_path / "one"], tmp_path / "turned")
    assert digests(tmp_path / "out") == digests(tmp_path / "turned")


def test_an_answer_may_name_any_copy_by_its_id(tmp_path):
    box = tmp_path / "mail"
    for folder in ("Inbox", "Archive", "Sent"):
        (box / folder).mkdir(parents=True)
    asked = mail(1, 9, "bob@y.org", "ann@x.org", "Oak", "Can we buy the oak?")
    (box / "Inbox/1.eml").write_bytes(asked)
    (box / "Archive/1.eml").write_bytes(asked.replace(b"<1.9", b"<gateway"))
    answer = mail(1, 11, "ann@x.org", "bob@y.org", "About trees", "Yes.")
    (box / "Sent/1.eml").write_bytes(answer.replace(b"\r\n\r\n", b"\r\nIn-Reply-To: <1.9.bob@y.org>\r\n\r\n"))
    assert prepare([box], tmp_path / "out").actions == {"replied": 1}


def test_an_owner_who_wrote_nothing_is_pointed_out(mailbox, tmp_path, capsys):
    prepared = prepare([mailbox / "low-a"], tmp_path / "mine")
    assert (prepared.addresses, module.advice(prepared)) == (["ann@x.org"], "")
    shutil.rmtree(mailbox / "low-a/sent_items")
    received = prepare([mailbox / "low-a"], tmp_path / "received")
    assert module.advice(received).startswith("no mail of the owner's in 5 messages (ann@x.org wrote nothing of it)")
    typo = prepare([mailbox / "low-a"], tmp_path / "typo", Options(owner=("ann@x.orgg",)))
    assert "(ann@x.orgg wrote nothing of it), so no reply is seen: give --owner" in module.advice(typo)
    with pytest.raises(UserError, match="'Ann Low' is not an address"):
        prepare([mailbox / "low-a"], tmp_path / "name", Options(owner=("Ann Low",)))


def test_a_disk_that_is_full_when_the_tables_come_keeps_the_work(mailbox, tmp_path, monkeypatch):
    honest = Path.mkdir

    def full(path, *a, **k):
        if path.name.startswith(files.TEMPORARY):
            raise OSError(28, "No space left on device")
        honest(path, *a, **k)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "mkdir", full)
        with pytest.raises(MlxEmailError) as caught:
            prepare([mailbox], tmp_path / "out")
    assert caught.value.exit_code == 1
    assert list((tmp_path / ".prepare-out").glob("*.shard"))
    assert prepare([mailbox], tmp_path / "out").labelled == 5


def test_a_subject_that_everybody_answers_is_compared_with_few(letter, monkeypatch):
    """Linear: of 3,000 letters of one subject, each answered, an answer looks at no more than the latest 50."""
    from mlx_email.labels import answers
    from mlx_email.labels.duplicates import mails_of

    looked, honest = [], answers._first_quoted
    monkeypatch.setattr(
        answers,
        "_first_quoted",
        lambda mail, found, own, index: looked.append(len(found)) or honest(mail, found, own, index),
    )
    received = [letter(0.01 * n) for n in range(3000)]
    replies = [letter(0.01 * n + 0.005, "sent", "RE: Budget") for n in range(3000)]
    labelled = label_owner(mails_of([*received, *replies]))
    assert sum(label.outcome.action == "replied" for label in labelled.labels.values()) == 3000
    assert max(looked) <= 50


def test_two_at_once_are_told_apart(mailbox, tmp_path):
    with files.locked(tmp_path / ".prepare-out"), pytest.raises(UserError, match="in use by process"):
        prepare([mailbox], tmp_path / "out")


def test_given_addresses_decide_who_the_owner_is(mailbox, tmp_path):
    (mailbox / "low-a/inbox/8.").write_bytes(mail(8, 9, "ann.low@home.org", "ann@x.org", "Shopping", "Milk."))
    assert prepare([mailbox / "low-a"], tmp_path / "inferred").received == 6
    mine = Options(owner=("ann@x.org", "Ann.Low@home.org"))
    assert prepare([mailbox / "low-a"], tmp_path / "given", mine).received == 5
    rows = pq.read_table(tmp_path / "given" / "messages.parquet")
    assert set(rows["user"].to_pylist()) == {"low-a"}
    with pytest.raises(UserError, match="names one person, but the sources hold the mailboxes of 2"):
        prepare([mailbox], tmp_path / "two", mine)


def refused(sources: list[Path], out: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(sources, out)
    assert "\n" not in str(caught.value)
    assert not out.parent.is_dir() or not left(out.parent)
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
    assert "are the owner's own" in refused([mailbox], tmp_path / "out")
    shutil.rmtree(mailbox / "low-a")
    (mailbox / "low-a" / "inbox").mkdir(parents=True)
    assert "holds no files" in refused([mailbox], tmp_path / "out")
    (mailbox / "low-a" / "inbox" / "1.").write_bytes(b"no mail")
    assert "none of 1 files is a message" in refused([mailbox], tmp_path / "out")
    (mailbox / "low-a" / "inbox" / "1.").write_bytes(b"From: a@x.org\n\nhi")
    assert "none with a usable date" in refused([mailbox], tmp_path / "out")
    with pytest.raises(DataError):
        prepare([mailbox], tmp_path / "out")


def test_an_owner_larger_than_a_row_group_and_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr("mlx_email.labels.tables.BATCH_ROWS", 10)
    monkeypatch.setattr("mlx_email.labels.tables.GROUP_ROWS", 64)
    assert GROUP_ROWS > 64
    for number in range(150):
        folder = tmp_path / "maildir" / ("low-a", "day-c")[number % 2] / "inbox"
        folder.mkdir(parents=True, exist_ok=True)
        body = " ".join(f"{word}{chr(97 + number % 26)}{chr(97 + number // 26)}" for word in ("oak", "elm", "ash") * 20)
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


def test_two_workers_write_the_same_bytes_as_one(mailbox, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_FILES", 3)
    monkeypatch.setattr(module, "SMALL", 0)
    one = prepare([mailbox], tmp_path / "one", count=1)
    assert prepare([mailbox], tmp_path / "two", count=2) == one
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_what_straddles_or_repeats_across_a_border(tmp_path):
    """Ten letters: seven for training, one for validation, two to test. The last but one goes on from a thread of the
    training mail: kept and marked. The last repeats a training body with other numbers: dropped, and counted."""
    report = "The pumps of the northern station ran well this week and delivered {} barrels without a stop, says Roy."
    bodies = [f"Letter number {word}: nothing in it is like another, as {word} {word[::-1]} goes." for word in WORDS]
    subjects = [f"About {word}" for word in WORDS]
    bodies[2], bodies[9] = report.format(1200), report.format(1350)
    subjects[8] = f"Re: {subjects[3]}"
    for number, (subject, body) in enumerate(zip(subjects, bodies, strict=True)):
        path = tmp_path / f"maildir/low-a/inbox/{number}."
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mail(1 + number, 9, "bob@y.org", "ann@x.org", subject, body))
    prepared = prepare([tmp_path / "maildir"], tmp_path / "out")
    assert (prepared.labelled, prepared.repeated, prepared.splits) == (9, 1, {"test": 1, "train": 7, "validation": 1})
    assert prepared.straddling == {"test": 1, "train": 0, "validation": 0}
    rows = list(read_rows(tmp_path / "out" / "features.parquet"))
    assert [row.date for row in rows] == sorted(row.date for row in rows)
    assert [row.subject for row in rows if row.straddles] == [subjects[8]]
    assert subjects[9] not in {row.subject for row in rows}
    everything = pq.read_table(tmp_path / "out" / "messages.parquet").to_pylist()
    assert [row["split"] for row in everything][-2:] == ["test", None]


def test_without_the_check_a_repeated_body_stays(tmp_path, monkeypatch):
    """The planted twin of the test above."""
    monkeypatch.setattr("mlx_email.labels.split.near_duplicates", lambda earlier, later: [False] * len(later))
    with pytest.raises(AssertionError):
        test_what_straddles_or_repeats_across_a_border(tmp_path)


WORDS = "amber basalt cobalt dolomite emerald feldspar garnet hematite indigo jasper".split()


def rewritten(table: pa.Table, path: Path) -> Path:
    pq.write_table(table, path)
    return path


def test_a_table_of_another_version_names_the_column(mailbox, tmp_path):
    """A missing column, one of another type, an unknown value: refused by name. One more is no harm."""
    prepare([mailbox], tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "features.parquet")
    place = table.schema.get_field_index
    missing = rewritten(table.drop_columns(["history_kept"]), tmp_path / "missing.parquet")
    retyped = table.set_column(place("urgency"), "urgency", table["urgency"].cast(pa.float64()))
    unknown = table.set_column(place("action"), "action", pa.array(["eaten"] * len(table)))
    more = table.append_column("weather", pa.array(["fair"] * len(table)))
    with pytest.raises(DataError, match="no column 'history_kept'"):
        list(read_rows(missing))
    with pytest.raises(DataError, match="column 'urgency' is double, not float"):
        list(read_rows(rewritten(retyped, tmp_path / "retyped.parquet")))
    with pytest.raises(DataError, match=r"Invalid enum value 'eaten'.*action"):
        list(read_rows(rewritten(unknown, tmp_path / "unknown.parquet")))
    assert len(list(read_rows(rewritten(more, tmp_path / "more.parquet")))) == 5
