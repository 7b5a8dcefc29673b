"""Messages set aside on disk, one file an owner, so that only one owner's mail is in memory at a time."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mlx_email.mail.message import Message

BUFFER_BYTES = 32 * 1024 * 1024  # kept before it is appended to the owners' files
_LENGTH = 8  # bytes before each record


class Spool:
    """Takes messages of many owners in any order and gives them back by owner, in the order they came."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}  # numbered: an owner's name may not be fit for a file
        self._buffers: dict[str, list[bytes]] = defaultdict(list)
        self._buffered = 0
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Message)

    def add(self, message: Message) -> None:
        record = self._encoder.encode(message)
        self._files.setdefault(message.owner, self._folder / f"{len(self._files)}.messages")
        self._buffers[message.owner] += [len(record).to_bytes(_LENGTH, "little"), record]
        self._buffered += len(record)
        if self._buffered >= BUFFER_BYTES:
            self._append()

    def owners(self) -> list[str]:
        return sorted(self._files)

    def read(self, owner: str) -> Iterator[Message]:
        self._append()
        with self._files[owner].open("rb") as file:
            while head := file.read(_LENGTH):
                yield self._decoder.decode(file.read(int.from_bytes(head, "little")))

    def _append(self) -> None:
        for owner, pieces in self._buffers.items():
            with self._files[owner].open("ab") as file:  # opened for this only: owners may outnumber open files
                file.write(b"".join(pieces))
        self._buffers.clear()
        self._buffered = 0
