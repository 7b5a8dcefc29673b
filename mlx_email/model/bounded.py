"""A model's chat template is a program that comes with it. Jinja's sandbox keeps it from everything but its own words;
this keeps it from taking for ever."""

import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mlx_email.errors import ModelError

SECONDS = 5.0  # of the processor; a template takes milliseconds
EVERY = 256  # calls, or lines of the template, between two looks at the clock
CHARACTERS = 1_000_000  # of what it gives

TEMPLATE = "<template>"  # what Jinja calls the file of a compiled one
CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
POWER = re.compile(r"[\w)\]}\"]\s*\*\*")  # not of `f(**options)`


def refuse_power(template: str) -> None:
    """ModelError where a template raises to a power: one such operation, which nothing interrupts, can take for ever,
    and no prompt needs it."""
    if any(POWER.search(STRING.sub('""', code)) for code in CODE.findall(template)):
        raise ModelError("this model's chat template raises numbers to a power: mlx-email does not run it")


@contextmanager
def bounded() -> Generator[None]:
    """Let templates run inside, in this thread, for SECONDS; one that does not end by then gets a ModelError.

    A loop is a line of the template again and again, a recursion a call. What a single call of Jinja's own functions
    can do is little: its ranges end at 100,000.
    """
    before, ends, seen = sys.gettrace(), time.thread_time() + SECONDS, 0

    def watch(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001 - what sys.settrace calls
        nonlocal seen
        seen += 1
        if seen % EVERY == 0 and time.thread_time() > ends:
            raise ModelError("this model's chat template does not come to an end")
        return watch if frame.f_code.co_filename == TEMPLATE else None

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
