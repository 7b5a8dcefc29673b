"""One stage of a run: the loop's results logged, validated, saved; and at the end its adapter, for whoever wants it.

RUN/STAGE/step-000120/          checkpoints (`checkpoint`)
RUN/STAGE/adapters.safetensors  the result: of the best step where there were validations, else of the last
RUN/STAGE/adapter_config.json
RUN/STAGE/reward_head.safetensors, reward_head.json   of a reward model
RUN/STAGE/samples/              tables of what was sampled (`samples`), for people
RUN/STAGE/stage.json            what the stage did; written last: a stage is finished when it is there
"""

import dataclasses
import itertools
import shlex
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import msgspec

from mlx_email import files
from mlx_email.errors import MlxEmailError, ModelError, NothingToLearnError
from mlx_email.model import checkpointing, lora, reward, source
from mlx_email.train import batches, checkpoint, events, interrupts, memory, resume
from mlx_email.train.loop import StepResult, derived_seed, train
from mlx_email.train.optimizer import adamw, learning_rate
from mlx_email.train.reference import reference_of, with_reference
from mlx_email.train.session import Job, Session, Standing, save

RECORD = "stage.json"


def finished(run: Path, stage: str) -> bool:
    """Whether a stage has its result."""
    return (run / stage / RECORD).is_file()


def result(run: Path, stage: str) -> Path:
    """The folder of a finished stage; ModelError where its adapter is not as it was written."""
    folder = run / stage
    if files.sha256(folder / lora.ADAPTERS) != source.read_object(folder / RECORD).get("sha256"):
        raise ModelError(f"{folder / lora.ADAPTERS} is damaged: it is not what {RECORD} says")
    return folder


def train_stage(job: Job) -> dict[str, Any]:
    """Train a stage from where it stands and publish its result; gives what stage.json holds.

    The base model has the adapters to begin with, and holds the stage's result afterwards; after a stage that trains
    something else than the policy, such as a reward model, what it had. Raises NothingToLearnError without anything to
    train on, `resume`'s errors where the checkpoints are of something else, Interrupted after an interrupt, and
    MlxEmailError where the numbers, the disk or the memory end it; the checkpoints stay.
    """
    if not job.examples:
        raise NothingToLearnError(
            f"{job.stage.name}: there is nothing to learn from: the training split has no message for it"
        )
    plan = batches.plan(job.examples, job.stage.batch_size)
    updates = job.algorithm.updates(job.stage)
    steps = job.stage.epochs * batches.steps_per_epoch(plan, job.stage.accumulation) * updates
    steps = steps if job.stage.max_steps is None else min(steps, job.stage.max_steps)
    own = zlib.crc32(job.stage.name.encode())  # two stages of a kind begin differently
    with job.algorithm.fitting(job.base.model, job.stage, derived_seed(job.config.seed, 1, own)):
        return _train(job, plan, steps, own)


def _train(job: Job, plan: batches.Plan, steps: int, own: int) -> dict[str, Any]:
    stage, config, model = job.stage, job.config, job.base.model
    optimizer = adamw(config.weight_decay)
    session = Session(job, steps, optimizer, _begin(job, optimizer))
    events.append(
        job.run,
        {
            "event": "begin",
            "stage": stage.name,
            "step": session.standing.step,
            "steps": steps,
            "examples": len(job.examples),
            "left_out": dict(job.left_out),
        },
    )
    for what, count in job.left_out.items():
        job.note(f"{stage.name}: {count} {what}")
    if steps < session.standing.step:
        job.note(f"{stage.name}: {session.standing.step} steps are done already, {steps} are asked for")
    memory.settle(config.memory.cache_gb)
    mx.reset_peak_memory()
    updates = session.updates
    job = session.job = _with_reference(job, batches.used(plan, stage.accumulation, config.seed, steps // updates))
    live = job.algorithm.live_reference(stage)
    reference = reference_of(job.folder, model) if live else None
    session.context = dataclasses.replace(job.context, reference=reference, compiled=session.compiled, seed=own)
    if config.gradient_checkpointing:
        checkpointing.apply(model)
    try:
        first = session.standing.step
        results = train(
            model,
            job.algorithm,
            stage,
            itertools.islice(
                batches.steps(job.examples, plan, stage.accumulation, config.seed, start=first // updates),
                max(steps - first, 0) // updates,
            ),
            optimizer,
            lambda step: learning_rate(stage.schedule, step, steps, stage.learning_rate, stage.warmup),
            clip=config.gradient_clip,
            seed=config.seed,
            compiled=session.compiled,
            start=first,
            context=session.context,
        )
        if not session.enough:  # it may be: killed between the last step and its result
            follow(results, session)
    except MlxEmailError as error:
        there = f"The last checkpoint is of step {session.saved}; to go on from it: {_command(job)}"
        raise type(error)(f"{error}. {there}") from error
    finally:
        checkpointing.remove(model)
    return _finish(job, session.record())


def follow(results: Iterator[StepResult], session: Session) -> None:
    """Take the steps one after another: log, validate, save, and stop at the end, for good or on request."""
    with interrupts.deferred(session.job.note) as stop:
        for result in results:
            session.take(result)
            if session.validation_is_due:
                session.validate()
            if not session.may_stop:
                continue
            if session.over or session.save_is_due or session.too_much_memory or stop.requested:
                session.save()
            if stop.requested:  # in the last step too: what follows a stage would not be interrupted
                there = f"saved at step {result.step} of {session.steps}"
                raise interrupts.Interrupted(f"{there}; to go on: {_command(session.job)}")
            if session.over:
                return
            if session.too_much_memory:
                raise MlxEmailError(f"step {result.step}: {session.too_much_memory}: {memory.ADVICE}")


def _begin(job: Job, optimizer: optim.Optimizer) -> Standing:
    """Where the stage stands: at its newest valid checkpoint, which is put into the model, or at its beginning, which
    is saved: what the losses compare with never moves."""
    found = checkpoint.newest(job.folder, job.note)
    _refuse_changes(job, found)
    if found is None:
        _warn_of_little_space(job)
        events.rewind(job.run, job.stage.name, -1)  # nothing has happened to it; what was being said before is cut off
        save(job, Standing(), None)
        return Standing()
    checkpoint.restore(found, job.base.model, optimizer)
    events.rewind(job.run, job.stage.name, found.step)
    standing = msgspec.convert(found.state["standing"], Standing)
    checkpoint.retain(job.folder, found.step, job.config.keep_checkpoints, standing.best_step)  # a kill came first
    job.note(f"{job.stage.name}: goes on after step {found.step}")
    return standing


def _refuse_changes(job: Job, found: checkpoint.Checkpoint | None) -> None:
    """Refuse to go on with something else than was begun: in this stage, or where it has not begun, in its parent."""
    stage = None if found is None else job.stage.name
    if found is None and job.parent is not None:
        found = checkpoint.newest(job.run / job.parent, job.note)
    if found is not None:
        for change in resume.refuse_changes(found.state["identity"], job.identity, job.run, stage):
            job.note(f"warning: the run was begun elsewhere ({change}): the result may differ in its last digits")


def _with_reference(job: Job, used: Sequence[int]) -> Job:
    """The job with what the reference thinks of its examples, where the algorithm asks for it: of those that are
    `used`, by index, and of those that are validated on."""
    if not job.algorithm.reference(job.stage):
        return job
    model, size, examples = job.base.model, job.stage.batch_size, list(job.examples)
    known = with_reference(job.folder, "train", model, [examples[index] for index in used], size)
    for index, example in zip(used, known, strict=True):
        examples[index] = example
    validated = job.held_out if job.stage.validate_every is not None else []
    job.note(f"{job.stage.name}: has the reference's log-probabilities of {len(used)} examples")
    held_out = with_reference(job.folder, "validation", model, validated, size)
    return dataclasses.replace(job, examples=examples, held_out=held_out)


def _warn_of_little_space(job: Job) -> None:
    """Adapters and their two moments, for the checkpoints that are kept, the best, and the one being written."""
    one = 3 * sum(array.nbytes for array in lora.adapter_arrays(job.base.model).values())
    needed, free = one * (job.config.keep_checkpoints + 2), shutil.disk_usage(job.run).free
    if free < needed:
        job.note(
            f"warning: {free / 1e9:.2f} GB free at {job.run}, and the checkpoints of {job.stage.name} take up to "
            f"{needed / 1e9:.2f} GB: free some, or lower keep_checkpoints"
        )


def _command(job: Job) -> str:
    return f"mlx-email train --resume {shlex.quote(str(job.run))}"


def _finish(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """Publish the stage's result and put it into the model."""
    chosen = checkpoint.verified(job.folder, record["result_step"])
    model = job.base.model
    head = reward.attached(model)
    for name in (lora.ADAPTERS, lora.ADAPTER_CONFIG, *([] if head is None else [reward.HEAD])):
        files.write(job.folder / name, (chosen.folder / name).read_bytes())
    if head is not None:
        reward.describe(job.folder, head.kind, job.identity["base"])
    record["sha256"] = files.sha256(job.folder / lora.ADAPTERS)
    files.write_json(job.folder / RECORD, record)
    events.append(job.run, {"event": "stage", "step": record["steps"], **record}, flush=True)
    checkpoint.put_adapters(job.folder / lora.ADAPTERS, model)
    return record
