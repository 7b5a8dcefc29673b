"""More training rows from those there are: the subject in other words, and the sender swapped for a similar one.

Source: "original; subject paraphrased; for people_score > 0.5 the sender swapped for a similar one".

A variant differs from its message in one column and the id. What is known of the sender (people_score, history_*)
stays: it is why the owner did what they did, so the swap keeps the reasons and changes the address, and the model
learns to read the reasons and not to know addresses by heart. The body stays too, a signature included.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from mlx_email.errors import DataError
from mlx_email.labels.examples.order import by_owner, stream
from mlx_email.labels.examples.paraphrase import paraphrases
from mlx_email.labels.schema import Row

IMPORTANT = 0.5  # only senders with a higher people_score are swapped (the source's border)
SIMILAR = 0.1  # the most by which the people_scores of two similar senders differ

Scored = Sequence[tuple[float, str]]  # (people_score, sender's address), ascending


def augmented(rows: Iterable[Row], seed: int) -> Iterator[Row]:
    """Every row followed by its variants; owner by owner, each in the order of time.

    Raises DataError, before it gives anything, where a row is not of the training split.
    """
    groups = by_owner(rows)
    everything = [row for mail in groups.values() for row in mail]
    similar = similar_senders(everything)
    for row in everything:
        yield row
        yield from filter(None, (paraphrase_subject(row, seed), swap_sender(row, similar)))


def paraphrase_subject(row: Row, seed: int) -> Row | None:
    """The row with one of its subject's `paraphrases`; None where there is none. DataError: not a training row."""
    _check(row)
    options = paraphrases(row.subject)
    if not options:
        return None
    subject = stream(seed, "subject", row.user, row.message_id).choice(options)
    return replace(row, message_id=f"{row.message_id}+subject", subject=subject)


def swap_sender(row: Row, similar: Mapping[tuple[str, str], str]) -> Row | None:
    """The row from the sender most like its own; None where there is none or its own is not important.

    Raises DataError where the row is not of the training split.
    """
    _check(row)
    other = similar.get((row.user, row.sender))
    if other is None or row.people_score <= IMPORTANT:
        return None
    return replace(row, message_id=f"{row.message_id}+sender", sender=other)


def similar_senders(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """(owner, sender) -> the owner's other sender with the nearest people_score, at most 0.1 away.

    One of the same domain before all others. A sender's score is that of their last row. Of several as near, the
    lower score, then the next in the alphabet, and after the last the first, so that no address stands for many.
    DataError: a row is not of the training split.

    >>> from datetime import datetime
    >>> rows = [Row(message_id=sender, user="ann", date=datetime(2026, 1, 2), sender=sender, people_score=score)
    ...         for sender, score in [("bob@x", 0.8), ("cy@y", 0.8), ("di@x", 0.75), ("ed@y", 0.5)]]
    >>> [f"{sender} -> {other}" for (_, sender), other in similar_senders(rows).items()]
    ['di@x -> bob@x', 'bob@x -> di@x', 'cy@y -> bob@x']
    """
    found: dict[tuple[str, str], str] = {}
    for (user, _), mail in by_owner(map(_check, rows)).items():
        scores = {row.sender: row.people_score for row in mail if row.sender}
        everyone = sorted((score, sender) for sender, score in scores.items())
        domains: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for score, sender in everyone:
            domains[_domain(sender)].append((score, sender))
        for score, sender in everyone:
            other = _nearest(domains[_domain(sender)], score, sender) or _nearest(everyone, score, sender)
            if other is not None:
                found[user, sender] = other
    return found


def _nearest(senders: Scored, score: float, own: str) -> str | None:
    first, last = _range(senders, score)
    around = [senders[first - 1][0]] if first else []
    around += [score]
    around += [senders[last][0]] if last < len(senders) else []
    nearest: list[tuple[float, float, str]] = []
    for value in around:
        first, last = _range(senders, value)
        place = bisect_right(senders, (value, own))
        sender = senders[place if place < last else first][1]
        if sender != own and abs(value - score) <= SIMILAR:
            nearest.append((abs(value - score), value, sender))
    return min(nearest)[2] if nearest else None


def _range(senders: Scored, score: float) -> tuple[int, int]:
    def key(scored: tuple[float, str]) -> float:
        return scored[0]

    return bisect_left(senders, score, key=key), bisect_right(senders, score, key=key)


def _domain(sender: str) -> str:
    return sender.rpartition("@")[2].lower()


def _check(row: Row) -> Row:
    if row.split != "train":
        raise DataError(f"message {row.message_id!r} is of the {row.split} split: only training rows are augmented")
    return row
