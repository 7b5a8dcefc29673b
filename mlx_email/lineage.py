"""What a stage's result was made from: enough to say whether it has to be made again, and to make it again elsewhere.

RUN/STAGE/lineage.json   {"stage", "algorithm", "parent", "inputs": {...}, "config", "seed", "environment"}

`inputs` decide the result: the stage's settings, the run's, the base model, the labelled table, the adapters that the
stage began with and the reward model it asked, the latter four as SHA-256. `config` is the SHA-256 of the whole
configuration; `environment` the versions and the device.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mlx_email import config as configuration
from mlx_email import files
from mlx_email.config import Config, Sampled, Stage
from mlx_email.errors import ConfigError
from mlx_email.model import lora, source
from mlx_email.model.reward import HEAD
from mlx_email.sealed import digest
from mlx_email.train import resume
from mlx_email.train.run import CONFIG
from mlx_email.train.session import tag
from mlx_email.train.stage import finished, result

LINEAGE = "lineage.json"
REPLACED = "replaced"  # RUN/replaced/STAGE-1: results that were made again from other inputs

# Of a stage's settings what only says how often it reports or saves.
INHERITED = ("parent_adapter", "reward_model")
REPORTS = {("stage", name) for name in ("log_every", "save_every", "samples_every")}


def of(
    run: Path,
    stage: Stage,
    config: Config,
    identity: Mapping[str, Any],
    parent: str | None,
    rewarded_by: str | None,
) -> dict[str, Any]:
    """The lineage of a stage that is about to be trained. `identity`: `resume.identity`; `parent`: the stage whose
    adapters it begins with; `rewarded_by`: the stage whose reward model it asks."""
    return {
        "stage": stage.name,
        "algorithm": tag(stage),
        "parent": parent,
        "inputs": {
            "stage": msgspec.to_builtins(stage),
            "settings": resume.deciding(msgspec.to_builtins(config)),
            "base": identity["base"],
            "data": identity["data"],
            "parent_adapter": None if parent is None else files.sha256(result(run, parent) / lora.ADAPTERS),
            "reward_model": None if rewarded_by is None else _reward_model(run, rewarded_by),
            "reward_code": _reward_code(stage),
        },
        "config": digest(configuration.dump(config)),
        "model": config.model,
        "seed": config.seed,
        "environment": identity["environment"],
    }


def settle(run: Path, now: Mapping[str, Any], *, force: bool) -> str | None:
    """Leave in the stage's folder only what its lineage is true of, and write that where the stage is not finished.

    What was made from other inputs is put aside with `force`, and a line that says so is given; without, ConfigError
    naming the first thing that differs. What only began with something else, because that was trained again, needs no
    force: it may have been an earlier session's. A stage that is not finished may go on with what `resume.MAY_CHANGE`
    names.
    """
    stage = now["stage"]
    said = _out_of_date(run, now, force=force)
    if said is not None:
        said = f"{stage}: is trained again: {said}; what was there is now {_put_aside(run, stage)}"
    if not finished(run, stage):
        (run / stage).mkdir(exist_ok=True)
        files.write_json(run / stage / LINEAGE, dict(now))
    return said


def _out_of_date(run: Path, now: Mapping[str, Any], *, force: bool) -> str | None:
    """Why what is in a stage's folder has to be made again; None where it has not."""
    stage = now["stage"]
    if not (run / stage / LINEAGE).is_file():
        return "nothing says what it was made from" if force and finished(run, stage) else None
    then = source.read_object(run / stage / LINEAGE)
    changed = list(resume.differences(then["inputs"], now["inputs"]))
    if finished(run, stage):
        changed = [each for each in changed if each[0] not in REPORTS]
    else:
        changed = [each for each in changed if not resume.may_change(("stages", stage, *each[0][1:]))]
    if not changed:
        return None
    path, was, is_now = changed[0]
    if all(path[0] in INHERITED for path, *_ in changed):  # what it began with was trained again, by force then
        return f"its {path[0].replace('_', ' ')} is another"
    name = ".".join((stage, *path[1:]) if path[0] == "stage" else path)
    if not force:
        raise ConfigError(f"{run / CONFIG}: {name} was {was!r} and is {is_now!r}: --force trains {stage} again")
    return f"{name} was {was!r} and is {is_now!r}"


def _put_aside(run: Path, stage: str) -> Path:
    (run / REPLACED).mkdir(exist_ok=True)
    number = 1
    while (run / REPLACED / f"{stage}-{number}").exists():
        number += 1
    target = run / REPLACED / f"{stage}-{number}"
    (run / stage).rename(target)
    files.fsync(run)
    return target


def _reward_model(run: Path, stage: str) -> str:
    """Of its adapters and its head."""
    folder = result(run, stage)
    return digest([files.sha256(folder / name) for name in (lora.ADAPTERS, HEAD)])


def _reward_code(stage: Stage) -> dict[str, str]:
    """Of the files of reward functions of a user's own."""
    terms = stage.rewards if isinstance(stage, Sampled) else ()
    places = [Path(term.function.rpartition(":")[0]) for term in terms if ".py:" in term.function]
    return {str(place): files.sha256(place) for place in places if place.is_file()}
