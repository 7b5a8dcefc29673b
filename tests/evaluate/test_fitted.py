"""Baselines that scikit-learn fits: what they can learn they learn, the same every time. Importing it takes seconds."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from msgspec.structs import replace

from mlx_email.evaluate import fitted
from mlx_email.evaluate.metrics import targets
from mlx_email.labels.schema import ACTIONS, Row

pytestmark = pytest.mark.slow

OBSERVED = ("replied", "forwarded", "deleted", "archived")


def mail(count: int, seed: int = 0) -> list[Row]:
    """Words say what is done with even messages, the history with odd ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        kind = int(rng.integers(4))
        by_words = {"body": f"{rng.integers(1000)} word{kind} and more"} if i % 2 else {}
        by_history = {} if i % 2 else {"history_messages": 5, "history_deleted": kind, "body": "nothing"}
        rows.append(
            Row(
                message_id=str(i),
                user=f"u{i % 3}",
                date=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=i),
                sender=f"s{rng.integers(9)}@x.example",
                action=OBSERVED[kind],
                **by_words,
                **by_history,
            )
        )
    return rows


TRAIN, TEST = mail(400), mail(200, seed=1)
WORDS, HISTORY = np.arange(200) % 2 == 1, np.arange(200) % 2 == 0


@pytest.mark.parametrize(("name", "seen", "unseen"), [("tfidf", WORDS, HISTORY), ("boosted_trees", HISTORY, WORDS)])
def test_each_learns_what_it_sees_and_nothing_else(name, seen, unseen):
    said = fitted.BASELINES[name](TRAIN, TEST)
    np.testing.assert_allclose(said.sum(axis=1), 1)
    right = said.argmax(axis=1) == targets(TEST)
    assert right[seen].mean() > 0.95 and right[unseen].mean() < 0.5
    assert np.array_equal(said, fitted.BASELINES[name](TRAIN, TEST))
    assert (said[:, ACTIONS.index("reply_now")] == 0).all()  # nobody did so in training


@pytest.mark.parametrize("name", fitted.BASELINES)
def test_nothing_of_the_outcome_or_of_later_mail_is_looked_at(name):
    """The rows to predict have other outcomes, and others after them."""
    changed = [replace(row, action="deleted", priority_target=0.0, response_time_hours=None) for row in TEST]
    said = fitted.BASELINES[name](TRAIN, TEST)
    assert np.array_equal(fitted.BASELINES[name](TRAIN, changed), said)
    assert np.array_equal(fitted.BASELINES[name](TRAIN, changed[:50]), said[:50])


@pytest.mark.parametrize("name", fitted.BASELINES)
def test_one_action_no_words_and_unknown_owners(name):
    alike = [replace(row, action="deleted") for row in TRAIN]
    said = fitted.BASELINES[name](alike, TEST)
    assert (said[:, ACTIONS.index("delete")] == 1).all()
    empty = [replace(row, subject="", body="", sender="") for row in TRAIN]
    assert fitted.BASELINES[name](empty, [replace(row, user="nobody") for row in empty]).shape == (400, 5)


def test_the_trees_tell_owners_apart():
    kinds = {f"u{n}": OBSERVED[n] for n in range(3)}
    rows = [replace(row, action=kinds[row.user], body="", history_deleted=0) for row in TRAIN]
    said = fitted.boosted_trees(rows[:300], rows[300:])
    assert (said.argmax(axis=1) == targets(rows[300:])).mean() > 0.95


def test_more_owners_than_the_trees_can_tell_apart():
    rows = [replace(row, user=f"owner {i % 300}") for i, row in enumerate(mail(900))]
    assert fitted.boosted_trees(rows, rows[:20]).shape == (20, 5)


def test_what_is_known_of_a_message():
    row = replace(TRAIN[0], history_response_hours=None, to=("a", "b"), in_reply_to="<1>")
    found = fitted.numbers([row, replace(row, user="nobody")], ["u1", "u0"])
    assert found[0, -1] == 1 and np.isnan(found[1, -1])
    assert found[0, 6] == fitted.NEVER and found.shape == (2, 18)
