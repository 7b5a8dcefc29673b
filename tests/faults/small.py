"""A training that takes a fraction of a second: a random model of one layer, on prompts of random tokens.

The tests import it, and so do the processes that they start and kill.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2

from mlx_email import files
from mlx_email.algorithms import Algorithm
from mlx_email.config import Config, Lora, Sft
from mlx_email.kernels.losses import Loss
from mlx_email.model import source
from mlx_email.model.batch import Example, example
from mlx_email.model.load import Base, prepare
from mlx_email.train import events, resume
from mlx_email.train import run as runs
from mlx_email.train.session import Job
from mlx_email.train.stage import train_stage

WORDS = 53
SIZES = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
}
STAGE = Sft(
    max_steps=9,
    save_every=3,
    batch_size=2,
    accumulation=2,
    log_every=1,
    learning_rate=0.02,
    schedule="linear",
    validate_every=None,
)
SETTINGS = Config(
    lora=Lora(rank=2, alpha=4.0, dropout=0.2, targets=("q_proj", "down_proj")), stages=(STAGE,), compile=False
)
OF_THIS_PROCESS = ("tokens_per_second", "memory/peak_gb", "traces")  # in stage.json
NOBODY = 999_999_999  # a process number that no process has


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the product's catches it."""


# The loop's and the stage's own interface, without a mailbox


def model(words: int = WORDS, seed: int = 11, layers: int = 1) -> nn.Module:
    mx.random.seed(seed)
    made = qwen2.Model(qwen2.ModelArgs(**{**SIZES, "num_hidden_layers": layers}, vocab_size=words))
    prepare(made)
    return made


def examples(
    count: int, *, branches: int = 1, seed: int = 3, numbers: Callable[[int], dict[str, Any]] | None = None
) -> list[Example]:
    """Random ones; `numbers` gives those of the n-th."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> list[int]:
        return rng.integers(0, WORDS, length).tolist()

    return [
        example(
            f"message-{n}",
            tokens(1 + n % 7),
            *(tokens(1 + (n + k) % 5) for k in range(branches)),
            numbers=numbers and numbers(n),
        )
        for n in range(count)
    ]


def job(
    run: Path,
    *,
    settings: Config = SETTINGS,
    train_on: int = 14,
    held_out: int = 0,
    branches: int = 1,
    numbers: Callable[[int], dict[str, Any]] | None = None,
    layers: int = 1,
    words: int = WORDS,
    on_step: Callable[[Any, int], object] = lambda *_: None,
    note: Callable[[str], object] = lambda _: None,
    **stage: Any,
) -> Job:
    """A job as `pipeline` makes it, for a run folder that is made where it lacks; `stage`: changes to STAGE."""
    settings = msgspec.structs.replace(settings, stages=(msgspec.structs.replace(settings.stages[0], **stage),))
    if not (run / "model").exists():
        for folder in ("data", "model"):
            (run / folder).mkdir(parents=True)
        for name in ("data/features.parquet", *(f"model/{name}" for name in ("model.safetensors", *source.REQUIRED))):
            (run / name).write_text(name)
    base = Base(model(words, layers=layers), None, {}, run / "model")
    return Job(
        run=run,
        base=base,
        config=settings,
        stage=settings.stages[0],
        adapters=runs.adapt(base, settings, settings.stages[0]),
        parent=None,
        examples=examples(train_on, branches=branches, numbers=numbers),
        held_out=examples(held_out, branches=branches, seed=4, numbers=numbers),
        identity=resume.identity(base, run / "data", settings),
        on_step=on_step,
        note=note,
    )


def train(run: Path, **job_settings: Any) -> dict[str, Any]:
    """Train the job's stage, from where it stands to its end; gives what `outcome` does."""
    train_stage(job(run, **job_settings))
    return outcome(run)


def train_until(run: Path, step: int, **job_settings: Any) -> None:
    """Train and be killed right after the update of a step, before that step is saved."""

    def kill(result: Any, steps: int) -> None:
        if result.step == step:
            raise Killed

    try:
        train_stage(job(run, **job_settings, on_step=kill))
    except Killed:
        return
    raise AssertionError(f"there was no step {step}")


def preference_loss(logps: mx.array, arrays: dict[str, mx.array], settings: Any) -> Loss:
    """DPO's: -log sigmoid of how much more than the reference the first completion is preferred to the second."""
    ratios = ((logps - arrays["ref_logps"]) * arrays["completion_mask"]).sum(-1)
    real = (arrays["completion_mask"].sum((1, 2)) > 0).astype(mx.float32)
    losses = nn.softplus(ratios[:, 1] - ratios[:, 0])
    return Loss((losses * real).sum(), real.sum(), {})


PREFERENCE = Algorithm(loss=preference_loss, reference=lambda settings: True)


# The command line, with a model in a folder


def write_model(folder: Path) -> Path:
    """A random model with the embedded one's tokenizer, as a folder: what --model takes."""
    tiny = source.resolve("tiny")
    config = json.loads((tiny / "config.json").read_bytes())
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    known = {"eos_token_id": config["eos_token_id"], "vocab_size": config["vocab_size"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps({**SIZES, **known}))
    write_weights(folder, seed=11)
    return folder


def write_weights(folder: Path, seed: int) -> None:
    words = json.loads((folder / "config.json").read_bytes())["vocab_size"]
    weights = dict(tree_flatten(model(words, seed).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def command(table: Path, folder: Path, out: Path, *changes: str) -> list[str]:
    """The arguments of `mlx-email` for a short training with the model in `folder`; `changes`: a.b=c."""
    chosen = (
        "lora.rank=2",
        "lora.dropout=0.2",
        "max_prompt_tokens=160",
        "evaluation.max_messages=4",
        "evaluation.validation_messages=4",
        "stages.sft.max_steps=9",
        "stages.sft.save_every=3",
        "stages.sft.batch_size=2",
        "stages.sft.accumulation=2",
        "stages.sft.log_every=1",
        "stages.sft.learning_rate=0.01",
        *changes,
    )
    settings = [part for change in chosen for part in ("--set", change)]
    return ["train", str(table), "--model", str(folder), "--out", str(out), "--json", *settings]


# Code for `warm`: the command, which waits in the fifth step that it does until a file (the first argument) is there.
GATED = """
import sys, time
from pathlib import Path
from mlx_email.cli import main
from mlx_email.train import loop
gate, *arguments = sys.argv[1:]
honest, steps = loop.clipped_mean, []
def waiting(*args):
    steps.append(None)
    while len(steps) == 5 and not Path(gate).exists():
        time.sleep(0.01)
    return honest(*args)
loop.clipped_mean = waiting
sys.exit(main(arguments))
"""


def begun(run: Path, steps: int) -> bool:
    """Whether so many steps are in the run's events."""
    return len([event for event in events.read(run) if event["event"] == "step"]) >= steps


# What a run leaves


def checkpoints(stage: Path) -> list[Path]:
    """The visible checkpoints of a stage, oldest first."""
    return sorted(stage.glob("step-*"))


def outcome(run: Path, stage: str = "sft") -> dict[str, Any]:
    """What two runs that did the same have in common, bit for bit."""
    folder = run / stage
    said = json.loads((folder / "stage.json").read_bytes())
    last = folder / f"step-{said['steps']:06d}"
    return {
        "adapters": files.sha256(folder / "adapters.safetensors"),
        "stage.json": {key: value for key, value in said.items() if key not in OF_THIS_PROCESS},
        "checkpoints": [path.name for path in checkpoints(folder)],
        "last adapters": files.sha256(last / "adapters.safetensors"),
        "last optimizer": files.sha256(last / "optimizer.safetensors"),
        "standing": json.loads((last / "state.json").read_bytes())["standing"],
        "steps": [
            [event.get("step"), event.get("loss")]
            for event in events.read(run)
            if (event.get("event"), event.get("stage")) == ("step", stage)
        ],
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def temporaries(folder: Path) -> list[str]:
    """What is left below a folder of files and folders that were being written."""
    return [str(path.relative_to(folder)) for path in folder.rglob(f"{files.TEMPORARY}*")]


# Where a process can be stopped

OPERATIONS = [
    *((os, name) for name in ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync")),
    (mx, "save_safetensors"),
]


def watch(set_attribute: Callable[[Any, str, Any], object], at: Callable[[str], object]) -> None:
    """Call `at` before and after each operation on the file system, and in the middle of one that writes arrays."""

    def watched(name: str, honest: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            at(f"before {name}")
            result = honest(*arguments, **named)
            if name == "save_safetensors":
                whole = Path(arguments[0]).read_bytes()
                Path(arguments[0]).write_bytes(whole[: len(whole) // 2])
                at(f"in {name}")
                Path(arguments[0]).write_bytes(whole)
            at(f"after {name}")
            return result

        return call

    for module, name in OPERATIONS:
        set_attribute(module, name, watched(name, getattr(module, name)))
