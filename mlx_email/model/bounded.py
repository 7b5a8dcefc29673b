"""A model's chat template is a program that comes with it. Jinja's sandbox keeps it from everything but its own words;
this keeps it from taking for ever."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from types import FrameType
from typing import Any

import jinja2

from mlx_email.errors import ModelError

SECONDS = 5.0  # of the processor; a template takes milliseconds
CHARACTERS = 1_000_000  # of what it gives

TEMPLATE = "<template>"  # what Jinja calls the file of a compiled one
UNPACKS = ("(", ",")  # before the ** of `f(**options)`, which is no power


@lru_cache(maxsize=16)
def refuse_power(template: str) -> None:
    """ModelError where a template raises to a power: one such operation, which nothing interrupts, can take for ever,
    and no prompt needs it. Also where it is no template of Jinja's."""
    try:
        lexed = jinja2.Environment().lex(template)  # noqa: S701 - cut into words, not run
        found = [(kind, text) for _, kind, text in lexed if kind != "whitespace"]
    except jinja2.TemplateSyntaxError as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(f"this model's chat template fails: {type(error).__name__} {first_line}") from error
    for (_, before), token in pairwise([("", ""), *found]):
        if token == ("operator", "**") and before not in UNPACKS:
            raise ModelError("this model's chat template raises numbers to a power: mlx-email does not run it")


@contextmanager
def bounded() -> Generator[None]:
    """Let templates run inside, in this thread, for SECONDS; one that does not end by then gets a ModelError.

    A loop is a line of the template again and again, a recursion a call; the clock is looked at in each, since what is
    done in one can take longer each time (a number that is squared again and again). What a single call of Jinja's own
    functions can do is little: its ranges end at 100,000.
    """
    before, ends = sys.gettrace(), time.thread_time() + SECONDS

    def watch(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001 - what sys.settrace calls
        if time.thread_time() > ends:
            raise ModelError("this model's chat template does not come to an end")
        return watch if frame.f_code.co_filename == TEMPLATE else None

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
