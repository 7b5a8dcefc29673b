"""A run's folder: what it holds.

RUN/config.yaml        the resolved configuration
RUN/environment.json   versions, device, machine
RUN/data/              features.parquet (linked or made here), people.parquet, rule.jsonl for the embedded mailbox
RUN/events.jsonl       a line an event: steps, validations, checkpoints, evaluations; no mail text
RUN/STAGE/             a stage's checkpoints and its result (`stage`)
RUN/metrics.json       final and per-stage metrics
"""

import os
import shutil
from pathlib import Path

from mlx_email import config as configuration
from mlx_email.algorithms import ALGORITHMS
from mlx_email.config import Config, Sft, Stage
from mlx_email.errors import MlxEmailError, UserError
from mlx_email.model import lora, source
from mlx_email.model.load import Base
from mlx_email.train.loop import derived_seed
from mlx_email.train.session import tag
from mlx_email.train.stage import finished, result

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.json"
DATA = "data"


def open_run(run: Path) -> Config:
    """The configuration of a run folder; UserError where it is not one."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not a run folder: it has no {CONFIG}")
    return configuration.load(str(run / CONFIG))


def last_policy(run: Path, config: Config) -> Path:
    """The folder of the policy with which the run ends, or has come to so far; UserError where there is none."""
    if (run / METRICS).is_file():
        final = source.read_object(run / METRICS).get("final")
        if final is not None and finished(run, final):
            return result(run, final)
    else:  # it was interrupted before anything of it was measured
        for stage in reversed(config.stages):
            if trains_policy(stage) and finished(run, stage.name):
                return result(run, stage.name)
    if not any(map(trains_policy, config.stages)):
        raise UserError(f"{run} has no stage that trains a policy: it has a reward model only")
    raise UserError(f"{run} has no finished stage: go on with mlx-email train --resume {run}")


def policy_of(run: Path, config: Config, stage: str | None) -> Path:
    """The folder of a stage's policy; None: `last_policy`. UserError where the run has none of that name."""
    if stage is None:
        return last_policy(run, config)
    there = [each.name for each in config.stages if trains_policy(each) and finished(run, each.name)]
    if stage not in there:
        raise UserError(f"{run} has no finished policy named {stage}; there are {', '.join(there) or 'none'}")
    return result(run, stage)


def trains_policy(stage: Stage) -> bool:
    """Whether a stage's result is a policy, which the next stage goes on with."""
    return ALGORITHMS[tag(stage)].policy


def adapt(base: Base, config: Config, stage: Stage | None = None) -> lora.Lora:
    """Put the configured adapters on the base where it has none yet, with the dropout of a stage: none but in SFT, as
    other stages compare the policy with itself. ModelError where they do not fit the base."""
    wanted = config.lora
    dropout = wanted.dropout if isinstance(stage, Sft) else 0.0
    adapters = lora.Lora(wanted.rank, wanted.alpha, dropout, wanted.targets, wanted.dora, wanted.layers)
    lora.apply(base.model, adapters, derived_seed(config.seed, 0))
    return adapters


def link(source: Path, target: Path) -> None:
    """The same file under a second name where the file system can, else a copy.

    Both are safe: `prepare` replaces its tables by new files and never writes into one.
    """
    try:
        os.link(source.resolve(), target)
    except OSError:
        try:
            shutil.copyfile(source, target)
            target.chmod(0o600)
        except OSError as error:
            raise MlxEmailError(f"cannot copy {source} to {target}: {error.strerror or error}") from error
