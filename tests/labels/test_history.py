"""Features read the message and what came before it; nothing else, whatever happens later."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mlx_email.labels.actions import find_actions
from mlx_email.labels.duplicates import mails_of
from mlx_email.labels.features import text_features
from mlx_email.labels.fresh import features_of
from mlx_email.labels.mailbox import label_owner
from mlx_email.labels.owners import find_owner
from mlx_email.labels.people import Standing, interest, standings
from mlx_email.labels.schema import Row
from mlx_email.labels.split import split_by_time
from mlx_email.mail.message import Message
from mlx_email.model.wording import prompt_text

# Made from the outcome, so from what comes later; all other columns are not.
OUTCOME_COLUMNS = {
    "action",
    "response_time_hours",
    "forward_time_hours",
    "priority_target",
    "label_quality",
    "split",
    "straddles",
}


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


def known(messages) -> list[Standing]:
    """The standing of the sender of each received message, in the order of time."""
    mails = mails_of(messages)
    by_index, _ = standings(mails, find_actions(mails, find_owner(mails)))
    return [by_index[index] for index in sorted(by_index)]


def scores(messages) -> list[float]:
    return [standing.people_score for standing in known(messages)]


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
    mails = mails_of([*answered, *open_])
    _, people = standings(mails, find_actions(mails, find_owner(mails)))
    assert {name: (s.people_score, s.history_messages) for name, s in people.items()} == {
        "bob@y.org": (0.6599, 1),
        "cy@y.org": (0.3333, 1),
        "dee@y.org": (0.5, 1),
    }


def test_the_history_counts_what_could_be_seen(letter):
    """Answered from the reply's sending; deleted and kept after seven days; what is in no count is open."""
    day = 24.0
    mailbox = [
        letter(0, subject="a"),
        letter(3, "sent", "RE: a"),
        letter(1, "deleted_items", "b"),
        letter(2, subject="c"),
        letter(2.5, subject="d"),
        letter(4, "sent", "FW: d", to=("cy@y.org",)),
        letter(5, subject="e"),
        letter(5.5, subject="e2", sender="dee@y.org"),
        letter(7 * day + 1.5, subject="f"),
        letter(7 * day + 6, subject="g"),
        letter(90 * day, subject="h"),
        letter(91 * day, "sent", "RE: h"),
        letter(92 * day, subject="i"),
    ]
    found = known(mailbox)
    assert found[4] == Standing(found[4].people_score, 4, 1, 1, 0, 0, 3.0)
    assert found[5] == Standing()  # of somebody else
    assert found[6] == Standing(found[6].people_score, 5, 1, 1, 1, 0, 3.0)
    assert found[7] == Standing(found[7].people_score, 6, 1, 1, 1, 2, 3.0)
    assert found[9] == Standing(found[9].people_score, 8, 2, 1, 1, 4, 13.5)


def test_the_history_forgets_all_but_the_last_twenty(letter):
    mailbox = [letter(0, "sent", "x")]
    mailbox += [letter(24 * 30 * n, "deleted_items" if n < 5 else "inbox", f"s{n}") for n in range(1, 26)]
    last = known(mailbox)[-1]
    assert (last.history_messages, last.history_deleted, last.history_kept) == (20, 0, 20)
    assert known(mailbox)[20].history_deleted == 4


def test_an_answer_that_only_a_flag_shows_was_never_seen(letter):
    """It may have been given at any time up to the export: counted, it would be a look into the future."""
    mailbox = [letter(0, marks=("answered",)), letter(24 * 6, subject="a"), letter(24 * 8, subject="b")]
    assert [(s.history_answered, s.history_kept) for s in known(mailbox)] == [(0, 0), (0, 0), (0, 1)]


def test_a_later_reply_does_not_hide_that_a_letter_was_forwarded_before(letter):
    """What was seen in between must be what would have been seen had there been no reply."""
    asked = letter(0, body="Please look at these figures for me.")
    forward = letter(1, "sent", "FW: Budget", to=("cy@y.org",))
    between, after = letter(50, subject="a"), letter(101, subject="b")
    reply = letter(100, "sent", "RE: Budget")
    with_reply, without = known([asked, forward, between, reply, after]), known([asked, forward, between])
    assert with_reply[1] == without[1]
    assert (without[1].history_forwarded, with_reply[2].history_answered, with_reply[2].history_forwarded) == (1, 1, 0)


PEOPLE = ("bob@y.org", "cy@y.org", "dee@z.org")

# One message: (hours, who, subject, mark, sent?, folder, the program's marks, the message that it may name by its id)
SPECIMENS = st.lists(
    st.tuples(
        st.floats(0, 960),
        st.sampled_from(PEOPLE),
        st.sampled_from(("Oak", "Elm", "Ash")),
        st.sampled_from(("", "RE: ", "FW: ")),
        st.booleans(),
        st.sampled_from(("inbox", "deleted_items", "oak")),
        st.sampled_from(((), ("answered",), ("flagged",), ("trashed",))),
        st.integers(0, 80),
    ),
    min_size=2,
    max_size=40,
)


WORDS = "letter {} about {} in some words"


def mailbox_of(specimens, series: str = "x.org") -> list[Message]:
    """Messages of Ann's mailbox. She has written before, so that her address is known whatever is taken away."""
    start = datetime(2026, 1, 5, tzinfo=UTC)
    messages = []
    for number, (hours, who, subject, mark, sent, folder, marks, other) in enumerate([OWN, *specimens]):
        messages.append(
            Message(
                owner="low-a",
                folder="sent" if sent else folder,
                path=f"{number}.",
                message_id=f"<{number}@{series}>",
                date=start + timedelta(hours=hours),
                sender="ann@x.org" if sent else who,
                to=(who if sent else "ann@x.org",),
                subject=mark + subject,
                body=f"letter {number} about {subject} in some words"
                + (f"\n> letter {other} about {subject} in some words" if mark else ""),
                in_reply_to=f"<{other}@x.org>" if mark and other % 3 == 0 else None,
                marks=() if sent else marks,
            )
        )
    return messages


OWN = (-1.0, "bob@y.org", "Hello", "", True, "sent", (), 0)


def known_then(messages) -> dict[str, tuple[dict, str]]:
    """Message id -> the columns that must not depend on what comes later, and the prompt."""
    found = {}
    for row in label_owner(mails_of(messages)).rows():
        if "action" in row:
            columns = {name: value for name, value in row.items() if name not in OUTCOME_COLUMNS}
            record = msgspec.convert({k: v for k, v in columns.items() if v is not None}, Row)
            found[row["message_id"]] = (columns, prompt_text(record))
    return found


@given(SPECIMENS, SPECIMENS, st.integers(0, 39), st.data())
@settings(max_examples=300)
def test_a_changed_future_changes_no_earlier_feature_or_prompt(specimens, others, at, data):
    """Messages later than t deleted, or rewritten: every row at or before t keeps its features and its prompt."""
    mailbox = mailbox_of(specimens)
    cut = sorted(message.date for message in mailbox)[min(at, len(mailbox) - 1)]
    past = [message for message in mailbox if message.date <= cut]
    deleted = [m for m in mailbox if m.date <= cut or data.draw(st.booleans(), label="keep")]
    rewritten = past + [m for m in mailbox_of(others, "y.org")[1:] if m.date > cut]
    expected = known_then(past)
    for changed in (mailbox, deleted, rewritten):
        found = known_then(changed)
        assert expected == {name: found[name] for name in expected}


def received_at(hours: float, subject: str) -> tuple:
    return (hours, PEOPLE[0], subject, "", False, "inbox", (), 0)


def reply_at(hours: float, subject: str, to: int) -> tuple:
    return (hours, PEOPLE[0], subject, "RE: ", True, "sent", (), to)


def unchanged_by(past: list[tuple], future: list[tuple]) -> bool:
    expected, found = known_then(mailbox_of(past)), known_then(mailbox_of([*past, *future]))
    return expected == {name: found[name] for name in expected}


def test_an_answer_without_its_clock_slack_would_be_caught(monkeypatch):
    """A letter that comes a minute after the answer may be the one it answers, by the clocks: the planted twin."""
    past = [received_at(0, "Oak"), reply_at(1, "Oak", 4), received_at(1.01, "Elm")]  # it quotes the fourth
    assert unchanged_by(past, [received_at(1.02, "Oak")])
    monkeypatch.setattr("mlx_email.labels.timeline.SLACK", timedelta(0))
    assert not unchanged_by(past, [received_at(1.02, "Oak")])


def test_a_letter_that_counts_as_answered_from_its_arrival_would_be_caught(monkeypatch):
    past = [received_at(0, "Oak"), received_at(5, "Elm")]
    assert unchanged_by(past, [reply_at(10, "Oak", 1)])
    monkeypatch.setattr("mlx_email.labels.timeline.SLACK", timedelta(hours=-10))
    assert not unchanged_by(past, [reply_at(10, "Oak", 1)])


@given(st.lists(st.integers(0, 10**6), max_size=300))
def test_the_split_is_by_time(hours):
    dates = sorted(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in hours)
    splits = split_by_time(dates)
    assert splits == sorted(splits, key=("train", "validation", "test").index)
    assert abs(splits.count("train") - 0.7 * len(dates)) <= 1
    assert abs(splits.count("test") - 0.2 * len(dates)) <= 1


def test_a_fresh_message_is_a_row(letter):
    fresh = letter(None, sender="bob@y.org", body="Could you send it today?", owner="")
    bob, cy = Standing(0.8, 4, 2, 0, 1, 0, 1.5), Standing(0.1)
    row = features_of(fresh, {("low-a", "bob@y.org"): bob, ("low-a", "cy@y.org"): cy})
    assert (row.history_messages, row.history_answered, row.history_response_hours) == (4, 2, 1.5)
    assert (row.user, row.sender, row.people_score) == ("low-a", "bob@y.org", 0.8)
    assert (row.urgency, row.is_question, row.is_action_request) == (1.0, True, True)
    assert row.date == datetime(1970, 1, 1, tzinfo=UTC)
    assert features_of(replace(fresh, sender="new@y.org"), {("low-a", "cy@y.org"): cy}).people_score == 0.5
    assert features_of(fresh, {}).people_score == 0.5


def test_a_fresh_message_and_a_prepared_one_have_the_same_features(letter):
    mail = letter(0, body="Please send it.\n\n> when?")
    (row,) = label_owner(mails_of([mail])).rows()
    fresh = features_of(mail, {})
    assert all(row[name] == getattr(fresh, name) for name in ("urgency", "is_question", "is_action_request", "body"))


def test_undated_mail_is_no_feature_row(letter):
    labelled = label_owner(mails_of([letter(0), letter(None)]))
    assert [row.get("action") for row in labelled.rows()] == ["archived", None]
    assert labelled.received == 2


def test_interest_of_outcomes_is_bounded():
    assert 0.5 < interest("replied", 1.0) < 1.0
    assert interest("kept") == interest("deleted") == 0.0
