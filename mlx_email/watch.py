"""A live Maildir: its messages as they arrive, by looking again and again.

A message is its file's name up to the flags (`:2,`), so one that is opened, moved from new to cur or flagged is the
same. Deliveries that are not complete lie in tmp, which is never read (D. J. Bernstein, "Using maildir format").
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from mlx_email.errors import DataError
from mlx_email.incoming import Arrived, Unread, read_one, unread
from mlx_email.mail.message import MAX_BYTES, NotMail
from mlx_email.mail.sources import natural_key
from mlx_email.mail.sources.trees import open_regular

BOXES = ("new", "cur")  # in this order: a message that is moved meanwhile is then seen in one of them at least
_FLAGS = re.compile(r"[:;!][12],[^/]*$")  # where a file's name may hold no colon, ; or ! stands for it


def watch(maildir: Path, *, interval: float, once: bool, everything: bool) -> Iterator[Iterator[Arrived | Unread]]:
    """What is new in a Maildir, look after look, `interval` seconds apart; each message once.

    What is there at the start counts with `everything` or `once`; `once` ends when all of it was read. A file that is
    gone when it is to be read is no message, or is met again where it was moved to. Raises DataError where there is
    neither a `new` nor a `cur`, at the start or later.
    """
    seen: set[str] = set()  # never forgotten: the names of a Maildir are unique for all time
    if not everything and not once:
        seen.update(_listed(maildir))
    there = _listed(maildir).keys()
    while True:
        yield _unseen(maildir, seen)
        if not once:
            time.sleep(interval)
        elif not (there & _listed(maildir).keys()) - seen:
            return


def _unseen(maildir: Path, seen: set[str]) -> Iterator[Arrived | Unread]:
    for name, path in _listed(maildir).items():
        if name in seen:
            continue
        try:
            with open_regular(str(path)) as stream:
                data = stream.read(MAX_BYTES + 1)
        except FileNotFoundError:
            continue  # and not seen
        except (OSError, NotMail) as error:
            seen.add(name)
            yield unread(str(path), error)
            continue
        seen.add(name)
        yield read_one(str(maildir), f"{path.parent.name}/{path.name}", data)


def _listed(maildir: Path) -> dict[str, Path]:
    """The messages that are there: name without flags -> path, in the order of their names, which begin with the time;
    of one that is met in both folders the later place."""
    found: dict[str, Path] = {}
    missing = 0
    for box in BOXES:
        try:
            names = os.listdir(maildir / box)
        except FileNotFoundError:
            missing += 1
            continue
        except OSError as error:
            raise DataError(f"{maildir / box} cannot be read: {error.strerror or error}") from error
        found |= {_FLAGS.sub("", name): maildir / box / name for name in names if not name.startswith(".")}
    if missing == len(BOXES):
        raise DataError(f"{maildir} is no Maildir: it has no folder new or cur")
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))
