"""events.jsonl, a run's diary: a line an event. It holds numbers and names of stages, never any mail text."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from mlx_email import files
from mlx_email.errors import MlxEmailError

EVENTS = "events.jsonl"


def append(run: Path, event: dict[str, Any], *, flush: bool = False) -> None:
    """Add one line; mode 0600. With `flush` this and all lines before it are on the disk afterwards.

    JSON has no NaN: a metric that is not finite is null (a loss that is not ends the run, and is in its error).
    """
    finite = {
        key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in event.items()
    }
    line = json.dumps({"time": round(time.time(), 3), **finite}, allow_nan=False) + "\n"
    try:
        descriptor = os.open(run / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(line)
        if flush:
            files.fsync(run / EVENTS)
    except OSError as error:
        raise MlxEmailError(f"cannot write {run / EVENTS}: {error.strerror or error}") from error


def append_once(run: Path, event: dict[str, Any]) -> None:
    """The same of what there is one of for a stage: a line of its kind that is there already, because a kill came
    before what it says was published, is left out."""
    kept = [each for each in read(run) if any(each.get(key) != event[key] for key in ("event", "stage"))]
    files.write(run / EVENTS, "".join(json.dumps(each, allow_nan=False) + "\n" for each in kept))
    append(run, event, flush=True)


def read(run: Path) -> list[dict[str, Any]]:
    """The events so far. A line that is not whole (a kill while it was written) is left out."""
    try:
        lines = (run / EVENTS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [event for event in map(_event, lines) if event is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def rewind(run: Path, stage: str, step: int) -> None:
    """Forget what happened to `stage` after `step`, since it is going to happen again: no step appears twice."""
    kept = [event for event in read(run) if event.get("stage") != stage or event.get("step", 0) <= step]
    files.write(run / EVENTS, "".join(json.dumps(event, allow_nan=False) + "\n" for event in kept))
