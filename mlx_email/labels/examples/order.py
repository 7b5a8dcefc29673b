"""One order of time and one source of chance for everything that is made of labelled rows."""

from collections.abc import Iterable
from random import Random

from mlx_email.labels.schema import Row, Split


def by_owner(rows: Iterable[Row]) -> dict[tuple[str, Split], list[Row]]:
    """(owner, split) -> their rows, oldest first; the result does not depend on the order in which rows come.

    What is made group by group can mix neither two owners nor two splits.
    """
    groups: dict[tuple[str, Split], list[Row]] = {}
    for row in sorted(rows, key=_place):
        groups.setdefault((row.user, row.split), []).append(row)
    return groups


def _place(row: Row) -> tuple:
    # The subject and the body only tell apart what mail programs gave one Message-ID.
    return (row.user, row.date, row.message_id, row.subject, row.body)


def stream(seed: int, *names: str) -> Random:
    """Random numbers of their own for what `names` names: an owner's do not change with another owner's mail.

    >>> stream(0, "pairs", "ann").randrange(1000), stream(0, "pairs", "bob").randrange(1000)
    (64, 167)
    """
    return Random("\0".join([str(seed), *names]))
