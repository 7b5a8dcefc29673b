"""Features read the message and what came before it; nothing else, whatever happens later."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlx_email.labels.actions import Outcome, find_actions
from mlx_email.labels.duplicates import unique
from mlx_email.labels.features import text_features
from mlx_email.labels.owners import find_owner
from mlx_email.labels.people import people_scores
from mlx_email.labels.prepare import features_of, label_owner
from mlx_email.labels.split import split_by_time
from mlx_email.mail.message import Message

# Made from the outcome, so from what comes later; all other columns are not.
OUTCOME_COLUMNS = {"action", "response_time_hours", "priority_target", "label_quality", "split"}


def message(body: str, **fields) -> Message:
    return Message(**({"message_id": "<1>", "sender": "bob@y.org", "to": ("ann@x.org",), "body": body} | fields))


@pytest.mark.parametrize(
    ("body", "question", "request_"),
    [
        ("Where is it?", True, False),
        ('He said "when?" Then left.', True, False),
        ("See http://x.org/a?b=c for more.", False, False),
        ("Could you send it?", True, True),
        ("Please send it.", False, True),
        ("Please find attached the report.", False, False),
        ("Let me know.", False, True),
        ("Thanks.", False, False),
        (
            "Thanks.\n\n-----Original Message-----\nFrom: x\nCould you send it?",
            False,
            False,
        ),  # asked before, by another
        ("-----Original Message-----\nFrom: x\nCould you send it?", True, True),  # a forward without a word
    ],
)
def test_questions_and_requests(body, question, request_):
    found = text_features(message(body))
    assert (found.is_question, found.is_action_request) == (question, request_)


def test_urgency_is_the_documented_sum():
    many = tuple(f"p{n}@x.org" for n in range(21))
    five = many[:5]
    assert text_features(message("Hello.", to=five)).urgency == 0.35
    assert text_features(message("Hello.")).urgency == 0.45
    assert text_features(message("Needed today.", to=five)).urgency == 0.65
    assert text_features(message("Please call.", to=five)).urgency == 0.50
    assert text_features(message("Where?", to=five)).urgency == 0.45
    assert text_features(message("Hello.", to=many)).urgency == 0.10
    assert text_features(message("URGENT: could you reply today?")).urgency == 1.0
    assert text_features(message("To unsubscribe, write to us.", to=five)).urgency == 0.10


def scores(messages) -> list[float]:
    mails = unique(messages)
    outcomes = find_actions(mails, find_owner(mails))
    by_index, _ = people_scores(mails, outcomes)
    return [by_index[index] for index in sorted(by_index)]


def test_a_stranger_scores_half_and_silence_counts_after_three_days(letter):
    own = letter(0, "sent", "Hello", to=("cy@y.org",))
    hours = (1, 71, 72, 74, 24 * 7)
    received = [letter(at, subject=f"s{at}") for at in hours]
    # By hour 74 one message has lain for 72 h; after a week all four: 1 / (2 + 4).
    assert scores([own, *received]) == [0.5, 0.5, 0.5, 0.3333, 0.1667]


def test_a_reply_counts_from_its_sending(letter):
    asked, reply = letter(0), letter(10, "sent", "RE: Budget")
    before, after = letter(9.9, subject="a"), letter(10.1, subject="b")
    # One message, answered after 10 h: (1 + 0.5 + 0.5 exp(-10/24)) / 3.
    assert scores([asked, reply, before, after]) == [0.5, 0.5, 0.6099]


def test_a_late_reply_turns_silence_into_interest(letter):
    asked, reply = letter(0), letter(100, "sent", "RE: Budget")
    assert scores([asked, reply, letter(80, subject="a"), letter(101, subject="b")]) == [0.5, 0.3333, 0.5026]


def test_scores_at_the_end_count_what_was_seen_by_then(letter):
    """Bob was answered after an hour; Cy's silence is three days old; Dee's letter is still open."""
    answered = [letter(0), letter(1, "sent", "RE: Budget")]
    open_ = [letter(28, subject="x", sender="cy@y.org"), letter(100, subject="y", sender="dee@y.org")]
    mails = unique([*answered, *open_])
    _, people = people_scores(mails, find_actions(mails, find_owner(mails)))
    assert people == {"bob@y.org": 0.6599, "cy@y.org": 0.3333}


def random_mailbox(seed: int, letter) -> list[Message]:
    """60 messages in 40 days among three people, on four subjects, some answered, forwarded, deleted."""
    rng = random.Random(seed)
    people = ("bob@y.org", "cy@y.org", "dee@z.org")
    mailbox = [letter(-1, "sent", "Hello")]
    for _ in range(60):
        other, subject = rng.choice(people), rng.choice(("Oak", "Elm", "Ash", "Yew"))
        at = rng.uniform(0, 960)
        if rng.random() < 0.4:
            mark = rng.choice(("RE: ", "FW: ", ""))
            mailbox.append(letter(at, "sent", mark + subject, to=(other,)))
        else:
            folder = rng.choice(("inbox", "deleted_items"))
            mailbox.append(letter(at, folder, rng.choice(("RE: ", "")) + subject, sender=other))
    return mailbox


def known_then(messages) -> dict[str, dict]:
    """Message id -> the columns that must not depend on what comes later."""
    rows = label_owner(unique(messages)).rows
    return {
        row["message_id"]: {name: value for name, value in row.items() if name not in OUTCOME_COLUMNS}
        for row in rows
        if row["action"] is not None
    }


def rewrite(message: Message, rng: random.Random) -> Message:
    """Another future: this message becomes one of the owner's, to somebody about something."""
    to = (rng.choice(("bob@y.org", "cy@y.org")),)
    subject = rng.choice(("RE: Oak", "FW: Elm"))
    return replace(message, subject=subject, body="rewritten", folder="sent", sender="ann@x.org", to=to)


@pytest.mark.parametrize("seed", range(25))
def test_a_changed_future_changes_no_earlier_feature(letter, seed):
    """Later messages deleted, or rewritten: every earlier row has the same features."""
    mailbox = random_mailbox(seed, letter)
    cut = sorted(m.date for m in mailbox)[30 + seed]
    past = [m for m in mailbox if m.date <= cut]
    rng = random.Random(seed)
    changed = [m if m.date <= cut else rewrite(m, rng) for m in mailbox]
    whole, cut_off, rewritten = known_then(mailbox), known_then(past), known_then(changed)
    assert len(cut_off) > 5
    assert cut_off == {name: row for name, row in whole.items() if name in cut_off}
    assert cut_off == {name: row for name, row in rewritten.items() if name in cut_off}


@given(st.lists(st.integers(0, 10**6), max_size=300))
def test_the_split_is_by_time(hours):
    dates = sorted(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in hours)
    splits = split_by_time(dates)
    assert splits == sorted(splits, key=("train", "validation", "test").index)
    assert abs(splits.count("train") - 0.7 * len(dates)) <= 1
    assert abs(splits.count("test") - 0.2 * len(dates)) <= 1


def test_a_fresh_message_is_a_row(letter):
    fresh = letter(None, sender="bob@y.org", body="Could you send it today?", owner="")
    row = features_of(fresh, {("low-a", "bob@y.org"): 0.8, ("low-a", "cy@y.org"): 0.1})
    assert (row.user, row.sender, row.people_score) == ("low-a", "bob@y.org", 0.8)
    assert (row.urgency, row.is_question, row.is_action_request) == (1.0, True, True)
    assert row.date == datetime(1970, 1, 1, tzinfo=UTC)
    assert features_of(replace(fresh, sender="new@y.org"), {("low-a", "cy@y.org"): 0.1}).people_score == 0.5
    assert features_of(fresh, {}).people_score == 0.5


def test_a_fresh_message_and_a_prepared_one_have_the_same_features(letter):
    mail = letter(0, body="Please send it.\n\n> when?")
    (row,) = (row for row in label_owner(unique([mail])).rows)
    fresh = features_of(mail, {})
    assert all(row[name] == getattr(fresh, name) for name in ("urgency", "is_question", "is_action_request", "body"))


def test_undated_mail_is_no_feature_row(letter):
    labelled = label_owner(unique([letter(0), letter(None)]))
    assert [row["action"] for row in labelled.rows] == ["archived", None]
    assert labelled.received == 2


def test_interest_of_outcomes_is_bounded():
    from mlx_email.labels.people import interest

    assert 0.5 < interest(Outcome("replied", None, 1.0)) < 1.0
    assert interest(Outcome("archived")) == 0.0
