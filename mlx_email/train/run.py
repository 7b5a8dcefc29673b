"""A run's folder: what it holds, and how one stage is trained into it.

RUN/config.yaml        the resolved configuration
RUN/environment.json   versions, device, machine
RUN/data/              features.parquet (linked or made here), people.parquet, rule.jsonl for the embedded mailbox
RUN/events.jsonl       a line an event: steps, evaluations; no mail text
RUN/STAGE/             adapters.safetensors, adapter_config.json, stage.json
RUN/metrics.json       final and per-stage metrics
"""

import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_email import config as configuration
from mlx_email import files
from mlx_email.algorithms import ALGORITHMS
from mlx_email.config import Config, Sft
from mlx_email.errors import DataError, MlxEmailError, UserError
from mlx_email.kernels import compiling
from mlx_email.labels.examples.augment import augmented
from mlx_email.labels.schema import Row
from mlx_email.model import lora
from mlx_email.model.batch import Batch, Example, example
from mlx_email.model.load import Base
from mlx_email.model.render import Renderer, answer_ids, prompt_ids
from mlx_email.model.wording import demonstration
from mlx_email.train import batches
from mlx_email.train.loop import StepResult, derived_seed, train
from mlx_email.train.optimizer import adamw, learning_rate

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
EVENTS = "events.jsonl"
METRICS = "metrics.json"
STAGE = "stage.json"
DATA = "data"


def environment() -> dict[str, Any]:
    """What a result may depend on besides the configuration and the data."""
    return {
        "mlx_email": version("mlx-email"),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        "cores": os.cpu_count(),
        "mkl_cbwr": os.environ.get("MKL_CBWR"),
    }


def append_event(run: Path, event: dict[str, Any]) -> None:
    """One line to events.jsonl; mode 0600 and never any mail text."""
    descriptor = os.open(run / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps({"time": round(time.time(), 3), **event}, allow_nan=False) + "\n")


def open_run(run: Path) -> Config:
    """The configuration of a run folder; UserError where it is not one."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not a run folder: it has no {CONFIG}")
    return configuration.load(str(run / CONFIG))


def last_stage(run: Path, config: Config) -> Path:
    """The folder of the last stage that is there; UserError where none has finished."""
    for stage in reversed(config.stages):
        if (run / stage.name / lora.ADAPTERS).is_file():
            return run / stage.name
    raise UserError(f"{run} has no finished stage: run mlx-email train again")


def demonstrations(rows: Iterable[Row], renderer: Renderer, limit: int) -> list[Example]:
    """Each message's prompt with the answer that says what the owner did; the rows are read once and not kept."""
    return [
        example(row.message_id, prompt_ids(renderer, row, limit), answer_ids(renderer, demonstration(row)))
        for row in rows
    ]


def stage_steps(examples: Sequence[Example], plan: batches.Plan, stage: Sft, seed: int) -> Iterator[list[Batch]]:
    """The micro-batches of every optimiser step of a stage, epoch after epoch."""
    for epoch in range(stage.epochs):
        yield from batches.steps(examples, plan, stage.accumulation, seed, epoch)


def adapt(base: Base, config: Config) -> lora.Lora:
    """Put the configured adapters on the base where it has none yet; ModelError where they do not fit it."""
    adapters = lora.Lora(config.lora.rank, config.lora.alpha, config.lora.dropout, config.lora.targets)
    lora.apply(base.model, adapters, derived_seed(config.seed, 0))
    return adapters


def train_stage(
    run: Path,
    base: Base,
    renderer: Renderer,
    rows: Iterable[Row],
    stage: Sft,
    config: Config,
    *,
    parent: str | None,
    on_step: Callable[[StepResult, int], None],
) -> Path:
    """Train one stage and publish its folder; gives that folder. `on_step(result, steps)` is called at each update.

    The base gets fresh adapters, or goes on with those of the stage `parent`, and keeps them. Raises DataError where
    there is nothing to train on.
    """
    folder = run / stage.name
    adapters = adapt(base, config)
    if stage.augment:
        rows = augmented(rows, config.seed)
    examples = demonstrations(rows, renderer, config.max_prompt_tokens)
    if not examples:
        raise DataError("the training split is empty: there is no labelled mail to learn from")
    plan = batches.plan(examples, stage.batch_size)
    steps = stage.epochs * batches.steps_per_epoch(plan, stage.accumulation)
    steps = steps if stage.max_steps is None else min(steps, stage.max_steps)
    compiled = compiling.by_default() if config.compile is None else config.compile
    results = train(
        base.model,
        ALGORITHMS[algorithm_of(stage)],
        stage,
        itertools.islice(stage_steps(examples, plan, stage, config.seed), steps),
        adamw(config.weight_decay),
        lambda step: learning_rate(step, steps, stage.learning_rate, stage.warmup),
        clip=config.gradient_clip,
        seed=config.seed,
        compiled=compiled,
    )
    history = []
    for result in results:
        history.append(result)
        if result.step % stage.log_every == 0 or result.step in (1, steps):
            append_event(run, {"event": "step", "stage": stage.name, **step_event(result)})
        on_step(result, steps)
    record = {
        "stage": stage.name,
        "algorithm": algorithm_of(stage),
        "parent": parent,
        "steps": steps,
        "examples": len(examples),
        "traces": len(set(plan.widths)) if compiled else 0,
        "compiled": compiled,
        "tokens": sum(result.tokens for result in history),
        "tokens_per_second": sum(r.tokens for r in history) / sum(r.seconds for r in history),
        "loss": history[-1].loss,
        "memory/peak_gb": mx.get_peak_memory() / 1e9,
    }
    with files.publish(folder) as temporary:
        lora.save(temporary, base.model, adapters, config.model)
        files.write_json(temporary / STAGE, record)
    append_event(run, {"event": "stage", **record})
    return folder


def algorithm_of(stage: Sft) -> str:
    """The key of ALGORITHMS for a stage's settings: their tag in the configuration."""
    return str(stage.__struct_config__.tag)


def step_event(result: StepResult) -> dict[str, Any]:
    """What events.jsonl says of a step."""
    return {
        "step": result.step,
        "loss": result.loss,
        "tokens": result.tokens,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "tokens_per_second": result.tokens / result.seconds,
        **result.metrics,
    }


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
