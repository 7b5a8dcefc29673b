"""A run folder as plain values: what a report is made of. Anything of it may be missing; what is no finite number is
None."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_email.errors import UserError
from mlx_email.evaluate import acting
from mlx_email.evaluate.acting import Rules
from mlx_email.labels.prepare import COUNTS
from mlx_email.model.source import read_object
from mlx_email.report import said
from mlx_email.report.said import Said
from mlx_email.train import events
from mlx_email.train import run as runs
from mlx_email.train.stage import RECORD

Series = tuple[list[int], list[float]]  # steps, and the values there


@dataclass(frozen=True)
class Stage:
    """What there is of a stage. `told` and `result` are from metrics.json and stage.json."""

    name: str
    told: Mapping[str, Any]
    result: Mapping[str, Any]
    curves: Mapping[str, Series]


@dataclass(frozen=True)
class Run:
    """What there is of a run."""

    folder: Path
    config: str  # YAML
    environment: Mapping[str, Any]
    stages: Sequence[Stage]
    baselines: Mapping[str, Any]
    final: str | None  # the stage with whose policy it ends
    said: Said | None = None  # by that policy, of the test split
    rules: Rules | None = None  # for that policy
    labels: Mapping[str, Any] = field(default_factory=dict)  # data/prepare.json


def run(folder: Path) -> Run:
    """Read a run folder. UserError where it is none, or nothing of it was measured yet."""
    if not (folder / runs.CONFIG).is_file():
        raise UserError(f"{folder} is not a run folder: it has no {runs.CONFIG}")
    if not (folder / runs.METRICS).is_file():
        raise UserError(f"{folder} has no {runs.METRICS} yet: go on with mlx-email train --resume {folder}")
    measured = read_object(folder / runs.METRICS)
    stages, tested = _mapping(measured.get("stages")), _mapping(measured.get("test"))
    curves = _curves(events.read(folder))
    ends = measured.get("final")
    return Run(
        folder=folder,
        config=(folder / runs.CONFIG).read_text(errors="replace"),
        environment=_object(folder / runs.ENVIRONMENT),
        stages=[
            Stage(name, _mapping(told), _object(folder / name / RECORD), curves.get(name, {}))
            for name, told in sorted(stages.items(), key=lambda item: _place(list(curves), item[0]))
        ],
        baselines=_mapping(tested.get("baselines")),
        final=ends,
        said=None if ends is None else said.read(folder / ends),
        rules=None if ends is None else acting.read(folder / ends),
        labels=_object(folder / runs.DATA / COUNTS),
    )


def finite(value: Any, *path: str) -> float | None:
    """A number that lies at `path` in nested mappings; None where there is none, or none that is finite."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def pair(value: Any, *path: str) -> tuple[float, float] | None:
    """The same of an interval."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = finite(value[0]), finite(value[1])
    return None if low is None or high is None else (low, high)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _object(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}


def _place(order: Sequence[str], name: str) -> int:
    """metrics.json has the stages by name; events.jsonl in the order in which they were trained."""
    return order.index(name) if name in order else len(order)


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """Stage -> number -> its course, of steps and validations."""
    found: dict[str, dict[str, Series]] = {}
    for line in lines:
        stage, step = line.get("stage"), finite(line, "step")
        if not isinstance(stage, str) or step is None:
            continue
        courses = found.setdefault(stage, {})
        for name in line if line.get("event") in ("step", "validation") else ():
            value = finite(line, name)
            if value is not None and name not in ("time", "step"):
                steps, values = courses.setdefault(name, ([], []))
                steps.append(int(step))
                values.append(value)
    return found
