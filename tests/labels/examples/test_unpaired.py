"""Unpaired labels: the source's rules, mended so that none contradicts another and both classes are there."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.labels.examples.doubt import doubtful
from mlx_email.labels.examples.unpaired import Unpaired, taken_label, unpaired
from mlx_email.labels.schema import ACTIONS, Row, predicted_action

START = datetime(2026, 1, 5, 9, tzinfo=UTC)


def letter(number: int = 0, **fields) -> Row:
    values = {"message_id": f"{number}", "user": "ann", "date": START + timedelta(hours=number), "sender": "bob@y.org"}
    return Row(**(values | fields))


@st.composite
def mailboxes(draw) -> list[Row]:
    rows = []
    for number in range(draw(st.integers(0, 15))):
        action = draw(st.sampled_from(["replied", "forwarded", "archived", "archived", "deleted"]))
        row = letter(
            number,
            user=draw(st.sampled_from(["ann", "ben"])),
            action=action,
            response_time_hours=draw(st.sampled_from([1.0, 4.0, None])) if action == "replied" else None,
            urgency=draw(st.sampled_from([0.3, 0.7, 0.75])),
            is_action_request=draw(st.booleans()),
            label_quality=draw(st.sampled_from(["good", "good", "no_trash", "kept_late", "junk"])),
        )
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("fields", "action", "desirable"),
    [
        ({"action": "replied", "response_time_hours": 3.9}, "reply_now", True),  # the source's
        ({"action": "replied", "response_time_hours": 4.0}, "reply_later", True),
        ({"action": "forwarded", "urgency": 1.0}, "forward", True),
        ({"action": "deleted", "urgency": 1.0}, "delete", True),
        ({}, "archive", True),  # the source's
        ({"urgency": 0.7}, "archive", True),
        ({"urgency": 0.71}, "archive", False),  # the source gives both labels
        ({"urgency": 0.71, "is_action_request": True}, "archive", False),  # the source's
        ({"is_action_request": True}, None, None),
        ({"label_quality": "no_trash"}, "archive", True),
        ({"label_quality": "no_trash", "urgency": 0.9}, "archive", False),
        *[({"label_quality": quality, "urgency": u}, None, None) for quality in ("kept_late", "junk") for u in (0, 1)],
    ],
)
def test_each_rule(fields, action, desirable):
    row = letter(**fields)
    assert taken_label(row) is desirable
    made = unpaired([row], 0)
    assert made[:1] == ([] if action is None else [Unpaired(row, action, desirable)])
    assert [label.desirable for label in made[1:]] == ([False] if desirable else [])


@given(mailboxes(), st.integers(0, 9))
def test_no_contradiction(rows, seed):
    labels = defaultdict(dict)
    for label in unpaired(rows, seed):
        assert label.action not in labels[label.row.message_id]
        labels[label.row.message_id][label.action] = label.desirable
    for row in rows:
        found = labels[row.message_id]
        taken = predicted_action(row.action, row.response_time_hours)
        assert found.get(taken) is taken_label(row)
        wrong = set(found) - {taken}
        assert len(wrong) <= 1 and not any(found[action] for action in wrong)
        assert not wrong & doubtful(row)


@given(mailboxes(), st.integers(0, 9))
def test_both_classes_are_as_many(rows, seed):
    """For every owner, but where the archived urgent messages alone are more than all that is desirable."""
    for owner in ("ann", "ben"):
        own = [row for row in rows if row.user == owner]
        neglected = sum(taken_label(row) is False for row in own)
        wanted = sum(taken_label(row) is True for row in own)
        counts = Counter(label.desirable for label in unpaired(rows, seed) if label.row.user == owner)
        assert counts == Counter({True: wanted, False: max(wanted, neglected)})


@given(mailboxes(), st.randoms())
def test_a_function_of_the_rows_and_the_seed(rows, rng):
    made = unpaired(rows, 5)
    assert unpaired(rng.sample(rows, len(rows)), 5) == made
    assert unpaired([row for row in rows if row.user == "ben"], 5) == [x for x in made if x.row.user == "ben"]


def test_wrong_actions_are_of_all_kinds():
    rows = [letter(number, action="deleted") for number in range(300)]
    wrong = Counter(label.action for label in unpaired(rows, 0) if not label.desirable)
    assert set(wrong) == set(ACTIONS) - {"delete"}
    assert wrong.most_common(1)[0][0] == "archive"
    assert unpaired(rows, 0) != unpaired(rows, 1)


def test_the_seed_chooses_the_messages_with_a_wrong_action():
    """Of 20 that are desirable, 10 urgent ones leave 10 to be contrasted."""
    rows = [letter(number, urgency=0.3 if number < 20 else 0.9) for number in range(30)]
    chosen = [{x.row.message_id for x in unpaired(rows, seed) if x.action != "archive"} for seed in range(20)]
    assert {len(names) for names in chosen} == {10}
    assert set.union(*chosen) == {f"{number}" for number in range(20)}


def both_labels(rows: list[Row]) -> list[Unpaired]:
    """The source's rules as they stand, the fault that is mended."""
    made = []
    for row in rows:
        if row.action == "replied" and row.response_time_hours is not None and row.response_time_hours < 4:
            made.append(Unpaired(row, "reply_now", True))
        if row.action == "archived" and not row.is_action_request:
            made.append(Unpaired(row, "archive", True))
        if row.action == "archived" and row.urgency > 0.7:
            made.append(Unpaired(row, "archive", False))
    return made


@given(mailboxes())
def test_the_sources_labels_but_for_the_contradictions(rows):
    settled = [row for row in rows if row.label_quality in ("good", "no_trash")]
    said = defaultdict(set)
    for label in both_labels(settled):
        said[label.row.message_id, label.action].add(label.desirable)
    made = {(label.row.message_id, label.action): label.desirable for label in unpaired(rows, 0)}
    assert all(made[key] is (False not in desirable) for key, desirable in said.items())


def test_the_source_contradicts_itself():
    assert len({label.desirable for label in both_labels([letter(urgency=0.8)])}) == 2
