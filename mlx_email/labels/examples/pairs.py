"""Preference pairs for the reward model: a sample of those an owner's mail holds.

Source: stage 2. (!) The source loops over all pairs, O(n^2) an owner; here each message meets a fixed number of others
of its own 30 days, found by bisection: O(n log n).
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

from mlx_email.labels.examples.order import by_owner, stream
from mlx_email.labels.examples.preferences import REASONS, Pair, Ranked, Reason, preference, ranked
from mlx_email.labels.examples.windows import LENGTH
from mlx_email.labels.schema import Row

# Drawn for a message from each of three groups (replied, forwarded, neither), per pair it may stand in: so that rare
# actions meet common ones as often as each other. Four gave 4% more pairs of a random mailbox, in twice the time.
DRAWS = 2

Found = tuple[int, int, Reason]  # indices of the chosen and of the rejected message


def pairs(rows: Iterable[Row], seed: int, *, per_message: int = 2) -> list[Pair]:
    """Pairs of messages less than 30 days apart, of one owner and split; owner by owner, by the chosen one's time.

    A message stands in at most `per_message` pairs, at most half of them (rounded up) on either side, so that few
    messages are always the better or always the worse one. The reasons take turns until the scarce ones are used up.
    Raises ValueError where `per_message` is not positive.

    >>> from datetime import datetime
    >>> def letter(name, hours):
    ...     return Row(message_id=name, user="ann", date=datetime(2026, 1, 2), sender="bob@example.com",
    ...                action="replied", response_time_hours=hours)
    >>> found = pairs([letter("slow", 9.0), letter("fast", 1.0), letter("as fast", 2.0)], seed=0)
    >>> sorted((pair.chosen.message_id, pair.rejected.message_id) for pair in found), reasons(found)["faster"]
    ([('fast', 'slow')], 1)
    """
    if per_message < 1:
        raise ValueError(f"per_message is {per_message}: a message must be allowed to stand in a pair")
    sampled: list[Pair] = []
    for (user, split), mail in by_owner(rows).items():
        rng = stream(seed, "pairs", user, split)
        ranks = ranked(mail)
        met = _met(ranks, DRAWS * per_message, rng)
        for chosen, rejected, reason in sorted(_balanced(met, per_message, rng)):
            sampled.append(Pair(ranks[chosen].row, ranks[rejected].row, reason))
    return sampled


def reasons(sampled: Iterable[Pair]) -> dict[Reason, int]:
    """How many pairs there are of each reason."""
    counts = Counter(pair.reason for pair in sampled)
    return {reason: counts[reason] for reason in REASONS}


def _met(ranks: Sequence[Ranked], draws: int, rng: Random) -> list[Found]:
    """The preferences among messages that met by chance, each once."""
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(ranks):
        groups.setdefault(_group(one.row), []).append(index)
    dated = [(members, [ranks[index].row.date for index in members]) for _, members in sorted(groups.items())]
    met: dict[tuple[int, int], Found] = {}
    for index, one in enumerate(ranks):
        for members, dates in dated:
            first = bisect_right(dates, one.row.date - LENGTH)
            last = bisect_left(dates, one.row.date + LENGTH)
            for _ in range(draws if first < last else 0):
                other = members[rng.randrange(first, last)]
                low, high = min(index, other), max(index, other)
                if low == high or (low, high) in met:
                    continue
                pair = preference(ranks[low], ranks[high])
                if pair is not None:
                    better = pair.chosen is ranks[low].row
                    met[low, high] = (low, high, pair.reason) if better else (high, low, pair.reason)
    return list(met.values())


def _group(row: Row) -> str:
    return row.action if row.action in ("replied", "forwarded") else ""


def _balanced(met: Sequence[Found], per_message: int, rng: Random) -> list[Found]:
    """As many as the limits allow, one of each reason in turn."""
    side = (per_message + 1) // 2
    chosen_times: Counter[int] = Counter()
    rejected_times: Counter[int] = Counter()
    queues = [[found for found in met if found[2] == reason] for reason in REASONS]
    for queue in queues:
        rng.shuffle(queue)
    kept: list[Found] = []
    while any(queues):
        for queue in queues:
            while queue:
                chosen, rejected, reason = queue.pop()
                free = chosen_times[chosen] < side and rejected_times[rejected] < side
                if free and all(chosen_times[i] + rejected_times[i] < per_message for i in (chosen, rejected)):
                    chosen_times[chosen] += 1
                    rejected_times[rejected] += 1
                    kept.append((chosen, rejected, reason))
                    break
    return kept
