"""What is known while a stage trains: what it is to do, where it stands, and what this process has done for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.optimizers as optim
import msgspec

from mlx_email.algorithms import Algorithm, Context, algorithm_of
from mlx_email.config import Config, Grpo, Sampled, Stage
from mlx_email.errors import MlxEmailError
from mlx_email.kernels import compiling
from mlx_email.model import lora
from mlx_email.model.batch import Example
from mlx_email.model.load import Base
from mlx_email.train import batches, checkpoint, events, memory, samples
from mlx_email.train.loop import StepResult
from mlx_email.train.validate import validation


@dataclass(frozen=True)
class Job:
    """What a stage is to do: everything is known before its first step."""

    run: Path
    base: Base
    config: Config
    stage: Stage
    adapters: lora.Lora
    parent: str | None  # the stage whose adapters this one goes on with
    examples: Sequence[Example]
    held_out: Sequence[Example]  # to validate on
    identity: dict[str, Any]  # what its checkpoints belong to (`resume.identity`)
    on_step: Callable[[StepResult, int], object]  # (result, steps in all)
    note: Callable[[str], object]  # a line that the user should see
    on_event: Callable[[dict[str, Any]], object] = lambda event: None  # noqa: ARG005 - told what events.jsonl is
    left_out: Mapping[str, int] = field(default_factory=dict)  # what was cut, left out or kept of the examples, counted
    context: Context = field(default_factory=Context)  # what the algorithm may use; the stage adds the reference

    @property
    def folder(self) -> Path:
        return self.run / self.stage.name

    @property
    def algorithm(self) -> Algorithm:
        return algorithm_of(self.stage)


class Standing(msgspec.Struct, frozen=True):
    """Where a stage stands after a step: with the weights and the moments, all that a later session needs."""

    step: int = 0
    examples: int = 0  # seen, with repetitions
    tokens: int = 0  # real supervised ones
    loss: float | None = None  # of the last step
    best_step: int | None = None  # of the lowest validation loss
    best_loss: float | None = None
    worse: int = 0  # validations since
    reached: bool = False  # whether a validation found the accuracy that the stage is to stop at


@dataclass
class Session:
    """One process's work on a stage: where the stage stands, and what this process has done for it."""

    job: Job
    steps: int  # in all
    optimizer: optim.Optimizer
    standing: Standing
    context: Context = field(default_factory=Context)  # the job's, with the reference where the algorithm asks for it
    saved: int = field(init=False)  # the step of the newest checkpoint
    plan: batches.Plan | None = field(init=False)  # of the examples that are validated on
    compiled: bool = field(init=False)
    tokens: int = 0
    seconds: float = 0.0
    traces: int = 0

    def __post_init__(self) -> None:
        held_out, chosen = self.job.held_out, self.job.config.compile
        self.saved = self.standing.step
        self.plan = batches.plan(held_out, self.job.stage.batch_size) if held_out else None
        self.compiled = compiling.by_default() if chosen is None else chosen

    @property
    def patience_is_over(self) -> bool:
        return self.job.stage.patience is not None and self.standing.worse >= self.job.stage.patience

    @property
    def enough(self) -> bool:
        """Whether the stage ends before its last step."""
        return self.standing.reached or self.patience_is_over

    @property
    def over(self) -> bool:
        return self.standing.step == self.steps or self.enough

    @property
    def updates(self) -> int:
        """Steps with one rollout, of an algorithm that has them; else 1."""
        return self.job.algorithm.updates(self.job.stage)

    @property
    def may_stop(self) -> bool:
        """Whether a later session could go on from here: not in the middle of a rollout, which is not saved."""
        return self.standing.step % self.updates == 0

    @property
    def validation_is_due(self) -> bool:
        every = self.job.stage.validate_every
        return self.plan is not None and every is not None and (self._due(every) or self.standing.step == self.steps)

    @property
    def save_is_due(self) -> bool:
        return self._due(self.job.stage.save_every) or self.standing.best_step == self.standing.step

    def _due(self, every: int) -> bool:
        """Every so many steps, or at the end of the rollout that they are a part of."""
        step = self.standing.step
        return self.may_stop and step // every > (step - self.updates) // every

    @property
    def too_much_memory(self) -> str:
        """What is wrong, or nothing."""
        used, allowed = memory.peak_gb(), memory.ceiling_gb(self.job.config.memory.limit_gb)
        return f"too much memory ({used:.2f} GB used, {allowed:.2f} allowed)" if used > allowed else ""

    def take(self, result: StepResult) -> None:
        """Count and log a step."""
        before, stage = self.standing, self.job.stage
        self.standing = msgspec.structs.replace(
            before,
            step=result.step,
            examples=before.examples + result.examples,
            tokens=before.tokens + result.tokens,
            loss=result.loss,
        )
        self.tokens += result.tokens
        self.seconds += result.seconds
        if result.traces > max(self.traces, batches.MAX_SHAPES):
            self.job.note(f"warning: step {result.step} made {result.traces} compiled traces: its shapes vary")
        self.traces = result.traces
        if result.step % stage.log_every == 0 or result.step in (1, self.steps):
            self.append({"event": "step", **_said_of(result)})
        if result.judged and isinstance(stage, Grpo) and stage.samples_every is not None:
            first = result.step - 1
            if first == 0 or first // stage.samples_every > (first - self.updates) // stage.samples_every:
                samples.write(self.job.folder, result.step, result.judged)
        self.job.on_step(result, self.steps)

    def validate(self) -> None:
        """Measure on the examples that are held out, and remember the best step."""
        assert self.plan is not None  # noqa: S101 - validation_is_due has seen to it
        job = self.job
        found = validation(job.base.model, job.algorithm, job.stage, job.held_out, self.plan, self.context)
        before, loss = self.standing, found["val/loss"]
        if not math.isfinite(loss):
            raise MlxEmailError(f"step {before.step}: the validation loss is {loss}: lower the learning rate")
        changes: dict[str, Any]
        if before.best_loss is None or loss < before.best_loss:
            changes = {"best_step": before.step, "best_loss": loss, "worse": 0}
        else:
            changes = {"worse": before.worse + 1}
        goal = job.stage.stop_accuracy if isinstance(job.stage, Sampled) else None
        if goal is not None and found["val/accuracy"] > goal:
            changes = {"reached": True, "best_step": before.step, "best_loss": loss, "worse": 0}
            job.note(f"{job.stage.name}: accuracy {found['val/accuracy']:.3f} of the validation at step {before.step}")
        self.standing = msgspec.structs.replace(before, **changes)
        self.append({"event": "validation", "step": before.step, **found})

    def save(self) -> None:
        """Publish a checkpoint of where the stage stands."""
        save(self.job, self.standing, self.optimizer)
        self.saved = self.standing.step

    def append(self, event: dict[str, Any]) -> None:
        told = {**event, "stage": self.job.stage.name}
        events.append(self.job.run, told)
        self.job.on_event(told)

    def record(self) -> dict[str, Any]:
        """What stage.json says."""
        standing = self.standing
        return {
            "stage": self.job.stage.name,
            "algorithm": tag(self.job.stage),
            "parent": self.job.parent,
            "steps": standing.step,
            "planned_steps": self.steps,
            "result_step": standing.step if standing.best_step is None else standing.best_step,
            "examples": len(self.job.examples),
            "tokens": standing.tokens,
            "loss": standing.loss,
            "val/loss": standing.best_loss,
            "reached": standing.reached,
            "compiled": self.compiled,
            "traces": self.traces,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "memory/peak_gb": memory.peak_gb(),
        }


def save(job: Job, standing: Standing, optimizer: optim.Optimizer | None) -> None:
    """Publish a checkpoint of where the stage stands; `optimizer` None where it has no moments yet."""
    state = {"standing": msgspec.to_builtins(standing), "identity": job.identity}
    checkpoint.save(job.folder, standing.step, job.base.model, job.adapters, job.config.model, optimizer, state)
    checkpoint.retain(job.folder, standing.step, job.config.keep_checkpoints, standing.best_step)
    # Flushed with all events before it: what happened before a checkpoint is on the disk when it is.
    events.append(job.run, {"event": "checkpoint", "stage": job.stage.name, "step": standing.step}, flush=True)


def _said_of(result: StepResult) -> dict[str, Any]:
    """What events.jsonl says of a step."""
    return {
        "step": result.step,
        "loss": result.loss,
        "tokens": result.tokens,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "tokens_per_second": result.tokens / result.seconds,
        "traces": result.traces,
        **result.metrics,
    }


def tag(stage: Stage) -> str:
    """The key of ALGORITHMS for a stage's settings: their tag in the configuration."""
    return str(stage.__struct_config__.tag)
