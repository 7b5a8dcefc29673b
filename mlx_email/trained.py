"""What is trained, put to use: a run, or a model exported from one, measured and asked about messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mlx_email import baselines, files
from mlx_email.config import Config, Evaluation
from mlx_email.errors import DataError, UserError
from mlx_email.evaluate import acting, calibrate, compare, costs, metrics, priority
from mlx_email.evaluate.ensemble import Combining, combined
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


def place(path: Path) -> tuple[Path, str | None]:
    """A run or an exported model, and the stage of it that is meant: RUN:STAGE names one; None: the last.

    >>> place(Path("no/such/run"))
    (PosixPath('no/such/run'), None)
    """
    folder, colon, stage = str(path).rpartition(":")
    return (Path(folder), stage) if colon and not path.exists() and Path(folder).is_dir() else (path, None)


def open_policy(path: Path, *, beside: Policy | None = None) -> Policy:
    """The policy with which a run ends, or that of a stage (RUN:STAGE), or of an exported model's folder.

    Where `beside` has the same base, that is taken, without its adapters: it is not to be used any more. Raises
    UserError where the path is none of these, and MlxEmailError where something of it is damaged.
    """
    run, name = place(path)
    if bundle.is_exported(run):
        if name is not None:
            raise UserError(f"{run} is an exported model: it has no stages to choose from")
        return _exported(run)
    config = runs.open_run(run)
    stage = runs.policy_of(run, config, name)
    base = None if beside is None or beside.config.model != config.model else beside.base
    if base is None:
        base = loading.load(config.model)
    lora.remove(base.model)
    lora.load(base.model, stage)
    words = renderer(base.tokenizer, history=config.sender_history)
    return Policy(base, words, config, stage.name, calibrate.read(stage))


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
    words = renderer(base.tokenizer, history=config.sender_history)
    calibration = calibrate.NONE if about.calibration is None else calibrate.of(about.calibration, folder)
    return Policy(base, words, config, about.stage, calibration)


@dataclass(frozen=True)
class Measured:
    """What a policy was found to be worth, and what it said."""

    record: dict[str, Any]
    rows: list[Row]
    said: np.ndarray  # probabilities (N, 5)
    calibrated: np.ndarray  # the same
    priorities: np.ndarray | None = None  # (5,), of each action, by which priority is predicted


def evaluate(paths: Sequence[Path], data: Path | None, split: Split, progress: Progress) -> list[Measured]:
    """Evaluate policies, as `open_policy` takes them, on a split of their own data, or of a prepared folder; exported
    models have no data of their own. Those with the same base share it."""
    if data is None:
        for path in paths:
            if bundle.is_exported(place(path)[0]):
                raise UserError(f"{path} is an exported model, which has no mail: name a prepared folder with --data")
    policy, found = None, []
    for path in paths:
        policy = open_policy(path, beside=policy)
        found.append(_measured(policy, path, data, split, progress))
    return found


def _measured(policy: Policy, path: Path, data: Path | None, split: Split, progress: Progress) -> Measured:
    run, _ = place(path)
    table = run / DATA / FEATURES if data is None else (data / FEATURES if data.is_dir() else data)
    rows = few_rows(table, split, policy.config.evaluation.max_messages)
    if not rows:
        raise DataError(f"{table} has no messages in the split {split!r}")
    known = outcomes(table)
    said = predict(policy, rows, progress)
    calibrated = calibrate.calibrated(policy.calibration, said)
    priorities = priority.by_action(known) if known else None
    measured = metrics.summary(rows, said, priorities)
    measured["calibrated"] = metrics.certainty(rows, calibrated)
    paid = costs.matrix(policy.config.acting.costs)
    measured["calibrated"] |= costs.summary(metrics.targets(rows), calibrated, paid)
    if (rules := acting.read(run / policy.stage)) is not None:
        measured["acting"] = acting.told(acting.verified(rules, calibrated, metrics.targets(rows)))
    beside = {}
    if known:
        kept = run / baselines.FILE if data is None and split == "test" else None
        fitted = baselines.of_fitted(table, files.sha256(table), len(known), rows, kept, progress)
        beside = baselines.joined(baseline_summary(run if data is None else None, known, rows), fitted)
    about = {"run": str(path), "stage": policy.stage, "split": split, "baselines": beside}
    return Measured({**about, **measured}, rows, said, calibrated, priorities)


def together(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """What the policies are worth as one, by the mean of their calibrated probabilities and by vote; UserError where
    they were not measured on the same messages."""
    first, names = measured[0], [each.record["run"] for each in measured]
    for each in measured[1:]:
        if reason := compare.difference(first.rows, each.rows):
            raise UserError(f"{names[0]} and {each.record['run']} are no ensemble: {reason}")
    members = np.stack([each.calibrated for each in measured])
    return [
        {"ensemble": how, "of": names, **metrics.summary(first.rows, combined(members, how), first.priorities)}
        for how in get_args(Combining)
    ]


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
