"""A model's chat template is a program that comes with it. Jinja's sandbox keeps it from everything but its own words;
this keeps it from taking for ever."""

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mlx_email.errors import ModelError

LINES = 1_000_000  # of Python; a template of many tools takes some thousands
CHARACTERS = 1_000_000  # of what it gives

CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
POWER = re.compile(r"[\w)\]}\"]\s*\*\*")  # not of `f(**options)`


def refuse_power(template: str) -> None:
    """ModelError where a template raises to a power: one such operation, which nothing interrupts, can take for ever,
    and no prompt needs it."""
    if any(POWER.search(STRING.sub('""', code)) for code in CODE.findall(template)):
        raise ModelError("this model's chat template raises numbers to a power: mlx-email does not run it")


@contextmanager
def bounded(lines: int = LINES) -> Generator[None]:
    """Let what runs inside, in this thread, execute so many lines of Python; beyond them it gets a ModelError."""
    left, before = lines, sys.gettrace()

    def count(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001 - what sys.settrace calls
        nonlocal left
        left -= event == "line"
        if left < 0:
            raise ModelError("this model's chat template does not come to an end")
        return count

    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)
