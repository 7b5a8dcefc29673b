"""What came after a message: the scores of the source, found as a scan finds them, and nothing beyond a horizon."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.labels.examples import feedback as module
from mlx_email.labels.examples.feedback import Feedback, Later, each_alone, feedback, reviews, seen
from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.labels.subjects import normal_subject

START = datetime(2026, 1, 5, 9, tzinfo=UTC)
DAY = timedelta(days=1)
HORIZON = START + 7 * DAY


def letter(days: float, name: str = "", **fields) -> Row:
    values = {"message_id": name or f"{days}", "user": "ann", "date": START + days * DAY, "sender": "bob@y.org"}
    return Row(**(values | {"subject": f"no. {days}"} | fields))


def answered(hours: float | None) -> dict:
    return {"action": "replied", "response_time_hours": hours}


def forwarded(hours: float | None) -> dict:
    return {"action": "forwarded", "forward_time_hours": hours}


# The scores


@pytest.mark.parametrize(
    ("done", "action", "went_on", "rested"),
    [
        (answered(2.0), "reply_now", 1.0, 0.7),
        (answered(30.0), "reply_later", 1.0, 0.7),
        ({}, "archive", 0.2, 0.8),
        (forwarded(2.0), "forward", 0.4, 0.8),
        ({"action": "deleted"}, "delete", 0.1, 0.9),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_done_is_scored_by_what_came(done, action, went_on, rested):
    first = letter(0, subject="Plan", **done)
    again = letter(3, subject="RE: plan")
    for mail, score in (([first], rested), ([first, again], went_on)):
        found = feedback(first, HORIZON, Later(mail))
        assert (found.seen, found.score) == (action, score)
        assert found.of(action) == score
        assert {found.of(other) for other in ACTIONS if other != action} == {1 - score}


@pytest.mark.parametrize(
    ("fields", "goes_on", "comes_back"),
    [
        ({"subject": "Fwd: RE: Plan"}, True, True),
        ({"subject": "Plan", "sender": "BOB@y.org"}, True, True),
        ({"subject": "Plan", "sender": "eve@y.org"}, False, False),  # another person's mail of that name
        ({"subject": "RE: plan b"}, False, False),
        ({"references": ("<else@y>", "<one@y>")}, True, True),
        ({"references": ("<else@y>", "<one@y>"), "sender": "eve@y.org"}, True, False),
        ({"in_reply_to": "one@y", "sender": "eve@y.org"}, True, False),
        ({"in_reply_to": "two@y"}, False, False),
        ({"thread_id": "t"}, True, True),
        ({"thread_id": "t", "sender": "eve@y.org"}, True, False),
        ({"thread_id": "u"}, False, False),
    ],
)
def test_what_goes_on_a_matter_and_whose_coming_back_counts(fields, goes_on, comes_back):
    first = letter(0, "one@y", subject="Plan", thread_id="t")

    def found(mail):
        return tuple(ask(first, first.date, HORIZON) for ask in (Later(mail).went_on, Later(mail).came_back))

    assert found([first, letter(1, **fields)]) == (goes_on, comes_back)
    assert found([letter(-1, **fields), first]) == (False, False)  # it came before
    assert found([first, letter(7, **fields)]) == (False, False)  # at the horizon: too late


def test_what_others_write_says_nothing_of_mail_that_was_kept():
    first = letter(0, "one@y", thread_id="t")
    mail = [first, letter(1, sender="eve@y.org", thread_id="t")]
    assert feedback(first, HORIZON, Later(mail)).score == 0.8
    replied = msgspec.structs.replace(first, action="replied", response_time_hours=1.0)
    assert feedback(replied, HORIZON, Later(mail)).score == 1.0


def test_only_what_comes_after_the_answer_goes_on_it():
    """A sender who asks again, is answered and is content: the matter did not go on."""
    asked, again = letter(0, subject="Plan", **answered(48.0)), letter(1, subject="Plan")
    assert feedback(asked, HORIZON, Later([asked, again])).score == 0.7
    assert feedback(asked, HORIZON, Later([asked, again, letter(3, subject="Plan")])).score == 1.0


def test_no_subject_and_no_thread_join_nothing():
    first = letter(0, subject="Re:", thread_id="")
    assert not Later([first, letter(1, subject="RE: ", thread_id="")]).went_on(first, first.date, HORIZON)


# What could be known


def test_an_answer_after_the_horizon_has_not_come():
    late = letter(0, **answered(24 * 7.0))
    assert seen(late, HORIZON).action == "archived" and seen(late, HORIZON).response_time_hours is None
    assert seen(late, HORIZON + timedelta(seconds=1)) == late
    both = letter(0, **answered(24 * 9.0), forward_time_hours=1.0)
    assert seen(both, HORIZON).action == "forwarded"  # and answered later
    assert seen(letter(0, **forwarded(24 * 9.0)), HORIZON).action == "archived"


@pytest.mark.parametrize(
    "fields",
    [answered(None), forwarded(None), *({"label_quality": quality} for quality in ("kept_late", "junk", "unseen"))],
)
def test_what_cannot_be_known_is_censored(fields):
    """Not counted as what did not happen."""
    row = letter(0, **fields)
    assert feedback(row, HORIZON, Later([row])) is None
    mail = [row, letter(40)]
    (review,) = reviews(mail)
    assert (review.found, review.censored) == ((), 1)


def test_the_last_days_are_in_no_feedback():
    mail = [letter(day) for day in (0, 10, 33, 40)]
    assert [[found.row.message_id for found in each.found] for each in reviews(mail)] == [["0", "10"]]
    assert [found.row.message_id for found in each_alone(mail, mail)] == ["0", "10", "33"]
    assert [found.row.message_id for found in each_alone(mail[1:2], mail)] == ["10"]
    assert list(each_alone(mail[1:2], mail[1:2])) == []  # nothing is known of what came after it


def test_a_label_without_trash_may_hide_a_deletion():
    row = letter(0, label_quality="no_trash")
    assert feedback(row, HORIZON, Later([row])).doubtful == {"delete"}


# Against a scan, and against a changed future


@st.composite
def mailboxes(draw) -> list[Row]:
    """Messages of two owners over three months; few subjects, senders and threads, so that much goes on."""
    rows = []
    for number in range(draw(st.integers(0, 25))):
        done = draw(
            st.sampled_from([{}, {"action": "deleted"}, answered(None), forwarded(None)])
            | st.floats(0, 24 * 30).map(answered)
            | st.floats(0, 24 * 30).map(forwarded)
        )
        rows.append(
            letter(
                draw(st.integers(0, 360)) / 4,
                f"{number}@y",
                user=draw(st.sampled_from(["ann", "cat"])),
                sender=draw(st.sampled_from(["bob@y.org", "eve@y.org"])),
                subject=draw(st.sampled_from(["Plan", "RE: plan", "Lunch", ""])),
                thread_id=draw(st.sampled_from(["", "t", "u"])),
                in_reply_to=draw(st.none() | st.integers(0, 25).map("{}@y".format)),
                label_quality=draw(st.sampled_from(["good", "good", "no_trash", "kept_late"])),
                **done,
            )
        )
    return rows


def scanned(rows: list[Row], row: Row, horizon: datetime) -> bool:
    """The quadratic twin of what decides a score."""
    by_then = seen(row, horizon)
    replied = by_then.action == "replied"
    since = row.date + timedelta(hours=by_then.response_time_hours) if replied else row.date

    def follows(other: Row) -> bool:
        subject = normal_subject(row.subject)
        joined = other.in_reply_to == row.message_id or (bool(row.thread_id) and other.thread_id == row.thread_id)
        same = other.sender == row.sender
        return (joined and (replied or same)) or (bool(subject) and normal_subject(other.subject) == subject and same)

    return any(other.user == row.user and since < other.date < horizon and follows(other) for other in rows)


@given(mailboxes())
def test_as_a_scan_finds_it(rows):
    for review in reviews(rows):
        for found in review.found:
            more, rested = module.SCORES[seen(found.row, review.horizon).action]
            assert found.score == (more if scanned(rows, found.row, review.horizon) else rested)


def after(rows: list[Row], moment: datetime, changed: bool) -> list[Row]:
    """The mailbox as it would be, had something else happened from `moment` on: other mail, other answers."""
    kept = []
    for row in rows:
        if row.date >= moment:
            if not changed:
                kept.append(msgspec.structs.replace(row, subject="Plan", thread_id="t", action="deleted"))
            continue
        hours = {"replied": row.response_time_hours, "forwarded": row.forward_time_hours}.get(row.action)
        if hours is not None and row.date + timedelta(hours=hours) >= moment:
            row = msgspec.structs.replace(row, action="archived", response_time_hours=None, forward_time_hours=None)
        kept.append(row)
    return [*kept, letter(200, "end", user="ann"), letter(200, "end", user="cat")]  # the lookaheads stay complete


def differs(rows: list[Row], days: int) -> bool:
    """Whether what is known at a moment depends on what comes after it."""
    moment = START + days * DAY
    whole = [*rows, letter(200, "end", user="ann"), letter(200, "end", user="cat")]

    def known(mail: list[Row]) -> list[tuple]:
        return [
            (review.start, review.censored, [(each.row.message_id, each.seen, each.score) for each in review.found])
            for review in reviews(mail)
            if review.horizon <= moment
        ]

    return any(known(whole) != known(after(rows, moment, changed)) for changed in (False, True))


@given(mailboxes(), st.integers(37, 120))
def test_nothing_after_the_lookahead_changes_anything(rows, days):
    assert not differs(rows, days)


def test_a_look_beyond_would_be_seen(monkeypatch):
    """The planted faults: labels as they became, and follow-ups whenever they came."""
    slow, asked = letter(0, **answered(24 * 20.0)), letter(1, subject="Plan")
    rows = [slow, asked, letter(60, subject="Plan")]
    assert not differs(rows, 44)
    honest = module.seen
    with monkeypatch.context() as patch:
        patch.setattr(module, "seen", lambda row, horizon: honest(row, horizon + 60 * DAY))
        assert differs([letter(0), msgspec.structs.replace(slow, response_time_hours=24 * 50.0)], 44)
    with monkeypatch.context() as patch:
        whenever = Later.came_back
        patch.setattr(Later, "came_back", lambda self, row, at, horizon: whenever(self, row, at, horizon + 60 * DAY))
        assert differs(rows, 44)


def test_windows_of_several_owners_come_in_the_order_of_time():
    mail = [letter(day, f"{user}{day}", user=user) for user in ("cat", "ann") for day in (0, 3, 40, 80)]
    horizons = [(review.horizon, review.user) for review in reviews(mail)]
    assert horizons == sorted(horizons) and {user for _, user in horizons} == {"ann", "cat"}


def test_a_prediction_has_the_score_or_what_it_lacks():
    found = Feedback(letter(0), "archive", 0.2)
    assert [found.of(action) for action in ACTIONS] == [0.8, 0.8, 0.8, 0.2, 0.8]
