"""An interrupt (ctrl-C, or SIGTERM, which `cli` turns into one) while a stage trains: finish the step, save, stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Stopped on request after everything was saved; the message says how to go on."""


@dataclass
class Stop:
    """Whether somebody asked for an end."""

    requested: bool = False


@contextlib.contextmanager
def deferred(note: Callable[[str], object]) -> Generator[Stop]:
    """Inside, a first interrupt only sets `requested`; a second one raises KeyboardInterrupt at once.

    Outside the main thread, where Python takes no signals, it changes nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        note("interrupted: the step is finished and saved first; once more to stop at once")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
