"""Preferences are a strict partial order; pairs are a fair, cheap sample of all there are."""

import itertools
import random
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.labels.examples import pairs as pairs_module
from mlx_email.labels.examples.order import by_owner
from mlx_email.labels.examples.pairs import pairs, reasons
from mlx_email.labels.examples.preferences import MARGINS, Pair, Ranked, continued, preference, ranked
from mlx_email.labels.schema import Row

START = datetime(2026, 1, 5, 9, tzinfo=UTC)
DAY = timedelta(days=1)


def letter(name: str = "1", days: float = 0.0, **fields) -> Row:
    return Row(**({"message_id": name, "user": "ann", "date": START + days * DAY, "sender": "bob@y.org"} | fields))


def replied(hours: float | None = None, name: str = "r", **fields) -> Row:
    return letter(name, action="replied", response_time_hours=hours, **fields)


@st.composite
def mailboxes(draw, size: int = 16) -> list[Row]:
    """Few different values, so that ties, margins met exactly and contradictions are common."""
    rows = []
    for number in range(draw(st.integers(0, size))):
        action = draw(st.sampled_from(["replied", "replied", "forwarded", "archived", "deleted"]))
        row = letter(
            str(number),
            draw(st.integers(0, 180)) / 4,
            user=draw(st.sampled_from(["ann", "ann", "ben"])),
            split=draw(st.sampled_from(["train", "train", "test"])),
            thread_id=draw(st.sampled_from(["", "x", "y", "z"])),
            people_score=draw(st.sampled_from([0.125, 0.25, 0.375, 0.5, 0.625])),
            action=action,
            response_time_hours=draw(st.sampled_from([0.0, 1.5, 2.0, 3.0, 4.5, None])) if action == "replied" else None,
            label_quality=draw(st.sampled_from(["good", "good", "no_trash", "kept_late", "junk"])),
        )
        rows.append(row)
    return rows


def random_mailbox(size: int, seed: int = 0, owner: str = "ann", days: float = 300) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for number in range(size):
        [action] = rng.choices(["replied", "forwarded", "archived", "deleted"], [25, 5, 50, 20])
        hours = rng.expovariate(1 / 12) if action == "replied" else None
        fields = {"action": action, "response_time_hours": hours, "people_score": rng.random(), "user": owner}
        rows.append(letter(f"{owner}{number}", rng.random() * days, thread_id=f"t{rng.randrange(size // 2)}", **fields))
    return rows


# --- the quadratic twin: the rules as sentences, asked of every two messages


def goes_on(row: Row, rows: list[Row]) -> bool | None:
    own = [other for other in rows if (other.user, other.split) == (row.user, row.split)]
    gaps = [other.date - row.date for other in own if row.thread_id and other.thread_id == row.thread_id]
    if any(timedelta(0) < gap < 7 * DAY for gap in gaps):
        return True
    return False if row.thread_id and max(other.date for other in own) >= row.date + 7 * DAY else None


def why(one: Row, other: Row, one_on: bool | None, other_on: bool | None, margin: float = 2.0) -> str | None:
    """Why `one` is preferred to `other`; None where it is not."""
    if one.action == "replied" and other.action == "replied":
        hours = 100.0 if one.response_time_hours is None else one.response_time_hours
        others_hours = 100.0 if other.response_time_hours is None else other.response_time_hours
        if others_hours - hours > margin:
            return "faster"
        if hours > others_hours:
            return None
    elif "replied" in (one.action, other.action):
        return "replied" if one.action == "replied" else None
    elif (one.action == "forwarded") != (other.action == "forwarded"):
        return "acted" if one.action == "forwarded" else None
    if one.people_score - other.people_score > 0.2:
        return "important"
    if one.people_score >= other.people_score and one_on is True and other_on is False:
        return "continued"
    return None


def all_pairs(rows: list[Row], **options) -> set[tuple[str, str, str]]:
    on = {row.message_id: goes_on(row, rows) for row in rows}
    found = set()
    for one, other in itertools.permutations(rows, 2):
        same = one.user == other.user and one.split == other.split and abs(one.date - other.date) < 30 * DAY
        known = one.label_quality in ("good", "no_trash", "kept_late") and other.label_quality in ("good", "no_trash")
        reason = why(one, other, on[one.message_id], on[other.message_id], **options)
        if same and known and reason:
            found.add((one.message_id, other.message_id, reason))
    return found


def named(sampled: list[Pair]) -> set[tuple[str, str, str]]:
    return {(pair.chosen.message_id, pair.rejected.message_id, pair.reason) for pair in sampled}


def check_among(sampled: list[Pair], rows: list[Row]) -> None:
    assert len(named(sampled)) == len(sampled)
    assert named(sampled) <= all_pairs(rows)


# --- the relation


def without_the_clause(one: Ranked, other: Ranked) -> bool:
    """The planted fault: the first rule beyond its margin decides, wherever the earlier ones point."""
    for mine, theirs, margin in zip(one.numbers, other.numbers, MARGINS, strict=True):
        if mine is not None and theirs is not None and abs(mine - theirs) > margin:
            return mine > theirs
    return False


def test_margins_alone_would_make_a_cycle():
    """Answered after 0, 1.5 and 3 hours, by ever more important senders."""
    rows = [replied(hours, people_score=score) for hours, score in [(0.0, 0.1), (1.5, 0.4), (3.0, 0.7)]]
    first, second, third = (ranked([row])[0] for row in rows)
    assert without_the_clause(first, third) and without_the_clause(third, second) and without_the_clause(second, first)
    assert preference(first, third) == Pair(first.row, third.row, "faster")
    assert preference(third, second) is None and preference(second, first) is None


@given(mailboxes(size=10))
def test_a_strict_partial_order(rows):
    every = [one for owner in ("ann", "ben") for one in ranked([r for r in ordered(rows) if r.user == owner])]
    beats = set()
    for one, other in itertools.product(every, repeat=2):
        pair = preference(one, other)
        assert pair == preference(other, one)  # the same pair, whichever is asked first
        if pair is not None:
            beats.add((pair.chosen.message_id, pair.rejected.message_id))
    assert not any((rejected, chosen) in beats for chosen, rejected in beats)
    for (a, b), (c, d) in itertools.product(beats, repeat=2):
        assert b != c or (a, d) in beats


def ordered(rows):
    return sorted(rows, key=lambda row: (row.date, row.message_id))


@pytest.mark.parametrize(
    ("better", "worse", "reason"),
    [
        (replied(), letter(action="forwarded", people_score=1.0), "replied"),
        (replied(800.0), letter(), "replied"),
        (replied(1.0), replied(3.01, people_score=1.0), "faster"),
        (replied(97.9), replied(None), "faster"),
        (replied(1.0), replied(3.0), None),
        (replied(3.0, people_score=0.8), replied(3.0), "important"),
        (replied(3.0, people_score=0.8), replied(2.5), None),  # important, but later
        (letter(action="forwarded", people_score=0.0), letter(people_score=1.0), "acted"),
        (letter(people_score=0.75), letter(action="deleted"), "important"),
        (letter(people_score=0.7), letter(people_score=0.5), None),
        (letter(), letter(action="deleted"), None),
        (letter(action="forwarded"), letter(label_quality="no_trash"), "acted"),
        (letter(label_quality="no_trash", people_score=0.8), letter(), "important"),
        (letter(label_quality="kept_late", people_score=0.8), letter(), "important"),
        (replied(), letter(label_quality="kept_late"), None),
    ],
)
def test_each_rule(better, worse, reason):
    one, other = ranked([better])[0], ranked([worse])[0]
    expected = Pair(better, worse, reason) if reason else None
    assert preference(one, other) == preference(other, one) == expected


@pytest.mark.parametrize("quality", ["junk", "unseen", "something new"])
def test_what_nobody_decided_stands_in_no_pair(quality):
    assert ranked([letter(label_quality=quality)]) == []


def test_a_thread_that_goes_on():
    thread = {"t1": 0, "alone": 5, "t2": 6, "t3": 13, "last": 20}
    mail = [letter(name, day, thread_id=name.rstrip("123")) for name, day in thread.items()]
    # t1: t2 follows. t2: t3 follows, but after 7 days. alone, t3: nothing in 7 days. last: the mail ends too soon.
    assert continued(mail) == [True, False, False, False, None]
    one, other = (Ranked(letter(name), (False, -100.0, False, 0.5, on)) for name, on in [("1", True), ("2", False)])
    assert preference(other, one) == Pair(one.row, other.row, "continued")
    assert continued([letter("1"), letter("2", 20)]) == [None, None]  # no thread is known


# --- the sample


@given(mailboxes(), st.integers(0, 3), st.integers(1, 4))
def test_every_pair_is_one_of_the_twins(rows, seed, per_message):
    check_among(pairs(rows, seed, per_message=per_message), rows)


@given(mailboxes())
def test_the_rules_are_the_twins(rows):
    assert named(every_preference(rows)) == all_pairs(rows)


def every_preference(rows: list[Row]) -> list[Pair]:
    found = []
    for mail in by_owner(rows).values():
        for one, other in itertools.combinations(ranked(mail), 2):
            pair = preference(one, other) if other.row.date - one.row.date < 30 * DAY else None
            found += [pair] if pair else []
    return found


def faulty(fault: str) -> tuple[list[Pair], list[Row]]:
    """A sample with one planted fault."""
    rows = random_mailbox(60) + random_mailbox(60, owner="ben")
    sampled = pairs(rows, 0)
    first = sampled[0]
    if fault == "turned":
        sampled[0] = Pair(first.rejected, first.chosen, first.reason)
    elif fault == "another reason":
        sampled[0] = Pair(first.chosen, first.rejected, "continued" if first.reason != "continued" else "acted")
    elif fault == "two owners":
        sampled[0] = Pair(
            replied(name="ann1"), next(p.rejected for p in sampled if p.rejected.user == "ben"), "replied"
        )
    elif fault == "far apart":
        rows += [replied(1.0, "old", days=-100), letter("new")]
        sampled.append(Pair(rows[-2], rows[-1], "replied"))
    elif fault == "within the margin":
        rows += [replied(1.0, "one"), replied(2.5, "other")]
        sampled.append(Pair(rows[-2], rows[-1], "faster"))
    elif fault == "two splits":
        rows += [replied(1.0, "one"), letter("other", split="test")]
        sampled.append(Pair(rows[-2], rows[-1], "replied"))
    elif fault == "twice":
        sampled.append(first)
    return sampled, rows


def test_a_sample_without_fault_passes():
    check_among(*faulty("none"))


@pytest.mark.parametrize(
    "fault", ["turned", "another reason", "two owners", "far apart", "within the margin", "two splits", "twice"]
)
def test_planted_faults_are_found(fault):
    with pytest.raises(AssertionError):
        check_among(*faulty(fault))


@given(mailboxes(), st.randoms(), st.integers(1, 5))
def test_sides_limits_and_order(rows, rng, per_message):
    sampled = pairs(rows, 7, per_message=per_message)
    assert pairs(rng.sample(rows, len(rows)), 7, per_message=per_message) == sampled
    chosen, rejected = (Counter(getattr(pair, side).message_id for pair in sampled) for side in ("chosen", "rejected"))
    assert all(count <= (per_message + 1) // 2 for count in (*chosen.values(), *rejected.values()))
    assert all(count <= per_message for count in (chosen + rejected).values())
    below = defaultdict(set)
    for pair in sampled:
        below[pair.chosen.message_id].add(pair.rejected.message_id)
    TopologicalSorter(below).prepare()  # raises CycleError


def test_an_owners_pairs_are_their_own():
    ann, ben = random_mailbox(200), random_mailbox(200, seed=1, owner="ben")
    assert pairs(ann + ben, 3) == pairs(ann, 3) + pairs(ben, 3)
    assert pairs(ann, 3) != pairs(ann, 4)


def test_reasons_take_turns():
    """The scarce reasons get far more than their share of all pairs; none is lost."""
    rows = random_mailbox(1000)
    counts, everything = reasons(pairs(rows, 0)), reasons(every_preference(rows))
    assert min(counts.values()) > 20
    assert max(counts.values()) / min(counts.values()) < max(everything.values()) / min(everything.values()) / 3


def test_reasons_are_even_where_there_is_enough_of_each():
    """Four groups of messages, 40 days apart, each with pairs of one reason: as many of each, nearly."""
    kinds = [
        (replied(1.0), letter()),
        (replied(1.0), replied(9.0)),
        (letter(action="forwarded"), letter()),
        (letter(people_score=0.9), letter(people_score=0.1)),
    ]
    rows = [
        msgspec.structs.replace(row, message_id=f"{group} {side} {number}", date=START + 40 * group * DAY)
        for group, sides in enumerate(kinds)
        for side, row in enumerate(sides)
        for number in range(100)
    ]
    counts = [count for count in reasons(pairs(rows, 0)).values() if count]
    assert len(counts) == 4 and min(counts) > 0.8 * max(counts) > 60


def considered(monkeypatch, rows: list[Row]) -> int:
    count = itertools.count()
    monkeypatch.setattr(pairs_module, "preference", lambda one, other: (next(count), preference(one, other))[1])
    assert pairs(rows, 0)
    return next(count)


def test_the_cost_is_linear(monkeypatch):
    """In a mailbox of one busy day, where every message is near every other: the twin considers n (n - 1)."""
    small, large = (considered(monkeypatch, random_mailbox(size, days=1)) for size in (500, 4000))
    assert large <= 4000 * 3 * 2 * pairs_module.DRAWS
    assert large < 9 * small  # 8 times the messages; the twin: 64 times


def test_a_message_must_be_allowed_a_pair():
    with pytest.raises(ValueError, match="per_message is 0"):
        pairs([], 0, per_message=0)


def test_pairs_are_frozen():
    [pair] = pairs([replied(), letter()], 0)
    with pytest.raises(AttributeError):
        pair.reason = "acted"
    assert msgspec.structs.asdict(pair)["reason"] == "replied"
