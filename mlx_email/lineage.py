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
from mlx_email.config import Config, Stage
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

# What of a run's settings no stage's result depends on; of a stage's, what only says how often it reports or saves.
ELSEWHERE = (
    "model",  # where it is; what it is has a SHA-256
    "stages",
    "memory",
    "keep_checkpoints",
    "compile",
    "gradient_checkpointing",
    "gate",
    "target_accuracy",
)
REPORTS = {("stage", name) for name in ("log_every", "save_every", "samples_every")}


def of(
    run: Path,
    stage: Stage,
    config: Config,
    prints: Mapping[str, str],
    parent: str | None,
    rewarded_by: str | None,
) -> dict[str, Any]:
    """The lineage of a stage that is about to be trained. `prints`: `resume.fingerprints`; `parent`: the stage whose
    adapters it begins with; `rewarded_by`: the stage whose reward model it asks."""
    settings = {name: value for name, value in msgspec.to_builtins(config).items() if name not in ELSEWHERE}
    settings["evaluation"].pop("max_messages")
    return {
        "stage": stage.name,
        "algorithm": tag(stage),
        "parent": parent,
        "inputs": {
            "stage": msgspec.to_builtins(stage),
            "settings": settings,
            "base": prints["base"],
            "data": prints["data"],
            "parent_adapter": None if parent is None else files.sha256(result(run, parent) / lora.ADAPTERS),
            "reward_model": None if rewarded_by is None else _reward_model(run, rewarded_by),
        },
        "config": digest(configuration.dump(config)),
        "model": config.model,
        "seed": config.seed,
        "environment": resume.environment(),
    }


def settle(run: Path, now: Mapping[str, Any], *, force: bool) -> str | None:
    """Leave in the stage's folder only what its lineage is true of, and write that where the stage is not finished.

    What was made from other inputs is put aside with `force`, and a line that says so is given; without, ConfigError
    naming the first thing that differs. A stage that is not finished may go on with what `resume.MAY_CHANGE` names.
    """
    stage, said = now["stage"], None
    if (run / stage / LINEAGE).is_file():
        then = source.read_object(run / stage / LINEAGE)
        changed = list(resume.differences(then["inputs"], now["inputs"]))
        if finished(run, stage):
            changed = [each for each in changed if each[0] not in REPORTS]
        else:
            changed = [each for each in changed if not resume.may_change((each[0][0] + "s", stage, *each[0][1:]))]
        if changed:
            path, was, is_now = changed[0]
            what = f"{'.'.join((stage, *path[1:]) if path[0] == 'stage' else path)} was {was!r} and is {is_now!r}"
            if not force:
                raise ConfigError(f"{run / CONFIG}: {what}: --force trains {stage} again")
            said = f"{stage}: is trained again, as {what}; what was there is now {_put_aside(run, stage)}"
    if not finished(run, stage):
        (run / stage).mkdir(exist_ok=True)
        files.write_json(run / stage / LINEAGE, dict(now))
    return said


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
