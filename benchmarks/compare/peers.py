"""What our use of both peers shares. Their trainers are called as they are; each of their steps is seen through their
own callback, with a report after every step."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from mlx_email.benchmarks.compare.keep import RATE
from mlx_email.benchmarks.compare.side import Job
from mlx_email.benchmarks.compare.workload import ADAPTER, MODEL
from mlx_email.kernels import compiling

MLX_LM_LORA = "mlx-lm-lora"
WIRED = "max_recommended_working_set_size"
NEVER = 1 << 30  # steps until the next evaluation or file
# No token ends a completion: all are as long as they may be.
TOKENIZER = SimpleNamespace(eos_token_ids=(), decode=lambda ids: "", encode=lambda text, **_: [])  # noqa: ARG005


@dataclass
class EachStep(TrainingCallback):
    """Tells the pace of every step that the peer reports."""

    job: Job
    tokens: Callable[[], int]  # real supervised tokens of the step: theirs counts others too

    def on_train_loss_report(self, train_info: dict) -> None:
        self.job.pace(float(train_info["train_loss"]), self.tokens())


def module(name: str) -> ModuleType:
    """A module of mlx-lm-lora's trainers. On the CPU what it and MLX compile there runs as it is written."""
    settle()
    known = mx.device_info()
    if WIRED not in known:
        # Its DPO trainer wires memory as on Metal, and asks for a figure that other devices do not have.
        setattr(mx, "device_info", lambda: {**known, WIRED: 0})  # noqa: B010
    return importlib.import_module(f"mlx_lm_lora.trainer.{name}")


def settle() -> None:
    """The peers always compile. Where it does not pay it is turned off for them as it is for us."""
    if not compiling.by_default():
        mx.disable_compile()


def base(job: Job) -> nn.Module:
    """The workload's model without adapters, frozen: mlx-lm-lora's reference is a second copy in memory."""
    model, _ = load_model(job.folder / MODEL)
    return model.freeze()


def policy(job: Job) -> nn.Module:
    """The workload's model with its adapters."""
    return load_adapters(base(job), str(job.folder / ADAPTER))


def optimizer(job: Job) -> optim.Optimizer:
    """The same as ours."""
    return job.keep or optim.AdamW(learning_rate=RATE, weight_decay=0.0, bias_correction=True)


def settings(job: Job, batch_size: int) -> dict[str, Any]:
    """What all of their trainers take: reports after each step, no evaluation, no files before the end."""
    return {
        "batch_size": batch_size,
        "iters": job.total,
        "steps_per_report": 1,
        "steps_per_eval": NEVER,
        "steps_per_save": NEVER,
        "adapter_file": str(job.folder / "trained.safetensors"),
    }
