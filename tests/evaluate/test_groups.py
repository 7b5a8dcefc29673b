"""Accuracy by owner and month, counted by hand."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from mlx_email.evaluate import groups, metrics
from mlx_email.labels.schema import Row


def row(user: str, date: datetime, quality: str = "good", action: str = "archived") -> Row:
    return Row(message_id="1", user=user, date=date, sender="s", label_quality=quality, action=action)


JAN, FEB = datetime(2026, 1, 31, 23, 59, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
MAIL = [
    row("bob", JAN, "kept_late"),
    row("bob", FEB),
    row("ann", FEB, action="deleted"),
    row("ann", FEB, action="deleted"),
    row("ann", JAN, "kept_late"),
]
ARCHIVE, DELETE = 3, 4
SAID = np.array([DELETE, ARCHIVE, DELETE, ARCHIVE, ARCHIVE])


def test_by_owner_with_and_without_doubtful_labels():
    found = groups.owners(MAIL, metrics.targets(MAIL), SAID)
    assert list(found) == ["ann", "bob"]  # the most messages first
    assert found["ann"]["messages"] == 3 and found["ann"]["accuracy"] == pytest.approx(2 / 3)
    assert found["ann"]["macro_f1"] == pytest.approx(2 / 3)  # archive and delete: 2 tp / (2 tp + fp + fn) = 2 / 3 each
    assert found["ann"]["good_labels"] == {"messages": 2, "accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert found["bob"]["good_labels"] == {"messages": 1, "accuracy": 1.0, "macro_f1": 1.0}


def test_by_month_in_order():
    found = groups.months(MAIL, metrics.targets(MAIL), SAID)
    assert list(found) == ["2026-01", "2026-02"]
    assert found["2026-01"]["accuracy"] == 0.5 and "good_labels" not in found["2026-01"]
    assert found["2026-02"]["messages"] == found["2026-02"]["good_labels"]["messages"] == 3


def test_the_groups_are_the_whole_mail_counted_apart():
    rng = np.random.default_rng(0)
    mail = [row(f"u{rng.integers(4)}", JAN + timedelta(days=int(rng.integers(200)))) for _ in range(80)]
    said = rng.integers(0, 5, 80)
    for by, name in ((groups.owners, lambda row: row.user), (groups.months, lambda row: row.date.strftime("%Y-%m"))):
        found = by(mail, metrics.targets(mail), said)
        for group, measured in found.items():
            own = np.array([name(row) == group for row in mail])
            target = metrics.targets(mail)
            assert measured["messages"] == own.sum()
            assert measured["accuracy"] == metrics.accuracy(target[own], said[own])
            assert measured["macro_f1"] == pytest.approx(metrics.macro_f1(target[own], said[own]))
        assert sum(each["messages"] for each in found.values()) == 80


def test_owners_with_the_most_mail_are_listed():
    mail = [row(f"u{number:02}", JAN) for number in range(groups.MOST + 5)] + [row("u54", JAN)]
    found = groups.owners(mail, metrics.targets(mail), metrics.targets(mail))
    assert len(found) == groups.MOST and next(iter(found)) == "u54" and "u49" not in found


def test_a_month_is_that_of_utc():
    """A planted fault: the month where the message was sent."""
    late = datetime(2026, 1, 31, 20, 0, tzinfo=timezone(timedelta(hours=-6)))
    assert f"{late:%Y-%m}" == "2026-01"
    mail = [row("ann", late)]
    assert list(groups.months(mail, metrics.targets(mail), metrics.targets(mail))) == ["2026-02"]
