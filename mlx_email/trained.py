"""What is trained, put to use: a run, or a model exported from one, measured and asked about messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_email import baselines, files
from mlx_email.config import Config, Evaluation
from mlx_email.errors import DataError, UserError
from mlx_email.evaluate import compare, metrics, priority
from mlx_email.export import bundle
from mlx_email.jobs import few_rows
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import Row, Split
from mlx_email.measure import Policy, baseline_summary, outcomes, predict
from mlx_email.model import load as loading
from mlx_email.model import lora
from mlx_email.model.render import renderer
from mlx_email.progress import Progress
from mlx_email.train import run as runs
from mlx_email.train.run import DATA


def open_policy(path: Path) -> Policy:
    """The policy with which a run ends, or that of an exported model's folder.

    Raises UserError where the path is neither, and MlxEmailError where something of it is damaged.
    """
    if bundle.is_exported(path):
        return _exported(path)
    config = runs.open_run(path)
    stage = runs.last_policy(path, config)
    base = loading.load(config.model)
    lora.load(base.model, stage)
    return Policy(base, renderer(base.tokenizer, history=config.sender_history), config, stage.name)


def _exported(folder: Path) -> Policy:
    about = bundle.read(folder)
    where = str(folder.resolve())  # a relative name could be that of another model
    config = Config(
        model=where,
        max_prompt_tokens=about.max_prompt_tokens,
        sender_history=about.sender_history,
        evaluation=Evaluation(batch_size=about.batch_size),
    )
    base = loading.load(where)
    if about.strategy == "adapter":
        lora.load(base.model, folder / bundle.ADAPTER)
    return Policy(base, renderer(base.tokenizer, history=config.sender_history), config, about.stage)


@dataclass(frozen=True)
class Measured:
    """What a run was found to be worth, and what it said."""

    record: dict[str, Any]
    rows: list[Row]
    said: np.ndarray  # probabilities (N, 5)


def evaluate_run(run: Path, data: Path | None, split: Split, progress: Progress) -> Measured:
    """Evaluate a run's last stage on a split of its own data, or of another prepared folder; an exported model on a
    prepared folder."""
    if data is None and bundle.is_exported(run):
        raise UserError(f"{run} is an exported model, which has no mail: name a prepared folder with --data")
    policy = open_policy(run)
    table = run / DATA / FEATURES if data is None else (data / FEATURES if data.is_dir() else data)
    rows = few_rows(table, split, policy.config.evaluation.max_messages)
    if not rows:
        raise DataError(f"{table} has no messages in the split {split!r}")
    known = outcomes(table)
    said = predict(policy, rows, progress)
    measured = metrics.summary(rows, said, priority.by_action(known) if known else None)
    beside = {}
    if known:
        kept = run / baselines.FILE if data is None and split == "test" else None
        fitted = baselines.of_fitted(table, files.sha256(table), len(known), rows, kept, progress)
        beside = baselines.joined(baseline_summary(run if data is None else None, known, rows), fitted)
    about = {"run": str(run), "stage": policy.stage, "split": split, "baselines": beside}
    return Measured({**about, **measured}, rows, said)


def compared(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each run but the first beside the first: what differs, or the `reason` why that cannot be said."""
    found = []
    for each in measured[1:]:
        first, about = measured[0], {"compared": [measured[0].record["run"], each.record["run"]]}
        if reason := compare.difference(first.rows, each.rows):
            found.append({**about, "reason": reason})
        else:
            found.append({**about, **compare.compare(first.rows, first.said, each.said)})
    return found
