"""Whether a run's folder is as it was written: its records, its tables, its stages and their checkpoints."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_email import files, sealed
from mlx_email import gate as gating
from mlx_email.baselines import FILE as BASELINES
from mlx_email.evaluate import acting, calibrate
from mlx_email.evaluate.predictions import COLUMNS
from mlx_email.final import PREDICTIONS
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import ACTIONS
from mlx_email.lineage import LINEAGE, REPLACED
from mlx_email.model import lora, reward
from mlx_email.sealed import Damaged, read_json
from mlx_email.train import checkpoint
from mlx_email.train import run as runs
from mlx_email.train.events import EVENTS
from mlx_email.train.run import CONFIG, DATA, ENVIRONMENT, METRICS
from mlx_email.train.stage import RECORD, result
from mlx_email.verify.findings import Finding, looked_at
from mlx_email.verify.tables import check_folder

MARKS = (CONFIG, ENVIRONMENT, EVENTS, METRICS)
PARTS = ("reference", "kept")  # folders of a stage that hold sealed folders


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, even if one of its files lacks."""
    return sum((folder / name).is_file() for name in MARKS) > 1


def is_stage(folder: Path) -> bool:
    """Whether a folder is a stage's, even if one of its files lacks."""
    return any((folder / name).is_file() for name in (RECORD, LINEAGE, gating.GATE))


def check_run(run: Path) -> Iterator[Finding]:
    """A run, its tables, its stages (those that were put aside too), and what is in them."""
    yield looked_at("run", run, _records)
    yield looked_at("tables", run / DATA, _tables)
    for folder in sorted(path for path in run.iterdir() if path.is_dir() and path.name not in (DATA, REPLACED)):
        if is_stage(folder) or any(checkpoints(folder)):
            yield from check_stage(folder, run)
    for folder in sorted((run / REPLACED).glob("*")):
        if is_stage(folder):
            yield from check_stage(folder)


def check_stage(folder: Path, run: Path | None = None) -> Iterator[Finding]:
    """A stage, of a `run` or by itself, its checkpoints and its other sealed folders."""
    yield looked_at("stage", folder, lambda _: _stage(folder, run))
    name = folder.name.rpartition("-")[0] if folder.parent.name == REPLACED else folder.name
    for path in checkpoints(folder):
        step = int(path.name.removeprefix("step-"))
        yield looked_at("checkpoint", path, lambda path, step=step: checkpoint.whole(path, stage=name, step=step))
    for part in sorted(path for parent in PARTS for path in (folder / parent).glob("*") if path.is_dir()):
        if not part.name.startswith(files.TEMPORARY):
            yield looked_at("sealed folder", part, sealed.verify)


def checkpoints(stage: Path) -> list[Path]:
    """The folders of a stage's checkpoints, damaged ones included."""
    return sorted(path for path in stage.iterdir() if path.is_dir() and checkpoint.NAME.fullmatch(path.name))


def _records(run: Path) -> None:
    runs.open_run(run)
    about = read_json(run / ENVIRONMENT)
    if lacking := {"base", "data"} - about.keys():
        raise Damaged(f"{run / ENVIRONMENT} has no {min(lacking)}")
    if (run / BASELINES).is_file() and read_json(run / BASELINES)["data"] != about["data"]:
        raise Damaged(f"{run / BASELINES} is of another table than {run / ENVIRONMENT} says")
    *lines, _ = (run / EVENTS).read_bytes().split(b"\n") if (run / EVENTS).is_file() else [b""]  # the last may be torn
    for number, text in enumerate(lines, 1):
        if not isinstance(json.loads(text), dict):
            raise Damaged(f"{run / EVENTS}: line {number} is no event")
    if (run / METRICS).is_file() or any(run.glob(f"*/{METRICS}")):  # else it has not come so far
        _metrics(run, read_json(run / METRICS))


def _metrics(run: Path, metrics: dict[str, Any]) -> None:
    """What a run says of its stages, beside what their own folders say."""
    for name, said in metrics["stages"].items():
        if not (run / name / RECORD).is_file():
            raise Damaged(f"{run / METRICS} tells of the stage {name}, and {run / name / RECORD} is not there")
        if "test" in said:
            _same(run / name / METRICS, said["test"], read_json(run / name / METRICS))
        if "validation" in said:
            _same(run / name / gating.GATE, said["validation"], read_json(run / name / gating.GATE)["validation"])
    if metrics["final"] not in {None, *metrics["stages"]}:
        raise Damaged(f"{run / METRICS}: the run ends with {metrics['final']!r}, which is no stage of it")


def _same(file: Path, said: dict[str, Any], there: dict[str, Any]) -> None:
    if any(there[name] != value for name, value in said.items() if name in there) or not said.keys() & there.keys():
        raise Damaged(f"{file} does not say what {METRICS} of the run says of it")


def _tables(data: Path) -> None:
    check_folder(data)
    about = data.parent / ENVIRONMENT
    if about.is_file() and read_json(about).get("data") != files.sha256(data / FEATURES):
        raise Damaged(f"{data / FEATURES} is not the table that {about} says the run was made of")


def _stage(folder: Path, run: Path | None) -> None:
    lineage = read_json(folder / LINEAGE)
    if run is not None:
        _origins(folder / LINEAGE, lineage, run)
    if (folder / RECORD).is_file():
        _result(folder)
    elif (folder / METRICS).is_file():
        raise Damaged(f"{folder} has no {RECORD}")
    calibrate.read(folder)
    acting.read(folder)
    if (folder / gating.GATE).is_file():
        said = read_json(folder / gating.GATE)
        for name, sha256 in ((lora.ADAPTERS, said["policies"][0]), (gating.PREDICTIONS, said["predictions"])):
            if files.sha256(folder / name) != sha256:
                raise Damaged(f"{folder / name} is not what {gating.GATE} was judged by")
        _predictions(folder / gating.PREDICTIONS, said["validation"])
    said = read_json(folder / METRICS) if (folder / METRICS).is_file() else {}
    if "accuracy" in said:  # not a reward model's
        _predictions(folder / PREDICTIONS, said)


def _origins(file: Path, lineage: dict[str, Any], run: Path) -> None:
    """What a stage says that it was made from, beside what is there."""
    inputs, about, parent = lineage["inputs"], read_json(run / ENVIRONMENT), lineage["parent"]
    for name in ("data", "base"):
        if inputs[name] != about[name]:
            raise Damaged(f"{file}: it was made of another {name} than {run / ENVIRONMENT} says")
    if parent is None:
        return
    # The parent may have been trained again since, by force: what it was is then put aside.
    aside = [path for path in (run / REPLACED).glob("*") if path.name.rpartition("-")[0] == parent]
    before = [path / lora.ADAPTERS for path in aside if (path / lora.ADAPTERS).is_file()]
    if inputs["parent_adapter"] not in map(files.sha256, (run / parent / lora.ADAPTERS, *before)):
        raise Damaged(f"{file}: it began with other adapters than {run / parent} has")


def _result(folder: Path) -> None:
    """What a stage has published: the adapters of the checkpoint that it names, and a reward model's head."""
    record = read_json(result(folder.parent, folder.name) / RECORD)
    chosen = checkpoint.folder_of(folder, record["result_step"])
    held = read_json(chosen / sealed.MANIFEST)["files"]
    names = [lora.ADAPTERS, lora.ADAPTER_CONFIG, *([reward.HEAD] if reward.HEAD in held else [])]
    for name in names:
        if files.sha256(folder / name) != held[name]["sha256"]:
            raise Damaged(f"{folder / name} is damaged: it is not that of {chosen}")
    if reward.HEAD in held:
        reward.about(folder)


def _predictions(file: Path, metrics: dict[str, Any]) -> None:
    """A table of predictions, line by line, and what the metrics say of all."""
    with open(file, encoding="utf-8", newline="") as text:
        try:
            right = [_right(each) for each in csv.DictReader(text)]
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise Damaged(f"{file} is damaged ({type(error).__name__} {error})") from error
    if (metrics["messages"], metrics["accuracy"]) != (len(right), sum(right) / max(len(right), 1)):
        raise Damaged(f"{file} does not give the accuracy that was measured")


def _right(line: dict[str, str]) -> bool:
    """Whether a line's prediction is right; ValueError where the line does not agree with itself."""
    shares = {action: float(line[action]) for action in ACTIONS}
    said, right = max(shares, key=lambda action: shares[action]), line["actual"] == line["predicted"]
    whole = tuple(line) == COLUMNS and line["actual"] in ACTIONS and math.isclose(sum(shares.values()), 1, abs_tol=1e-6)
    if not whole or (line["predicted"], line["correct"], float(line["confidence"])) != (said, str(right), shares[said]):
        raise ValueError("a line of it does not agree with itself")
    return right
