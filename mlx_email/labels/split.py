"""Training, validation and test: by time, each owner on their own."""

from collections.abc import Sequence
from datetime import datetime

from mlx_email.labels.schema import SPLITS, Split

SHARES = (0.7, 0.8)  # where training ends and where validation ends: 70/10/20


def split_by_time(dates: Sequence[datetime]) -> list[Split]:
    """The split of each of one owner's messages; `dates` ascending. Later splits hold only later messages.

    >>> from collections import Counter
    >>> sorted(Counter(split_by_time([datetime(2001, 1, day) for day in range(1, 11)])).items())
    [('test', 2), ('train', 7), ('validation', 1)]
    """
    train, validation = (int(len(dates) * share + 0.5) for share in SHARES)
    return [SPLITS[0 if index < train else 1 if index < validation else 2] for index in range(len(dates))]
