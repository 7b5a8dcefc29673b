"""The synthetic mailbox: real files, a known rule, no shortcut to the labels."""

import email
import json
import re
from collections import Counter
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from mlx_email.errors import DataError, UserError
from mlx_email.labels.schema import ACTIONS, REPLY_NOW_HOURS, Row
from mlx_email.synth.mailbox import best_possible, write_mailbox

NOISE = 0.08
MESSAGES = 2000


@pytest.fixture(scope="module")
def mailbox(tmp_path_factory):
    return write_mailbox(tmp_path_factory.mktemp("synth") / "box", messages=MESSAGES, noise=NOISE, seed=3)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def messages_of(mailbox) -> list[tuple[Path, email.message.Message]]:
    files = sorted(path for path in mailbox.path.rglob("*") if path.is_file())
    return [(path, email.message_from_bytes(path.read_bytes())) for path in files]


def bare(subject: str) -> str:
    return re.sub(r"^(RE|FW): ", "", subject)


def observed(mailbox) -> dict[tuple[str, str], tuple[str, float]]:
    """(action, hours) of every (user, id), found in the files alone by the rule of the reference labels."""
    mail = messages_of(mailbox)
    sent = [(p, m) for p, m in mail if p.parent.name == "sent_items"]
    answers: dict[tuple[str, str], list] = {}
    for path, message in sent:
        answers.setdefault((path.parts[-3], bare(message["Subject"])), []).append(message)
    found = {}
    for path, message in mail:
        if path.parent.name == "sent_items":
            continue
        user, date = path.parts[-3], parsedate_to_datetime(message["Date"])
        action, hours = "delete" if path.parent.name == "deleted_items" else "archive", 0.0
        for answer in answers.get((user, bare(message["Subject"])), ()):
            late = (parsedate_to_datetime(answer["Date"]) - date).total_seconds() / 3600
            if not 0 <= late <= 30 * 24 or message.get_payload() not in answer.get_payload():
                continue
            if answer["Subject"].startswith("RE: ") and message["From"] in answer["To"]:
                action, hours = "reply_now" if late < REPLY_NOW_HOURS else "reply_later", late
            elif answer["Subject"].startswith("FW: ") and message["From"] not in answer["To"]:
                action, hours = "forward", late
        found[user, message["Message-ID"]] = action, hours
    return found


def test_same_arguments_same_bytes_and_another_seed_another_mailbox(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_mailbox(tmp_path / name, messages=60, noise=0.1, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_the_counts_are_those_of_the_files(mailbox):
    mail = messages_of(mailbox)
    sent = sum(path.parent.name == "sent_items" for path, _ in mail)
    assert (mailbox.received, mailbox.sent) == (MESSAGES, sent)
    assert len(mail) == MESSAGES + sent
    assert sorted(mailbox.owners) == sorted(path.name for path in mailbox.path.iterdir())
    assert sum(mailbox.actions.values()) == MESSAGES


def test_every_action_is_frequent_and_none_has_a_majority(mailbox):
    shares = {action: mailbox.actions[action] / MESSAGES for action in ACTIONS}
    assert min(shares.values()) > 0.10
    assert 0.26 < max(shares.values()) < 0.37


def test_what_the_owners_did_can_be_found_in_the_files_alone(mailbox):
    found = observed(mailbox)
    assert len(found) == MESSAGES
    assert Counter(action for action, _ in found.values()) == mailbox.actions


def test_the_rule_is_followed_but_for_the_noise(mailbox):
    lines = [json.loads(line) for line in mailbox.rule_file.read_text().splitlines()]
    found = observed(mailbox)
    followed = sum(found[line["user"], line["message_id"]][0] == line["best"] for line in lines) / MESSAGES
    assert followed == mailbox.best_possible
    assert abs(followed - (1 - NOISE)) < 0.02  # more than three standard deviations of 2,000 draws


def test_no_response_time_is_near_the_border_or_beyond_the_window(mailbox):
    hours = {action: [h for a, h in observed(mailbox).values() if a == action] for action in ACTIONS}
    assert min(hours["reply_now"]) > 0 and max(hours["reply_now"]) < 3.5
    assert min(hours["reply_later"]) > 5.5 and max(hours["reply_later"]) < 20 * 24
    assert max(hours["forward"]) < 30 * 24


def test_answers_quote_the_original_as_outlook_does(mailbox):
    answers = [
        m for p, m in messages_of(mailbox) if p.parent.name == "sent_items" and m["Subject"][:4] in ("RE: ", "FW: ")
    ]
    assert len(answers) > 500
    for message in answers:
        body = message.get_payload()
        assert " -----Original Message-----\nFrom: \t" in body
        assert "\nSent:\t" in body and "\nTo:\t" in body and "\nSubject:\t" in body


def test_some_mail_answers_the_owner_and_the_owner_wrote_before(mailbox):
    mail = messages_of(mailbox)
    first = {(p.parts[-3], m["Subject"], m["To"]): m for p, m in mail if p.parent.name == "sent_items"}
    follow_ups = [(p, m) for p, m in mail if p.parent.name != "sent_items" and m["Subject"].startswith("RE: ")]
    assert 0.01 < len(follow_ups) / MESSAGES < 0.06
    for path, message in follow_ups:
        start = first[path.parts[-3], bare(message["Subject"]), message["From"]]
        assert parsedate_to_datetime(start["Date"]) < parsedate_to_datetime(message["Date"])


def test_all_addresses_are_reserved_ones(mailbox):
    for name, data in tree(mailbox.path).items():
        for address in re.findall(rb"[\w.]+@([\w.]+)", data):
            assert address.endswith(b".example"), name


def test_subject_and_sender_name_a_message_of_an_owner(mailbox):
    received = [(p, m) for p, m in messages_of(mailbox) if p.parent.name != "sent_items"]
    keys = {(p.parts[-3], bare(m["Subject"]).casefold(), m["From"]) for p, m in received}
    assert len(keys) == len(received)


def test_best_possible_on_rows_of_a_split(mailbox):
    observed_as = {"reply_now": "replied", "reply_later": "replied", "forward": "forwarded"}
    observed_as |= {"archive": "archived", "delete": "deleted"}
    lines = [json.loads(line) for line in mailbox.rule_file.read_text().splitlines()][:10]

    def row(line, action):
        hours = {"reply_now": 1.0, "reply_later": 9.0}.get(action)
        # An ingest may hand over the id without its brackets.
        return Row(
            message_id=line["message_id"].strip("<>"),
            user=line["user"],
            date=datetime(2001, 7, 1),
            sender="a@b.example",
            action=observed_as[action],
            response_time_hours=hours,
        )

    rows = [row(line, line["best"]) for line in lines[:7]]
    rows += [row(line, "delete" if line["best"] != "delete" else "archive") for line in lines[7:]]
    assert best_possible(mailbox.rule_file, rows) == 0.7
    with pytest.raises(DataError, match="no rows"):
        best_possible(mailbox.rule_file, [])
    with pytest.raises(DataError, match="another mailbox"):
        best_possible(mailbox.rule_file, [row({"message_id": "<x>", "user": "y"}, "archive")])


@pytest.mark.parametrize(("messages", "noise"), [(4, 0.1), (100, 1.5), (100, -0.1)])
def test_impossible_wishes_are_refused(tmp_path, messages, noise):
    with pytest.raises(UserError):
        write_mailbox(tmp_path / "box", messages=messages, noise=noise, seed=0)


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "letter").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        write_mailbox(tmp_path, messages=10, noise=0.0, seed=0)
    assert tree(tmp_path) == {"letter": b"mine"}


def test_without_noise_the_rule_is_always_followed(tmp_path):
    assert write_mailbox(tmp_path / "box", messages=50, noise=0.0, seed=0).best_possible == 1.0
