"""Messages set aside on disk between reading and labelling, in numbered chunks.

    000012.bodies    the texts, one after the other
    000012.letters   everything else (`letters.Letter`), each owner's together
    000012.done      what the chunk holds and where; written last, so that a chunk without it does not exist

A chunk is a function of the mail in it alone. So a preparation that was killed goes on behind its last whole chunk, and
several processes can each write their own.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mlx_email.files import open_private
from mlx_email.labels.letters import Letter, Place


class Range(msgspec.Struct, frozen=True, array_like=True):
    """Where one owner's letters lie in a chunk."""

    start: int  # bytes
    length: int
    letters: int


class Done(msgspec.Struct, frozen=True):
    """What a whole chunk holds."""

    files: int
    size: int  # bytes of mail that were read
    rejected: list[tuple[str, str]]  # path and reason, in order
    owners: dict[str, Range]
    bodies: int  # bytes of the two files: fewer on disk, and the chunk is not whole
    letters: int


class Spool:
    """The chunks of a folder, by number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(
        self, number: int, letters: Sequence[Letter], *, files: int, size: int, rejected: list[tuple[str, str]]
    ) -> Done:
        """Write a chunk; letters keep their order within an owner's."""
        by_owner: dict[str, list[Letter]] = {}
        start = 0
        with open_private(self._path(number, "bodies")) as bodies:
            for letter in letters:
                body = letter.message.body.encode()
                bodies.write(body)
                message = msgspec.structs.replace(letter.message, body="")
                placed = Letter(message, letter.digest, Place(number, start, len(body)))
                by_owner.setdefault(message.owner, []).append(placed)
                start += len(body)
        bodies_size = start
        encoder = msgspec.msgpack.Encoder()
        owners, start = {}, 0
        with open_private(self._path(number, "letters")) as file:
            for owner, own in sorted(by_owner.items()):
                data = encoder.encode(own)
                file.write(data)
                owners[owner] = Range(start, len(data), len(own))
                start += len(data)
        done = Done(files, size, rejected, owners, bodies_size, start)
        temporary = self._path(number, f"done-{os.getpid()}")
        with open_private(temporary) as file:
            file.write(encoder.encode(done))
        temporary.rename(self._path(number, "done"))
        return done

    def done(self, number: int) -> Done | None:
        """What a chunk holds; None where it is not there, or not whole (a computer that lost its power has files of
        fewer bytes than were written)."""
        try:
            done = msgspec.msgpack.decode(self._path(number, "done").read_bytes(), type=Done)
            sizes = [self._path(number, kind).stat().st_size for kind in ("bodies", "letters")]
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return done if sizes == [done.bodies, done.letters] else None

    def letters(self, ranges: Sequence[tuple[int, Range]]) -> Iterator[Letter]:
        """The letters of (chunk, range) pairs."""
        decoder = msgspec.msgpack.Decoder(list[Letter])
        for number, part in ranges:
            yield from decoder.decode(_read(self._path(number, "letters"), part.start, part.length))

    def body(self, place: Place) -> str:
        """A text that lies in the spool."""
        return _read(self._path(place.chunk, "bodies"), place.start, place.length).decode()

    def _path(self, number: int, kind: str) -> Path:
        return self._folder / f"{number:06d}.{kind}"


def _read(path: Path, start: int, length: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        return file.read(length)
