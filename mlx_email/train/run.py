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
from collections.abc import Iterable
from pathlib import Path

from mlx_email import config as configuration
from mlx_email.config import Config, Sft, Stage
from mlx_email.errors import MlxEmailError, UserError
from mlx_email.labels.examples.augment import augmented
from mlx_email.labels.schema import Row
from mlx_email.model import lora
from mlx_email.model.batch import Example, example
from mlx_email.model.load import Base
from mlx_email.model.render import Renderer, answer_ids, prompt_ids
from mlx_email.model.wording import demonstration
from mlx_email.train.loop import derived_seed
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


def last_stage(run: Path, config: Config) -> Path:
    """The folder of the last stage that has its result; UserError where none has."""
    for stage in reversed(config.stages):
        if finished(run, stage.name):
            return result(run, stage.name)
    raise UserError(f"{run} has no finished stage: go on with mlx-email train --resume {run}")


def demonstrations(rows: Iterable[Row], renderer: Renderer, limit: int) -> list[Example]:
    """Each message's prompt with the answer that says what the owner did; the rows are read once and not kept."""
    return [
        example(row.message_id, prompt_ids(renderer, row, limit), answer_ids(renderer, demonstration(row)))
        for row in rows
    ]


def examples_of(stage: Stage, rows: Iterable[Row], renderer: Renderer, config: Config) -> list[Example]:
    """What a stage trains on, made from labelled rows."""
    if isinstance(stage, Sft) and stage.augment:
        rows = augmented(rows, config.seed)
    return demonstrations(rows, renderer, config.max_prompt_tokens)


def adapt(base: Base, config: Config) -> lora.Lora:
    """Put the configured adapters on the base where it has none yet; ModelError where they do not fit it."""
    wanted = config.lora
    adapters = lora.Lora(wanted.rank, wanted.alpha, wanted.dropout, wanted.targets, wanted.dora)
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
