"""The whole job: mail to a labelled table, a model trained on it stage by stage, and what it is worth on later mail.

Each stage begins with the last policy that was kept and is measured on the validation split; where it is worse than the
best there was, the run goes on with that one (`gate`). The test split is looked at once, when all stages are done:
nothing after depends on it.
"""

import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from mlx_email import baselines, files, final, gate, lineage, reasons, report, telling
from mlx_email import config as configuration
from mlx_email.algorithms.reward import refuse
from mlx_email.collect import collect
from mlx_email.config import Config, Reward, Rsf
from mlx_email.errors import DataError, NothingToLearnError, UserError
from mlx_email.evaluate import priority
from mlx_email.jobs import (
    Run,
    enough,
    few_rows,
    job_of,
    refuse_code,
    refuse_rewards,
    rewarded_by,
    stages_of_run,
)
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import Row
from mlx_email.measure import Policy, baseline_summary, outcomes, predict
from mlx_email.model import load as loading
from mlx_email.model import lora, source
from mlx_email.model.frozen import Frozen
from mlx_email.model.load import Base
from mlx_email.model.render import prompt_ids, renderer
from mlx_email.progress import Progress
from mlx_email.stages import AnyStage
from mlx_email.tracking import Tracking, installed
from mlx_email.train import memory
from mlx_email.train import resume as resuming
from mlx_email.train import run as runs
from mlx_email.train.checkpoint import put_adapters
from mlx_email.train.run import DATA
from mlx_email.train.session import tag
from mlx_email.train.stage import finished, result, train_stage

EMPTY = Row(message_id="", user="", date=datetime(1970, 1, 1, tzinfo=UTC), sender="")


def train(
    mail: Path | None,
    config: Config,
    run: Path,
    stages: Sequence[str],
    progress: Progress,
    *,
    track: Sequence[str] = (),
) -> dict[str, Any]:
    """Make a run folder: data, the stages, metrics on the test split; gives what metrics.json holds.

    `mail` is a folder that `prepare` wrote, its features.parquet, or any mail source; None: the embedded mailbox.
    `track` names trackers (`tracking.TRACKERS`). The model, the settings and the mail are tried before the run folder
    appears. Raises UserError for what the user gave.
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
    tracking = Tracking(installed(track), progress.note)
    local = source.local_path(config.model)
    if config.model not in source.NAMED and local and Path(local).is_dir():
        config = msgspec.structs.replace(config, model=str(Path(local).resolve()))
    base = loading.load(config.model)
    words = renderer(base.tokenizer, history=config.sender_history)
    prompt_ids(words, EMPTY, config.max_prompt_tokens)  # do the headers and the question fit at all?
    runs.adapt(base, config)
    configuration.refuse_starts(chosen, "--stage" if stages else "the stages")
    refuse_stages(base, chosen)
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
        return follow(Run(run, config, base, words, progress, resuming.identity(base, run / DATA, config), tracking))


def resume(
    run: Path, overrides: Sequence[str], progress: Progress, *, force: bool = False, track: Sequence[str] = ()
) -> dict[str, Any]:
    """Go on with a run from wherever it ended, and give what metrics.json holds; a finished one is only reported.

    `overrides` may change how long, how often and how it is computed (`train.resume.MAY_CHANGE`); with `force` any
    setting, and what was trained with another is trained again. Raises UserError for anything else, and where another
    process has the run.
    """
    began = runs.open_run(run)
    tracking = Tracking(installed(track), progress.note)
    with files.locked(run):
        config = configuration.load(str(run / runs.CONFIG), overrides)
        if not force:
            for was, stage in zip(began.stages, config.stages, strict=False):
                if stage != was and finished(run, was.name):
                    raise configuration.ConfigError(
                        f"{run}: the stage {was.name} is finished: nothing of it can change without --force"
                    )
            resuming.refuse_settings(msgspec.to_builtins(began), msgspec.to_builtins(config), run)
        refuse_code(run, config, overrides, force=force)
        base = loading.load(config.model)
        runs.adapt(base, config)
        if force:
            config = msgspec.structs.replace(config, stages=stages_of_run(config.stages))
            refuse_stages(base, config.stages)
            if config.synthetic != began.synthetic:
                raise configuration.ConfigError(f"{run}: synthetic cannot change: the run has its mail")
        identity = resuming.identity(base, run / DATA, config)
        about = source.read_object(run / runs.ENVIRONMENT)
        resuming.refuse_others({"base": None, "data": None, **about}, identity, run)
        files.write(run / runs.CONFIG, configuration.dump(config))
        words = renderer(base.tokenizer, history=config.sender_history)
        return follow(Run(run, config, base, words, progress, identity, tracking), force=force)


def refuse_stages(base: Base, stages: Sequence[AnyStage]) -> None:
    """UserError where a stage cannot be trained whatever the mail is."""
    for stage in stages:
        if isinstance(stage, Reward):
            refuse(base.model, stage)
    refuse_rewards(stages)


def follow(run: Run, *, force: bool = False) -> dict[str, Any]:
    """Do what is not done yet of a run that this process holds: train its stages, each from the last policy that was
    kept, then measure all of them on the test split."""
    table = run.folder / DATA / FEATURES
    test_rows = few_rows(table, "test", run.config.evaluation.max_messages)
    known = outcomes(table)
    memory.settle(run.config.memory.cache_gb)
    record: dict[str, Any] = {"test": {"baselines": baseline_summary(run.folder, known, test_rows)}, "stages": {}}
    run.tracking.begin(run.folder, msgspec.to_builtins(run.config))
    try:
        chain(run, record, force=force)
        done = [stage for stage in run.config.stages if stage.name in record["stages"]]
        for name, found in final.test(run, done, test_rows, priority.by_action(known)):
            record["stages"][name]["test"] = found
        files.write_json(run.folder / runs.METRICS, record)  # what is fitted may take a while, or fail
        kept = run.folder / baselines.FILE
        fitted = baselines.of_fitted(table, run.identity["data"], len(known), test_rows, kept, run.progress)
        record["test"]["baselines"] = baselines.joined(record["test"]["baselines"], fitted)
        files.write_json(run.folder / runs.METRICS, record)
    finally:
        run.tracking.close()
    final_stage = record["final"]
    explain = None if final_stage is None else reasons.asked(run, final_stage, test_rows)
    report.attempt(run.folder, run.progress.note, explain)
    return record


def chain(run: Run, record: dict[str, Any], *, force: bool) -> None:
    """Train what is not trained yet and judge each policy on the validation split; `record`, which is published after
    every stage, gets what is said of each, and `final`: the policy with which the run goes on."""
    config, folder, progress = run.config, run.folder, run.progress
    fresh = Frozen.of(run.base.model)
    rows = few_rows(folder / DATA / FEATURES, "validation", config.gate.messages)
    if not rows:
        progress.note("warning: there is no mail to validate on: whatever a stage gives is kept")
    best: dict[str, Any] | None = None  # the verdict on the best policy so far
    last: dict[str, Any] | None = None  # and on the one that the next stage begins with
    done: dict[str, Any] = record["stages"]
    for stage in config.stages:
        if reason := obstacle(run, stage, last, done):
            progress.note(f"{stage.name}: left out, as {reason}")
            continue
        begins = parent_of(stage, last, done)
        now = lineage.of(folder, stage, config, run.identity, begins, rewarded_by(stage, config))
        if line := lineage.settle(folder, now, force=force):
            progress.note(line)
            publish(run, record, last)  # what was measured of what is put aside now is no longer so
        if not finished(folder, stage.name):
            put(run, begins, fresh)
            try:
                with progress.steps(f"train {stage.name}") as bar:
                    train_stage(job_of(run, stage, begins, bar))
            except NothingToLearnError as error:
                if last is None:
                    raise
                progress.note(f"warning: {stage.name} is left out: {error}")
                continue
        result(folder, stage.name)  # is it as it was written?
        told = done[stage.name] = {"method": tag(stage), "parent": begins, **final.tested(folder, stage)}
        if runs.trains_policy(stage):
            found = judged(run, stage, best, rows)
            told |= {name: found[name] for name in TOLD if name in found}
            last = found if found["kept"] else best
            best = found if found["kept"] and gate.better(found, best, config.gate) else best
        if "test" not in told:  # else nothing is new
            publish(run, record, last)
    record["final"] = None if last is None else last["stage"]


TOLD = ("kept", "than", "change", "change_interval", "validation")  # of a verdict, in metrics.json


def obstacle(run: Run, stage: AnyStage, last: dict[str, Any] | None, done: Collection[str]) -> str | None:
    """Why a stage is not trained after those that are `done`, `last` being the verdict on what it would begin with;
    None where it is."""
    if last is not None and reached(last, run.config) and not finished(run.folder, stage.name):
        return "the target accuracy is reached"
    if isinstance(stage, Rsf) and stage.follows and (stage.follows not in done or enough(run.folder, stage.follows)):
        return "the accuracy it is for is reached"
    if (judge := rewarded_by(stage, run.config)) is not None and judge not in done:
        return f"{judge}, which it asks, was"
    return None


def publish(run: Run, record: dict[str, Any], last: dict[str, Any] | None) -> None:
    """Write how far the run has come."""
    record["final"] = None if last is None else last["stage"]
    files.write_json(run.folder / runs.METRICS, record)


def parent_of(stage: AnyStage, last: dict[str, Any] | None, done: Collection[str]) -> str | None:
    """The stage whose adapters one begins with, of those that are `done`; None: it begins with none."""
    wanted = stage.starts_from
    if wanted is None:
        return None if last is None else last["stage"]
    if wanted == "base" or wanted in done:
        return None if wanted == "base" else wanted
    # An iteration that was left out, or any of them: the last there is.
    stems = {wanted, wanted.rpartition("-")[0]} - {""}
    iterations = [name for name in done if name.rpartition("-")[0] in stems]
    if not iterations:
        raise configuration.ConfigError(f"{stage.name} starts from {wanted}, which was left out")
    return iterations[-1]


def put(run: Run, stage: str | None, fresh: Frozen) -> None:
    """Give the base the adapters of a stage's result; of none: `fresh` ones."""
    if stage is None:
        fresh.put_on(run.base.model)
    else:
        put_adapters(result(run.folder, stage) / lora.ADAPTERS, run.base.model)


def judged(run: Run, stage: AnyStage, best: dict[str, Any] | None, rows: Sequence[Row]) -> dict[str, Any]:
    """The verdict on a stage's policy: read, or asked for now."""
    than, settings = None if best is None else best["stage"], run.config.gate
    if not rows:
        return {"stage": stage.name, "than": than, "kept": True}
    found = gate.verdict(run.folder, stage.name, than, settings)
    if found is None:
        put_adapters(result(run.folder, stage.name) / lora.ADAPTERS, run.base.model)
        said = predict(Policy(run.base, run.words, run.config, stage.name), rows, run.progress)
        found = gate.judge(run.folder, stage.name, than, rows, said, settings)
        telling.tell(run, {"event": "gate", **told_of(found)})
        gate.publish(run.folder, found)
        run.tracking.table(f"{stage.name}/validation", *telling.columns(rows, said))
    if not found["kept"]:
        run.progress.note(gate.said(found))
    return found


def told_of(found: dict[str, Any]) -> dict[str, Any]:
    """A verdict as a line of events.jsonl: without what is said of single actions."""
    said = {name: found.get(name) for name in ("stage", "than", "kept", "change")}
    measured = ("messages", "accuracy", "macro_f1", "nll", "calibration_error")
    return {**said, **{f"val/{name}": found["validation"][name] for name in measured}}


def reached(last: dict[str, Any], config: Config) -> bool:
    """Whether the policy of a verdict is as right as the run is to be."""
    target = config.target_accuracy
    return target is not None and "validation" in last and last["validation"]["accuracy"] >= target
