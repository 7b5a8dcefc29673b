"""Windows over time: the right borders, nothing later than the lookahead, each owner and split on their own."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.labels.examples.doubt import doubtful
from mlx_email.labels.examples.order import by_owner, stream
from mlx_email.labels.examples.windows import Window, sliding_windows
from mlx_email.labels.schema import ACTIONS, Row

START = datetime(2026, 1, 5, 9, tzinfo=UTC)
DAY = timedelta(days=1)


def letter(days: float, name: str = "", **fields) -> Row:
    values = {"message_id": name or f"{days}", "user": "ann", "date": START + days * DAY, "sender": "bob@y.org"}
    return Row(**(values | fields))


@st.composite
def mailboxes(draw) -> list[Row]:
    """Messages of two owners and two splits at quarters of a day, so that many lie exactly on a border."""
    quarters = st.integers(0, 400) | st.integers(0, 4000)
    places = draw(st.lists(st.tuples(quarters, st.sampled_from(["ann", "ben"])), max_size=25))
    return [
        letter(at / 4, str(number), user=user, split="train" if at < 300 else "test")
        for number, (at, user) in enumerate(places)
    ]


def scanned(rows, length=30 * DAY, lookahead=7 * DAY, step=7 * DAY) -> list[Window]:
    """The quadratic twin: every window there may be, and for each a look at every message."""
    found = []
    for user in ("ann", "ben"):
        for split in ("train", "test"):
            mail = sorted((r for r in rows if (r.user, r.split) == (user, split)), key=lambda r: (r.date, r.message_id))
            start = mail[0].date if mail else None
            while mail and start + length + lookahead <= mail[-1].date:
                end = start + length
                inside = tuple(row for row in mail if start <= row.date < end)
                after = tuple(row for row in mail if end <= row.date < end + lookahead)
                if inside:
                    found.append(Window(user, start, end, inside, after))
                start += step
    return sorted(found, key=lambda window: (window.user, window.start))


lengths = st.integers(1, 120).map(lambda quarters: quarters * DAY / 4)


@given(mailboxes(), lengths, st.integers(0, 40).map(lambda quarters: quarters * DAY / 4), lengths)
def test_as_the_scan_finds_them(rows, length, lookahead, step):
    options = {"length": length, "lookahead": lookahead, "step": step}
    found = list(sliding_windows(rows, **options))
    assert sorted(found, key=lambda window: (window.user, window.start)) == scanned(rows, **options)


@given(mailboxes(), st.randoms())
def test_nothing_later_than_the_lookahead_whatever_the_order(rows, rng):
    found = list(sliding_windows(rows))
    for window in found:
        assert window.rows and window.end == window.start + 30 * DAY
        assert all(window.start <= row.date < window.end for row in window.rows)
        assert all(window.end <= row.date < window.end + 7 * DAY for row in window.future)
        assert len({(row.user, row.split) for row in window.rows + window.future}) == 1
    rng.shuffle(rows)
    assert list(sliding_windows(rows)) == found


@given(mailboxes(), st.integers(30, 120))
def test_later_mail_changes_no_window_but_adds_some(rows, days):
    """What is given at one moment stays as it is when more mail has come."""
    before = list(sliding_windows(row for row in rows if row.date <= START + days * DAY))
    after = list(sliding_windows(rows))
    assert all(window in after for window in before)


def test_borders_by_hand():
    mail = [letter(0), letter(30), letter(36.99), letter(37)]
    [window] = sliding_windows(mail)
    assert [row.message_id for row in window.rows] == ["0"]  # the end is not within
    assert [row.message_id for row in window.future] == ["30", "36.99"]  # nor the lookahead's
    assert list(sliding_windows(mail[:-1])) == []  # the lookahead is not complete


def test_a_gap_of_decades_costs_nothing():
    mail = [letter(0), letter(100_000), letter(100_010), letter(100_050)]
    found = list(sliding_windows(mail, step=timedelta(seconds=1), length=timedelta(seconds=2)))
    assert [[row.message_id for row in window.rows] for window in found] == [["0"]] + 2 * [["100000"]] + 2 * [
        ["100010"]
    ]


@pytest.mark.parametrize("wrong", [{"length": 0 * DAY}, {"step": 0 * DAY}, {"lookahead": -DAY}])
def test_windows_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        list(sliding_windows([letter(0)], **wrong))


@given(mailboxes(), st.randoms())
def test_one_order(rows, rng):
    groups = by_owner(rows)
    shuffled = rng.sample(rows, len(rows))
    assert by_owner(shuffled) == groups and list(by_owner(shuffled)) == list(groups)
    assert sorted(row.message_id for mail in groups.values() for row in mail) == sorted(r.message_id for r in rows)


def test_streams_are_told_apart():
    drawn = {stream(*names).random() for names in [(0, "a", "b"), (1, "a", "b"), (0, "ab", ""), (0, "b", "a")]}
    assert len(drawn) == 4
    assert stream(0, "a").random() == stream(0, "a").random()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, set()),
        ({"label_quality": "no_trash"}, {"delete"}),
        ({"label_quality": "no_trash", "action": "deleted"}, set()),
        ({"action": "replied", "response_time_hours": 9.0}, set()),
        ({"action": "replied"}, {"reply_now"}),
        *[({"label_quality": quality}, set(ACTIONS) - {"archive"}) for quality in ("kept_late", "junk", "unseen")],
    ],
)
def test_what_cannot_be_ruled_out(fields, expected):
    assert doubtful(letter(0, **fields)) == expected
