"""What each stage of a run is to do: its examples, what judges them, what it validates on."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

from mlx_email import config as configuration
from mlx_email.algorithms import Context
from mlx_email.config import Config, Reward, Rsf, Sampled, Sft, Stage, Temporal
from mlx_email.errors import ConfigError
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import Row, Split, read_rows
from mlx_email.model import reward as rewarding
from mlx_email.model import source
from mlx_email.model.batch import Example
from mlx_email.model.load import Base
from mlx_email.model.render import Renderer
from mlx_email.model.wording import BODY_CHARACTERS
from mlx_email.progress import Progress, StepBar
from mlx_email.rewards import judge as judging
from mlx_email.rewards.judge import Judge, is_import_path
from mlx_email.rewards.learned import Learned
from mlx_email.stages import AnyStage
from mlx_email.tracking import Tracking
from mlx_email.train import run as runs
from mlx_email.train.examples import Writer, examples_of, settled
from mlx_email.train.loop import derived_seed
from mlx_email.train.rejection import selection
from mlx_email.train.run import DATA
from mlx_email.train.session import Job
from mlx_email.train.stage import RECORD, finished, result


def drawn(examples: Sequence[Any], count: int | None, seed: int) -> list[Any]:
    """So many of the examples, in their order; all where None."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[index] for index in sorted(Random(seed).sample(range(len(examples)), count))]


@dataclass(frozen=True)
class Run:
    """A run that this process holds."""

    folder: Path
    config: Config
    base: Base  # with adapters
    words: Renderer
    progress: Progress
    identity: dict[
        str, Any
    ]  # what its checkpoints belong to (`train.resume.identity`): reading all weights takes a while
    tracking: Tracking = field(default_factory=lambda: Tracking({}))


def job_of(run: Run, stage: Stage, parent: str | None, bar: StepBar) -> Job:
    """What a stage is to do; the base has the adapters that it begins with, those of `parent`. What a stage learns from
    that samples first and trains then, is sampled here."""
    config, base, words, progress = run.config, run.base, run.words, run.progress
    table = run.folder / DATA / FEATURES
    held_out = few_rows(table, "validation", config.evaluation.validation_messages)
    adapters = runs.adapt(base, config, stage)
    seed = derived_seed(config.seed, zlib.crc32(stage.name.encode()))
    rows: Iterable[Row] = read_rows(table, "train", body_characters=BODY_CHARACTERS)
    if isinstance(stage, Sft) and stage.demonstrations is not None:
        rows = drawn(list(rows), stage.demonstrations, seed)
    writer, examples = gather(stage, rows, words, config)
    context = Context(renderer=words, judge=judge_of(stage, config, run.folder, base))
    counts = Counter(writer.counts)
    if isinstance(stage, Rsf):
        examples = drawn(examples, stage.prompts, seed)
        with progress.sampling(f"sample {stage.name}", len(examples)) as samples:
            sampling = dataclasses.replace(context, rolling=samples.rolling)
            found = selection(run.folder / stage.name, base.model, examples, stage, sampling, seed, samples.done)
        examples, counts = found.examples, counts + found.counts
    return Job(
        run=run.folder,
        base=base,
        config=config,
        stage=settled(stage, examples, progress.note),
        adapters=adapters,
        parent=parent,
        examples=examples,
        held_out=gather(stage, held_out, words, config, whole(stage, table, "validation"))[1],
        left_out=dict(counts),
        identity=run.identity,
        on_step=bar.step,
        note=progress.note,
        on_event=run.tracking.event,
        context=dataclasses.replace(context, rolling=bar.rolling),
    )


def stages_of_run(chosen: Sequence[AnyStage]) -> tuple[AnyStage, ...]:
    """The stages as a run's configuration has them: each iteration one, files of a user's own by their whole path, and
    none that follows what is not there."""
    found: list[AnyStage] = []
    for stage in configuration.expanded(chosen):
        changed = stage
        if isinstance(stage, Sampled):
            terms = tuple(msgspec.structs.replace(term, function=_whole_path(term.function)) for term in stage.rewards)
            changed = msgspec.structs.replace(stage, rewards=terms)
        if isinstance(stage, Rsf) and stage.follows not in {each.name for each in found}:
            changed = msgspec.structs.replace(changed, follows=None)
        found.append(changed)
    return tuple(found)


def _whole_path(function: str) -> str:
    place, colon, name = function.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if colon and place.endswith(".py") else function


def enough(run: Path, stage: str) -> bool:
    """Whether a finished iteration has reached what the stage is for: then no other follows."""
    return bool(source.read_object(run / stage / RECORD)["reached"])


def judge_of(stage: Stage, config: Config, run: Path, base: Base) -> Judge | None:
    """What judges the completions of a stage that samples: its reward functions, `learned` by the last reward model
    trained before it."""

    def learned() -> Learned:
        name = rewarded_by(stage, config)
        if name is None:
            raise AssertionError("refuse_rewards has seen to it that there is a reward model")
        return Learned(rewarding.load(base, result(run, name)), config.evaluation.batch_size)

    if not isinstance(stage, Sampled):
        return None
    return judging.judge(((term.function, term.weight) for term in stage.rewards), learned)


def rewarded_by(stage: Stage, config: Config) -> str | None:
    """The stage whose reward model a stage asks: the last one before it; None where it asks none."""
    if not isinstance(stage, Sampled) or judging.LEARNED not in {term.function for term in stage.rewards}:
        return None
    before = config.stages[: config.stages.index(stage)]
    return next((each.name for each in reversed(before) if isinstance(each, Reward)), None)


def gather(
    stage: Stage, rows: Iterable[Row], words: Renderer, config: Config, within: Sequence[Row] | None = None
) -> tuple[Writer, list[Example]]:
    """What a stage makes of some rows, and what wrote it, with its counts of what was cut or left out."""
    writer = Writer(words, config.max_prompt_tokens, config.seed)
    return writer, examples_of(stage, rows, writer, within)


def whole(stage: Stage, table: Path, split: Split) -> list[Row] | None:
    """All rows of a split, for a stage that says something of two messages, or of what came later; None for others."""
    if not isinstance(stage, Temporal) and not (isinstance(stage, Reward) and stage.message_pairs):
        return None
    return list(read_rows(table, split, body_characters=BODY_CHARACTERS))


def refuse_rewards(stages: Sequence[Stage]) -> None:
    """ConfigError where a stage names a reward function that is not there, or a reward model that is not trained before
    it."""
    trained = False
    for stage in stages:
        if isinstance(stage, Sampled):
            for term in stage.rewards:
                if term.function == judging.LEARNED and not trained:
                    raise ConfigError(
                        f"{stage.name}: the reward function {judging.LEARNED} needs a stage before it that trains a "
                        "reward model (algorithm: reward)"
                    )
                if is_import_path(term.function):
                    judging.imported(term.function)
        trained = trained or isinstance(stage, Reward)


def refuse_code(run: Path, config: Config, overrides: Sequence[str], *, force: bool = False) -> None:
    """ConfigError where a run's own configuration names code to be run for what it has not trained yet, or with `force`
    may train again: only the command line may."""
    for number, stage in enumerate(config.stages):
        if (finished(run, stage.name) and not force) or not isinstance(stage, Sampled):
            continue
        places = (f"stages.{stage.name}.rewards=", f"stages.{number}.rewards=")
        said: list[Any] = []
        for override in overrides:
            if override.startswith(places):
                said += msgspec.yaml.decode(override.partition("=")[2])
        named = {term["function"] for term in said}  # the configuration has them: their form is right
        for term in stage.rewards:
            if is_import_path(term.function) and term.function not in named:
                raise ConfigError(
                    f"{stage.name}: the run's reward function {term.function} is code, which is not taken from a run "
                    f"folder: name it again with --set 'stages.{stage.name}.rewards=[...]'"
                )
            if is_import_path(term.function):
                judging.imported(term.function)


def few_rows(table: Path, split: Split, most: int | None) -> list[Row]:
    """`spread` rows of a split, with as much of their bodies as a prompt takes."""
    return list(spread(list(read_rows(table, split, body_characters=BODY_CHARACTERS)), most))


def spread(rows: Sequence[Row], most: int | None) -> Sequence[Row]:
    """At most `most` rows, evenly spaced over the file's order (by owner, then time); all where None."""
    if most is None or len(rows) <= most:
        return rows
    return [rows[index] for index in np.linspace(0, len(rows) - 1, most).round().astype(int)]
