"""Contrasts never reject what was done or may have been done, and reject the rest as often as the weights say."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.errors import DataError
from mlx_email.labels.examples.contrasts import HARDNESS, Contrast, contrasts, wrong_actions
from mlx_email.labels.examples.doubt import doubtful
from mlx_email.labels.schema import ACTIONS, Row, predicted_action

START = datetime(2026, 1, 5, 9, tzinfo=UTC)

# What was done for each action to predict: (action, response time in hours).
DONE = {
    "reply_now": ("replied", 1.0),
    "reply_later": ("replied", 30.0),
    "forward": ("forwarded", None),
    "archive": ("archived", None),
    "delete": ("deleted", None),
}
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27}  # degrees of freedom -> the bound that chance passes once in a thousand


def letter(number: int = 0, taken: str = "archive", **fields) -> Row:
    action, hours = DONE[taken]
    values = {"message_id": f"{number}", "user": "ann", "date": START + timedelta(hours=number), "sender": "bob@y.org"}
    return Row(**(values | {"action": action, "response_time_hours": hours} | fields))


rows_of_all_kinds = st.lists(
    st.tuples(
        st.sampled_from([*DONE.values(), ("replied", None)]),
        st.sampled_from(["good", "no_trash", "kept_late", "unseen"]),
        st.sampled_from(["ann", "ben"]),
    ),
    max_size=20,
).map(
    lambda drawn: [
        letter(number, action=action, response_time_hours=hours, label_quality=quality, user=user)
        for number, ((action, hours), quality, user) in enumerate(drawn)
    ]
)


@given(rows_of_all_kinds, st.integers(0, 9), st.integers(1, 5), st.randoms())
def test_what_was_done_or_may_have_been_is_never_rejected(rows, seed, per_message, rng):
    made = contrasts(rows, seed, per_message=per_message)
    rejected = defaultdict(list)
    for contrast in made:
        assert contrast.chosen == predicted_action(contrast.row.action, contrast.row.response_time_hours)
        assert contrast.rejected in set(ACTIONS) - {contrast.chosen} - doubtful(contrast.row)
        rejected[contrast.row.message_id].append(contrast.rejected)
    for row in rows:
        drawn = rejected[row.message_id]
        assert len(set(drawn)) == len(drawn) == min(per_message, 4 - len(doubtful(row)))
    assert contrasts(rng.sample(rows, len(rows)), seed, per_message=per_message) == made
    ann = [row for row in rows if row.user == "ann"]
    assert contrasts(ann, seed, per_message=per_message) == [c for c in made if c.row.user == "ann"]


def source_rejects(row: Row) -> str:
    """The source's rule, the fault that is mended: the first action whose name is not the label's."""
    return next(action for action in ACTIONS if action != row.action)


def test_the_source_would_reject_what_was_done():
    rows = [letter(number, taken) for number, taken in enumerate(ACTIONS)]
    assert {source_rejects(row) for row in rows} == {"reply_now"}  # also of the message that was answered at once
    mended = [contrast for seed in range(50) for contrast in contrasts(rows, seed)]
    assert {contrast.rejected for contrast in mended} == set(ACTIONS)
    assert all(contrast.chosen != contrast.rejected for contrast in mended)


def far_from(counts: Counter, weights: dict) -> bool:
    """Whether counts like these come from such weights less than once in a thousand times."""
    total, scale = sum(counts.values()), sum(weights.values())
    expected = {action: total * weight / scale for action, weight in weights.items() if weight}
    assert set(counts) <= set(expected)
    square = sum((counts[action] - number) ** 2 / number for action, number in expected.items())
    return square > CHI_SQUARE[len(expected) - 1]


@pytest.mark.parametrize("taken", ACTIONS)
def test_how_often_each_action_is_rejected(taken):
    rows = [letter(number, taken) for number in range(4000)]
    counts = Counter(contrast.rejected for contrast in contrasts(rows, 0))
    assert not far_from(counts, dict(HARDNESS[taken]))
    assert far_from(counts, dict.fromkeys(HARDNESS[taken], 1.0))  # the planted fault: all alike


def test_without_trash_the_rest_share_what_delete_had():
    rows = [letter(number, label_quality="no_trash") for number in range(4000)]
    weights = {action: weight for action, weight in HARDNESS["archive"].items() if action != "delete"}
    assert not far_from(Counter(contrast.rejected for contrast in contrasts(rows, 0)), weights)


def test_the_models_probabilities_take_the_tables_place():
    rows = [letter(number, "delete") for number in range(4000)]
    known = np.array([0.06, 0.03, 0.01, 0.0, 0.9], dtype=np.float32)
    made = contrasts(rows, 0, probabilities={("ann", row.message_id): known for row in rows})
    assert not far_from(Counter(c.rejected for c in made), dict(zip(ACTIONS[:4], (0.06, 0.03, 0.01, 0.0), strict=True)))


def test_where_the_model_leaves_nothing_the_table_decides():
    sure = {("ann", "0"): [0.0, 0.2, 0.0, 0.8, 0.0]}
    drawn = [contrasts([letter()], seed, per_message=4, probabilities=sure) for seed in range(20)]
    assert {made[0].rejected for made in drawn} == {"reply_later"}
    assert all({contrast.rejected for contrast in made} == set(ACTIONS) - {"archive"} for made in drawn)
    assert {made[1].rejected for made in drawn} == {"reply_now", "forward", "delete"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "no probabilities"),
        ({("ben", "0"): [0.2] * 5}, "no probabilities"),
        ({("ann", "0"): [0.25] * 4}, "are not the probabilities of reply_now, "),
        ({("ann", "0"): [0.5, 0.5, -0.1, 0.1, 0.0]}, "message '0' of 'ann'"),
        ({("ann", "0"): [float("nan")] * 5}, "are not the probabilities"),
    ],
)
def test_probabilities_that_cannot_be(found, said):
    with pytest.raises(DataError, match=said):
        contrasts([letter()], 0, probabilities=found)


def test_the_table_is_of_probabilities():
    assert set(HARDNESS) == set(ACTIONS)
    for taken, wrong in HARDNESS.items():
        assert set(wrong) == set(ACTIONS) - {taken}
        assert sum(wrong.values()) == pytest.approx(1) and min(wrong.values()) > 0
    assert max(HARDNESS["reply_now"], key=HARDNESS["reply_now"].get) == "reply_later"
    assert max(HARDNESS["archive"], key=HARDNESS["archive"].get) == "delete"


def test_small_things():
    assert wrong_actions(letter(), Random(0), 0) == []
    assert contrasts([letter(label_quality="kept_late")], 0, per_message=5) == []
    assert contrasts([letter()], 0) == [Contrast(letter(), "archive", contrasts([letter()], 0)[0].rejected)]
    with pytest.raises(ValueError, match="per_message is 0"):
        contrasts([letter()], 0, per_message=0)
