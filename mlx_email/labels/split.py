"""Training, validation and test: by time, each owner on their own, and nothing near the same on both sides."""

from collections.abc import Sequence
from datetime import datetime

from mlx_email.labels.near import near_duplicates
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


def repeated(splits: Sequence[Split], likenesses: Sequence[bytes]) -> list[bool]:
    """Which messages of a later split nearly repeat one of an earlier split (`letters.Digest.likeness`): a model that
    remembers would look as if it understood. They are dropped from the later side."""
    found = [False] * len(splits)
    for side, earlier in (("validation", ("train",)), ("test", ("train", "validation"))):
        before = [likeness for likeness, split in zip(likenesses, splits, strict=True) if split in earlier]
        later = [index for index, split in enumerate(splits) if split == side]
        for index, near in zip(later, near_duplicates(before, [likenesses[index] for index in later]), strict=True):
            found[index] = near
    return found


def straddling(splits: Sequence[Split], threads: Sequence[str]) -> list[bool]:
    """Which messages of a later split belong to a thread that began in an earlier one. They are kept, as real mail goes
    on across any border, and evaluated separately too."""
    first: dict[str, Split] = {}
    for split, thread in zip(splits, threads, strict=True):
        first.setdefault(thread, split)
    return [first[thread] != split for split, thread in zip(splits, threads, strict=True)]
