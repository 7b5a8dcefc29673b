"""Trackers: programs that a run's numbers go to besides events.jsonl. None is needed, and none sends anything away from
this machine unless its own settings say so (WANDB_MODE, MLFLOW_TRACKING_URI).

A tracker is a record of three functions. What one of them raises ends the tracking, never the run.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mlx_email.errors import ConfigError

PROJECT = "mlx-email"
FOLDER = "tracking"  # RUN/tracking: what those write that keep files

Columns = Sequence[str]
Lines = Sequence[Sequence[object]]


@dataclass(frozen=True)
class Tracker:
    """Where numbers go."""

    numbers: Callable[[str, int, Mapping[str, float]], object]  # (stage, step, by name)
    table: Callable[[str, Columns, Lines], object]  # (its name, columns, lines)
    close: Callable[[], object]


def of_wandb(wandb: ModuleType, run: Path, config: Mapping[str, Any]) -> Tracker:
    """Offline unless WANDB_MODE says otherwise: `wandb sync` uploads RUN/tracking/wandb later."""
    (run / FOLDER).mkdir(exist_ok=True)
    mode = os.environ.get("WANDB_MODE", "offline")
    made = wandb.init(project=PROJECT, name=run.name, dir=str(run / FOLDER), config=dict(config), mode=mode)

    def numbers(stage: str, step: int, values: Mapping[str, float]) -> None:
        made.define_metric(f"{stage}/*", step_metric=f"{stage}/step")  # steps begin anew with every stage
        made.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def table(name: str, columns: Columns, lines: Lines) -> None:
        made.log({name: wandb.Table(columns=list(columns), data=[list(line) for line in lines])})

    return Tracker(numbers, table, made.finish)


def of_trackio(trackio: ModuleType, run: Path, config: Mapping[str, Any]) -> Tracker:
    """In a data base of its own on this machine; `trackio show` reads it."""
    made = trackio.init(project=PROJECT, name=run.name, config=dict(config), embed=False)

    def numbers(stage: str, step: int, values: Mapping[str, float]) -> None:
        made.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def table(name: str, columns: Columns, lines: Lines) -> None:
        made.log({name: trackio.Table(columns=list(columns), data=[list(line) for line in lines])})

    return Tracker(numbers, table, made.finish)


def of_tensorboard(tensorboard: ModuleType, run: Path, config: Mapping[str, Any]) -> Tracker:  # noqa: ARG001
    """Event files: `tensorboard --logdir RUN/tracking`. It knows no tables; those lie in the stages' folders."""
    writer = tensorboard.Writer(str(run / FOLDER / "tensorboard"))

    def numbers(stage: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"{stage}/{name}", value, step)
        writer.flush()

    return Tracker(numbers, lambda *_: None, writer.close)


def of_mlflow(mlflow: ModuleType, run: Path, config: Mapping[str, Any]) -> Tracker:
    """A data base in RUN/tracking, unless MLFLOW_TRACKING_URI names a server."""
    folder = run.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        if mlflow.get_experiment_by_name(PROJECT) is None:
            mlflow.create_experiment(PROJECT, artifact_location=(folder / "mlflow").as_uri())
    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=run.name)
    mlflow.log_dict(dict(config), "config.json")

    def numbers(stage: str, step: int, values: Mapping[str, float]) -> None:
        mlflow.log_metrics({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def table(name: str, columns: Columns, lines: Lines) -> None:
        said = {column: [line[place] for line in lines] for place, column in enumerate(columns)}
        mlflow.log_dict({"columns": list(columns), "data": said}, f"{name}.json")

    return Tracker(numbers, table, mlflow.end_run)


# By the name that --track takes: the module that is imported, and what makes a tracker of it.
TRACKERS: Mapping[str, tuple[str, Callable[[ModuleType, Path, Mapping[str, Any]], Tracker]]] = {
    "wandb": ("wandb", of_wandb),
    "trackio": ("trackio", of_trackio),
    "tensorboard": ("tensorboard.summary", of_tensorboard),
    "mlflow": ("mlflow", of_mlflow),
}
# Programs like these tell their makers how they are used; not from here, unless the environment says so.
PRIVATE = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
# What of an event is no number to be followed.
NOT_FOLLOWED = ("time", "step", "tokens", "traces")


class Tracking:
    """The trackers of one run."""

    def __init__(self, modules: Mapping[str, ModuleType], note: Callable[[str], object] = lambda _: None) -> None:
        """`modules`, by tracker, as `installed` gives them. Nothing is begun before `begin`."""
        self._modules = dict(modules)
        self._note = note
        self._live: dict[str, Tracker] = {}

    def begin(self, run: Path, config: Mapping[str, Any]) -> None:
        """Tell the trackers of a run and its settings."""
        for name, module in self._modules.items():
            made = self._safely(name, lambda name=name, module=module: TRACKERS[name][1](module, run, config))
            if made is not None:
                self._live[name] = made

    def event(self, event: Mapping[str, Any]) -> None:
        """Pass on the numbers of a line of events.jsonl; one that is of no stage has none."""
        numbers = {
            name: float(value)
            for name, value in event.items()
            if isinstance(value, int | float) and name not in NOT_FOLLOWED
        }
        if event["event"] == "evaluate":
            numbers = {f"test/{name}": value for name, value in numbers.items()}
        elif event["event"] == "gate":
            numbers = {f"gate/{name}": value for name, value in numbers.items()}
        elif event["event"] not in ("step", "validation"):
            return
        for name, tracker in list(self._live.items()):
            self._safely(name, lambda tracker=tracker: tracker.numbers(event["stage"], event.get("step", 0), numbers))

    def table(self, name: str, columns: Columns, lines: Lines) -> None:
        """Pass on a table."""
        for of, tracker in list(self._live.items()):
            self._safely(of, lambda tracker=tracker: tracker.table(name, columns, lines))

    def close(self) -> None:
        """The run is over, for good or not."""
        for name, tracker in list(self._live.items()):
            self._safely(name, tracker.close)
        self._live.clear()

    def _safely(self, name: str, call: Callable[[], Any]) -> Any:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the run's result
                return call()
        except Exception as error:
            self._live.pop(name, None)
            said = " ".join(str(error).split())
            self._note(f"warning: {name} takes no more numbers ({type(error).__name__}: {said}); the run goes on")
            return None


def installed(names: Sequence[str]) -> dict[str, ModuleType]:
    """The modules of some trackers; ConfigError where one is not installed."""
    found = {}
    for setting, value in PRIVATE.items():
        os.environ.setdefault(setting, value)
    for name in names:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found[name] = importlib.import_module(TRACKERS[name][0])
        except Exception as error:  # whatever a broken installation raises
            said = " ".join(str(error).split())
            raise ConfigError(f"--track {name}: {said}: pip install 'mlx-email[{name}]'") from error
    return found
