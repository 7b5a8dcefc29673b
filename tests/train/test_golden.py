"""Golden trajectories: 20 steps of each algorithm, loss and gradient norm in full, on the embedded model.

A change that is not meant to change the numbers must leave them as they are. After one that is:
`MLX_EMAIL_GOLDEN=write pytest tests/train/test_golden.py`, and say why in the commit.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from mlx_email import config
from mlx_email.algorithms import ALGORITHMS
from mlx_email.cli import main
from mlx_email.labels.schema import read_rows
from mlx_email.model import load as loading
from mlx_email.model.render import renderer
from mlx_email.train import batches
from mlx_email.train import run as runs
from mlx_email.train.loop import train
from mlx_email.train.optimizer import adamw, learning_rate

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20


def trajectory(algorithm: str, folder: Path) -> np.ndarray:
    """Loss and gradient norm of each step, (STEPS, 2) float64."""
    assert main(["synth", "--out", str(folder / "box"), "--messages", "60"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "table")]) == 0
    settings = ["lora.dropout=0.1", "max_prompt_tokens=140", f"stages=[{{algorithm: {algorithm}}}]"]
    chosen = config.load("quickstart", settings)
    stage = chosen.stages[0]
    base = loading.load("tiny")
    words = renderer(base.tokenizer, history=chosen.sender_history)
    runs.adapt(base, chosen)
    rows = read_rows(folder / "table/features.parquet", "train")
    examples = runs.examples_of(stage, rows, words, chosen)
    plan = batches.plan(examples, 1)
    results = train(
        base.model,
        ALGORITHMS[algorithm],
        stage,
        (next(steps) for steps in [batches.steps(examples, plan, 2, 0)] for _ in range(STEPS)),
        adamw(0.0),
        lambda step: learning_rate("cosine", step, STEPS, 1e-3, 0.1),
        clip=1.0,
        seed=0,
        compiled=False,
    )
    return np.array([(result.loss, result.grad_norm) for result in results])


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_the_trajectory_is_as_recorded(algorithm, tmp_path):
    found, file = trajectory(algorithm, tmp_path), GOLDEN / f"{algorithm}.txt"
    if os.environ.get("MLX_EMAIL_GOLDEN") == "write":
        file.write_text("".join(f"{loss!r} {norm!r}\n" for loss, norm in found.tolist()))
    recorded = np.loadtxt(file)
    assert found.shape == recorded.shape == (STEPS, 2)
    residual = found / recorded - 1
    # Another processor may round otherwise; a small error in one direction shows in the mean.
    assert np.abs(residual).max() < 1e-4
    assert np.abs(residual.mean(axis=0)).max() < 2e-5
