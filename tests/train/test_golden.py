"""Golden trajectories: 20 steps of each algorithm, loss and gradient norm in full, on the embedded model.

A change that is not meant to change the numbers must leave them as they are. After one that is:
`MLX_EMAIL_GOLDEN=write pytest tests/train/test_golden.py`, and say why in the commit.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from mlx_email import config, jobs
from mlx_email.algorithms import ALGORITHMS
from mlx_email.cli import main
from mlx_email.labels.schema import read_rows
from mlx_email.model import load as loading
from mlx_email.model.render import renderer
from mlx_email.train import run as runs
from mlx_email.train.examples import settled
from mlx_email.train.resume import identity
from mlx_email.train.session import Job
from mlx_email.train.stage import train_stage

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with a small mailbox's table."""
    folder = tmp_path_factory.mktemp("golden")
    assert main(["synth", "--out", str(folder / "box"), "--messages", "60"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "run/data")]) == 0
    return folder / "run"


def trajectory(algorithm: str, run: Path) -> np.ndarray:
    """Loss and gradient norm of each step, (STEPS, 2) float64."""
    short = f"max_steps: {STEPS}, batch_size: 1, accumulation: 2, learning_rate: 1.0e-3, validate_every: null"
    stages = f"stages=[{{algorithm: {algorithm}, {short}}}]"
    adapters = ["lora.layers=null", "lora.rank=16", "lora.alpha=32", "lora.dropout=0.1"]
    chosen = config.load("quickstart", [*adapters, "max_prompt_tokens=140", "compile=false", stages])
    base = loading.load("tiny")
    words = renderer(base.tokenizer, history=chosen.sender_history)
    adapters = runs.adapt(base, chosen, chosen.stages[0])
    rows = read_rows(run / "data/features.parquet", "train")
    _, examples = jobs.gather(chosen.stages[0], rows, words, chosen)
    steps = []
    job = Job(
        run=run,
        base=base,
        config=chosen,
        stage=settled(chosen.stages[0], examples, lambda _: None),
        adapters=adapters,
        parent=None,
        examples=examples,
        held_out=(),
        identity=identity(base, run / "data", chosen),
        on_step=lambda result, _: steps.append((result.loss, result.grad_norm)),
        note=lambda _: None,
    )
    train_stage(job)
    return np.array(steps)


# Not of those that sample: one digit more or less draws another token, and what follows is another trajectory.
NAMES = sorted(ALGORITHMS.keys() - {"grpo", "rsf", "temporal"})
ONE_FAST = [pytest.param(name, marks=[] if name == "sft" else [pytest.mark.slow]) for name in NAMES]


@pytest.mark.parametrize("algorithm", ONE_FAST)
def test_the_trajectory_is_as_recorded(algorithm, run):
    found, file = trajectory(algorithm, run), GOLDEN / f"{algorithm}.txt"
    if os.environ.get("MLX_EMAIL_GOLDEN") == "write":
        file.write_text("".join(f"{loss!r} {norm!r}\n" for loss, norm in found.tolist()))
    recorded = np.loadtxt(file)
    assert found.shape == recorded.shape == (STEPS, 2)
    residual = found / recorded - 1
    # Another processor may round otherwise; a small error in one direction shows in the mean.
    assert np.abs(residual).max() < 1e-4
    assert np.abs(residual.mean(axis=0)).max() < 2e-5
