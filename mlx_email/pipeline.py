"""The whole job: mail to a labelled table, a model trained on it stage by stage, and what it is worth on later mail."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mlx_email import config as configuration
from mlx_email import files
from mlx_email.algorithms.reward import refuse
from mlx_email.config import Config, Reward, Rsf
from mlx_email.errors import DataError, UserError
from mlx_email.evaluate import baselines, metrics
from mlx_email.evaluate import reward as ranking
from mlx_email.evaluate.score import action_logps, probabilities
from mlx_email.export import fuse
from mlx_email.jobs import (
    enough,
    few_rows,
    gather,
    job_of,
    refuse_code,
    refuse_rewards,
    stages_of_run,
    whole,
)
from mlx_email.labels.fresh import features_of
from mlx_email.labels.prepare import COUNTS, FEATURES, REJECTED, SENDERS, advice, prepare
from mlx_email.labels.schema import ACTIONS, Row, Split, read_rows
from mlx_email.labels.tables import People, read_people
from mlx_email.labels.workers import default_count
from mlx_email.mail.message import Message, NotMail
from mlx_email.mail.read import read_message
from mlx_email.model import load as loading
from mlx_email.model import lora, source
from mlx_email.model import reward as rewarding
from mlx_email.model.batch import Example
from mlx_email.model.load import Base
from mlx_email.model.render import Renderer, prompt_ids, renderer
from mlx_email.model.reward import RewardModel
from mlx_email.progress import Progress
from mlx_email.synth.mailbox import best_possible, write_mailbox
from mlx_email.train import events, memory
from mlx_email.train import resume as resuming
from mlx_email.train import run as runs
from mlx_email.train.checkpoint import put_adapters
from mlx_email.train.examples import of_two_messages
from mlx_email.train.memory import exhausted
from mlx_email.train.run import DATA
from mlx_email.train.stage import finished, result, train_stage

RULE = "rule.jsonl"
EMPTY = Row(message_id="", user="", date=datetime(1970, 1, 1, tzinfo=UTC), sender="")
AGREEMENT_MESSAGES = 200  # validation messages on which a merged model is compared with its adapter


@dataclass(frozen=True)
class Policy:
    """A trained model, ready to ask."""

    base: Base
    renderer: Renderer
    config: Config
    stage: str


def train(mail: Path | None, config: Config, run: Path, stages: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Make a run folder: data, the stages, metrics on the test split; gives what metrics.json holds.

    `mail` is a folder that `prepare` wrote, its features.parquet, or any mail source; None: the embedded mailbox.
    The model, the settings and the mail are tried before the run folder appears. Raises UserError for what the user
    gave.
    """
    chosen = [stage for stage in config.stages if not stages or stage.name in stages]
    if unknown := set(stages) - {stage.name for stage in config.stages}:
        names = ", ".join(stage.name for stage in config.stages)
        raise configuration.ConfigError(f"--stage {', '.join(sorted(unknown))}: the configuration has {names}")
    if mail is not None and not mail.exists():
        raise DataError(f"{mail} does not exist: name a folder that prepare wrote, or a mail source")
    if mail is not None and mail.is_dir() and run.resolve().is_relative_to(mail.resolve()):
        raise UserError(f"the run {run} would lie in the mail {mail}: name a folder outside it with --out")
    if os.path.isfile(run / runs.CONFIG):  # which is not, where no path can be so long
        raise UserError(f"{run} is a run: mlx-email train --resume {run} goes on with it; or name another --out")
    local = source.local_path(config.model)
    if config.model not in source.NAMED and local and Path(local).is_dir():
        config = msgspec.structs.replace(config, model=str(Path(local).resolve()))
    base = loading.load(config.model)
    words = renderer(base.tokenizer, history=config.sender_history)
    prompt_ids(words, EMPTY, config.max_prompt_tokens)  # do the headers and the question fit at all?
    runs.adapt(base, config)
    for stage in chosen:
        if isinstance(stage, Reward):
            refuse(base.model, stage)
    refuse_rewards(chosen)
    with files.publish(run) as folder:
        (folder / DATA).mkdir()
        collect(mail, folder / DATA, config, progress)
        known = outcomes(folder / DATA / FEATURES)
        test_rows = few_rows(folder / DATA / FEATURES, "test", config.evaluation.max_messages)
        if not known or not test_rows:
            raise DataError(
                f"{mail or 'the embedded mailbox'} has {len(known)} messages to train on and {len(test_rows)} to test "
                "on: more mail is needed"
            )
        config = msgspec.structs.replace(config, stages=stages_of_run(chosen))
        files.write(folder / runs.CONFIG, configuration.dump(config))
        about = {**resuming.environment(), **resuming.fingerprints(base, folder / DATA)}
        files.write_json(folder / runs.ENVIRONMENT, about)
    with files.locked(run):
        return follow(run, config, base, words, progress)


def resume(run: Path, overrides: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Go on with a run from wherever it ended, and give what metrics.json holds; a finished one is only reported.

    `overrides` may change how long, how often and how it is computed (`train.resume.MAY_CHANGE`). Raises UserError for
    anything else, and where another process has the run.
    """
    began = runs.open_run(run)
    with files.locked(run):
        config = configuration.load(str(run / runs.CONFIG), overrides)
        for was, stage in zip(began.stages, config.stages, strict=False):
            if stage != was and finished(run, was.name):
                raise configuration.ConfigError(f"{run}: the stage {was.name} is finished: nothing of it can change")
        resuming.refuse_settings(msgspec.to_builtins(began), msgspec.to_builtins(config), run)
        refuse_code(run, config, overrides)
        base = loading.load(config.model)
        runs.adapt(base, config)
        about = source.read_object(run / runs.ENVIRONMENT)
        resuming.refuse_others({"base": None, "data": None, **about}, resuming.fingerprints(base, run / DATA), run)
        files.write(run / runs.CONFIG, configuration.dump(config))
        return follow(run, config, base, renderer(base.tokenizer, history=config.sender_history), progress)


def follow(run: Path, config: Config, base: Base, words: Renderer, progress: Progress) -> dict[str, Any]:
    """Do what is not done yet of a run that this process holds: train its stages and measure each on the test split."""
    table = run / DATA / FEATURES
    test_rows = few_rows(table, "test", config.evaluation.max_messages)
    identity = resuming.identity(base, run / DATA, config)
    baselines_there = baseline_summary(run, outcomes(table), test_rows)
    memory.settle(config.memory.cache_gb)
    record: dict[str, Any] = {"test": {"baselines": baselines_there}, "stages": {}}
    parent = None
    for stage in config.stages:
        policy = runs.trains_policy(stage)
        if isinstance(stage, Rsf) and stage.follows is not None and enough(run, stage.follows):
            progress.note(f"{stage.name}: left out, as the accuracy it is for is reached")
            continue
        if not finished(run, stage.name):
            with progress.steps(f"train {stage.name}") as bar:
                train_stage(job_of(stage, run, config, base, words, parent, identity, bar, progress))
        elif policy:
            put_adapters(result(run, stage.name) / lora.ADAPTERS, base.model)
        measured = run / stage.name / runs.METRICS
        if not measured.is_file():
            if isinstance(stage, Reward):
                trained = rewarding.load(base, result(run, stage.name))
                found = evaluate_reward(trained, words, stage, config, test_rows, whole(stage, table, "test"))
            else:
                found = evaluate(Policy(base, words, config, stage.name), test_rows, progress)
            events.append(run, {"event": "evaluate", "stage": stage.name, **found})
            files.write_json(measured, found)
        record["stages"][stage.name] = {"test": source.read_object(measured)}
        parent = stage.name if policy else parent
        record["final"] = parent
        files.write_json(run / runs.METRICS, record)
    return record


def collect(mail: Path | None, data: Path, config: Config, progress: Progress) -> None:
    """Put the labelled table into a run's data folder: linked where it is prepared, else made here."""
    if mail is not None:
        prepared = mail.parent if mail.name == FEATURES else mail
        if (prepared / FEATURES).is_file():
            adopt(prepared, data)
            return
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=data) as name:
        scratch = Path(name)
        if mail is None:
            with progress.phase("wrote the embedded mailbox"):
                box = write_mailbox(scratch / "mailbox", **msgspec.structs.asdict(config.synthetic))
            runs.link(box.rule_file, data / RULE)
            mail = box.path
        with progress.reading() as advance:
            prepared = prepare([mail], scratch / "table", count=default_count(), progress=advance)
        if warning := advice(prepared):
            progress.note(f"warning: {warning} to mlx-email prepare")
        adopt(scratch / "table", data)


def adopt(prepared: Path, data: Path) -> None:
    """Link what a run needs of a prepared folder, and what says how it came about."""
    for name in (FEATURES, SENDERS):
        if not (prepared / name).is_file():
            raise DataError(f"{prepared} has no {name}: run mlx-email prepare again")
        runs.link(prepared / name, data / name)
    for name in (COUNTS, REJECTED):
        if (prepared / name).is_file():
            runs.link(prepared / name, data / name)


def open_policy(run: Path) -> Policy:
    """The trained model of a run's last finished stage."""
    config = runs.open_run(run)
    stage = runs.last_policy(run, config)
    base = loading.load(config.model)
    lora.load(base.model, stage)
    return Policy(base, renderer(base.tokenizer, history=config.sender_history), config, stage.name)


def evaluate_reward(
    model: RewardModel,
    words: Renderer,
    stage: Reward,
    config: Config,
    rows: Sequence[Row],
    within: Sequence[Row] | None,
) -> dict[str, Any]:
    """How a reward model ranks, on some messages, what the owner did before all that they did not; and, where it has
    learned that too, one message before another (`messages`), as many pairs as there are messages. `within`: all of
    the split."""
    everything = msgspec.structs.replace(stage, wrong_answers=len(ACTIONS) - 1, message_pairs=0.0)
    writer, answers = gather(everything, rows, words, config)
    pairs = list(of_two_messages(within, writer, len(rows))) if within else []

    def measured(examples: Sequence[Example], batch_size: int) -> dict[str, Any]:
        if not examples:
            return ranking.NOTHING
        real = np.array([[len(ids) > 0 for ids in each.completions] for each in examples])
        with exhausted("scoring by the reward model"):
            return ranking.summary(model.score_all(examples, batch_size), real)

    # The completions of two messages are whole mails: as many at a time as in training.
    of_messages = {"messages": measured(pairs, stage.batch_size)} if within else {}
    return {**measured(answers, config.evaluation.batch_size), **of_messages}


def evaluate(policy: Policy, rows: Sequence[Row], progress: Progress) -> dict[str, Any]:
    """The metrics of a policy on some messages."""
    return metrics.summary(rows, predict(policy, rows, progress))


def predict(policy: Policy, rows: Sequence[Row], progress: Progress) -> np.ndarray:
    """Probabilities of the five actions, (N, 5), columns in the order of ACTIONS."""
    with progress.count(f"score {policy.stage}", "messages", len(rows)) as advance:
        logps = action_logps(
            policy.base,
            policy.renderer,
            rows,
            batch_size=policy.config.evaluation.batch_size,
            limit=policy.config.max_prompt_tokens,
            progress=advance,
        )
    return probabilities(logps)


def predict_files(run: Path, names: Sequence[str], owner: str | None, progress: Progress) -> list[dict[str, Any]]:
    """What a run's last stage would do with e-mails from files (`-`: stdin), one record a file, in their order.

    Raises DataError, before anything is predicted, for a file that cannot be read or is no e-mail.
    """
    runs.open_run(run)  # is it a run at all?
    people = read_people(run / DATA / SENDERS)
    user = owner_of(people, owner)
    rows = [features_of(_message(name, user), people) for name in names]
    policy = open_policy(run)
    scores = predict(policy, rows, progress)
    return [
        {
            "file": name,
            "action": ACTIONS[row.argmax()],
            "confidence": float(row.max()),
            "probabilities": dict(zip(ACTIONS, row.tolist(), strict=True)),
        }
        for name, row in zip(names, scores, strict=True)
    ]


def owner_of(people: People, owner: str | None) -> str:
    """Whose mailbox a fresh message is in; UserError for an unknown owner, or for none where there are several."""
    owners = sorted({user for user, _ in people})
    if owner is None and len(owners) <= 1:
        return owners[0] if owners else ""
    if owner not in owners:
        said = "which mailbox is it? give --owner" if owner is None else f"no owner {owner!r} in this run"
        raise UserError(f"{said}; there are {', '.join(owners)}")
    return owner


def _message(name: str, owner: str) -> Message:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return read_message(data, owner=owner)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error
    except NotMail as error:
        raise DataError(f"{'stdin' if name == '-' else name} is not an e-mail: {error}") from error


def export(run: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Publish a run's model with its adapter merged in, after measuring how well the merged model agrees with it."""
    table = run / DATA / FEATURES
    with files.publish(out) as folder:
        policy = open_policy(run)
        rows = few_rows(table, "validation", AGREEMENT_MESSAGES) or few_rows(table, "test", AGREEMENT_MESSAGES)
        before = predict(policy, rows, progress)
        config = fuse.fuse(policy.base)
        after = predict(policy, rows, progress)
        fuse.write(folder, policy.base, config)
    return {
        "run": str(run),
        "stage": policy.stage,
        "model": policy.config.model,
        "megabytes": sum(path.stat().st_size for path in out.iterdir()) / 1e6,
        "agreement": fuse.agreement(before, after),
    }


def evaluate_run(run: Path, data: Path | None, split: Split, progress: Progress) -> dict[str, Any]:
    """Evaluate a run's last stage on a split of its own data, or of another prepared folder."""
    policy = open_policy(run)
    table = run / DATA / FEATURES if data is None else (data / FEATURES if data.is_dir() else data)
    rows = few_rows(table, split, policy.config.evaluation.max_messages)
    if not rows:
        raise DataError(f"{table} has no messages in the split {split!r}")
    known = outcomes(table)
    base = baseline_summary(run if data is None else None, known, rows) if known else {}
    measured = evaluate(policy, rows, progress)
    return {"run": str(run), "stage": policy.stage, "split": split, "baselines": base, **measured}


def baseline_summary(run: Path | None, train_rows: Sequence[Row], rows: Sequence[Row]) -> dict[str, float]:
    """Accuracies to beat on `rows`, and for the embedded mailbox the best possible one."""
    target = metrics.targets(rows)
    summary = {
        "majority": metrics.accuracy(target, baselines.majority(train_rows, rows)),
        "majority_per_owner": metrics.accuracy(target, baselines.majority_per_owner(train_rows, rows)),
    }
    if run is not None and (run / DATA / RULE).is_file():
        summary["best_possible"] = best_possible(run / DATA / RULE, rows)
    return summary


def outcomes(table: Path) -> list[Row]:
    """The training rows without their text: what baselines learn from."""
    return list(read_rows(table, "train", body_characters=0))
