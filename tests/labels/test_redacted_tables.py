"""`prepare --redact`, from files to tables: nothing planted is in anything that was written or said."""

import base64
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from mlx_email.errors import MlxEmailError
from mlx_email.labels.prepare import Options, prepare
from mlx_email.labels.schema import read_rows

OWNER, FRIEND = "ann.marlowe@fjord.example", "bertil.quist@glacier.example"
SECRETS = {
    "addresses": ["ann.marlowe", "bertil.quist", "fjord.example", "glacier.example", "carla@moraine.example"],
    "names": ["Marlowe", "Bertil", "Quist", "marlowe-a"],
    "numbers": ["555-0142", "5550142", "4111 1111 1111 1111", "4111111111111111", "078-05-1120"],
    "links": ["token=topsecret", "ticket-4711"],
    "files": ["letter-to-bertil"],
}

BODY = """Dear Ann Marlowe,
call me at (713) 555-0142, or write to carla@moraine.example; my card is 4111 1111 1111 1111 and my number 078-05-1120.
See http://fjord-portal.example/list?token=topsecret#ticket-4711
Bertil Quist
"""


def mail(number: int, sender: str, to: str, subject: str, body: str, extra: str = "") -> bytes:
    return (
        f"Message-ID: <{number}.quist@glacier.example>\nDate: {number} Jan 2026 09:00:00 +0000\n"
        f"From: {sender}\nTo: {to}\n"
        f"Subject: {subject}\n{extra}\n{body}"
    ).encode()


@pytest.fixture
def mailbox(tmp_path) -> Path:
    """Ann's mailbox: secrets in names, headers, encoded words, bodies, quotes, HTML and file names."""
    ann, bob = f"Ann Marlowe <{OWNER}>", f'"Quist, Bertil" <{FRIEND}>'
    encoded = f"=?utf-8?b?{base64.b64encode(b'For Bertil Quist, 713-555-0142').decode()}?="
    quoted = (
        "Yes.\n\nOn Monday, Bertil Quist <bertil.quist@glacier.example> wrote:\n> call me at 713-555-0142\n> Bertil"
    )
    html = "Content-Type: text/html\n"
    contents = {
        "marlowe-a/inbox/1.": mail(1, bob, ann, "Hello from Bertil", BODY),
        "marlowe-a/sent/1.": mail(
            2, ann, bob, "Re: Hello from Bertil", quoted, "In-Reply-To: <1.quist@glacier.example>\n"
        ),
        "marlowe-a/inbox/2.": mail(3, bob, ann, encoded, f"<p>Ann, <b>ring</b> 713.555.0142<br>{FRIEND}</p>", html),
        "marlowe-a/inbox/3.": mail(
            4, bob, ann, "Oak", "Nothing to hide at 10:30 on 5/16/2026, version 1.2.3, 1,500 barrels."
        ),
        "marlowe-a/inbox/letter-to-bertil": b"no mail at all, says Bertil Quist",
    }
    for name, data in contents.items():
        (tmp_path / "maildir" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "maildir" / name).write_bytes(data)
    return tmp_path / "maildir"


def written(folder: Path) -> str:
    """All that a reader of the tables can see, in one text."""
    texts = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts += [repr(table.to_pylist()), repr(table.schema.metadata)]
        else:
            texts.append(path.read_text())
    return "\n".join(texts)


def found(text: str) -> list[str]:
    return [secret for secrets in SECRETS.values() for secret in secrets if secret.lower() in text.lower()]


def test_nothing_planted_is_written(mailbox, tmp_path):
    plain, redacted = tmp_path / "plain", tmp_path / "redacted"
    counts = prepare([mailbox], plain)
    assert prepare([mailbox], redacted, Options(redact=True)) == msgspec.structs.replace(counts, addresses=[])
    assert counts.addresses == [OWNER]
    missing = {secret for secrets in SECRETS.values() for secret in secrets} - set(found(written(plain)))
    assert missing <= {"5550142", "4111111111111111"}  # the twin: unredacted, all the others are there
    assert found(written(redacted)) == []


def test_placeholders_are_the_same_throughout_and_harmless_text_stays(mailbox, tmp_path):
    prepare([mailbox], tmp_path / "out", Options(redact=True))
    rows = list(read_rows(tmp_path / "out" / "features.parquet"))
    assert {row.user for row in rows} == {"owner-1"}
    assert len({row.sender for row in rows}) == 1
    assert rows[0].sender.endswith(".invalid")
    assert rows[-1].body == "Nothing to hide at 10:30 on 5/16/2026, version 1.2.3, 1,500 barrels."
    people = pq.read_table(tmp_path / "out" / "people.parquet").to_pylist()
    assert [(row["user"], row["sender"]) for row in people] == [("owner-1", rows[0].sender)]
    messages = pq.read_table(tmp_path / "out" / "messages.parquet").to_pylist()
    reply = next(row for row in messages if row["in_reply_to"])
    assert reply["in_reply_to"] == rows[0].message_id
    assert rows[0].action == "replied"


def test_no_error_says_what_was_planted(mailbox, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_email.labels.prepare.write_shard", fail)
    with pytest.raises(MlxEmailError) as caught:
        prepare([mailbox], tmp_path / "out", Options(redact=True))
    assert found(str(caught.value)) == []
