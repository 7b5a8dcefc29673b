"""Where the owner stands in the paths of mail in CMU's shape: `<anything>/<owner>/<folder>[/<folder>...]/<file>`.

The owner's place is found from the names of the folders (inbox, sent, ...), so a whole corpus, one owner's mailbox,
and a tar with any prefix are all read alike.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlx_email.mail.names import KNOWN_FOLDERS, folder_key, printable


@dataclass(frozen=True)
class Layout:
    """Which part of a path names the owner: its index, or -1 where the source is one owner's mailbox."""

    owner_index: int
    source_owner: str  # the owner's name where the path has none


@dataclass
class Votes:
    """Counts, over all files, at which index of the path a known folder stands."""

    index: Counter[int] = field(default_factory=Counter)
    shallowest: int = 10**6

    def add(self, folders: tuple[str, ...]) -> None:
        self.shallowest = min(self.shallowest, len(folders))
        known = next((index for index, name in enumerate(folders) if folder_key(name) in KNOWN_FOLDERS), None)
        if known is not None:
            self.index[known] += 1

    def layout(self, source_owner: str) -> Layout:
        if self.index:
            return Layout(max(self.index, key=lambda index: (self.index[index], -index)) - 1, source_owner)
        return Layout(self.shallowest - 2 if 2 <= self.shallowest < 10**6 else -1, source_owner)


def find_layout(paths: Iterable[tuple[str, ...]], source_owner: str) -> Layout:
    """Where the owner stands, from the folder paths of all files: before the folder most often known by its name.

    >>> find_layout([("maildir", "ann", "inbox"), ("maildir", "ann", "work")], "x").owner_index
    1
    >>> find_layout([("inbox",), ("sent",)], "ann").owner_index
    -1
    """
    votes = Votes()
    for folders in paths:
        votes.add(folders)
    return votes.layout(source_owner)


def place(parts: tuple[str, ...], layout: Layout) -> tuple[str, str, str]:
    """The owner, the folder and the path within the owner's mailbox of a file."""
    *folders, name = (printable(part) for part in parts)
    index = layout.owner_index
    if 0 <= index < len(folders):
        owner, inside = folders[index], folders[index + 1 :]
    else:  # one owner's mailbox, or beside the owners' folders
        owner, inside = layout.source_owner, folders
    return owner or "owner", "/".join(inside), "/".join([*inside, name])
