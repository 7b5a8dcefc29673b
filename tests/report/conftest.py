"""Runs made by hand: what a report reads, without a model."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlx_email import config
from mlx_email.evaluate import acting, calibrate, metrics, predictions
from mlx_email.labels.schema import COLUMNS, Row

DONE = {
    "reply_now": {"action": "replied", "response_time_hours": 1.0},
    "reply_later": {"action": "replied", "response_time_hours": 30.0},
    "forward": {"action": "forwarded"},
    "archive": {"action": "archived"},
    "delete": {"action": "deleted"},
}


def rows_of(count: int, owners: int, seed: int = 0) -> list[Row]:
    """Messages of several owners, the last fifth to test on."""
    rng, start = np.random.default_rng(seed), datetime(2001, 1, 5, tzinfo=UTC)
    actions = list(DONE)
    return [
        Row(
            message_id=f"<{number}@x.example>",
            user=f"owner-{number % owners}",
            date=start + timedelta(days=number / 3),
            sender=f"sender{number % 7}@x.example",
            subject=f"Subject {number}",
            split="train" if number < 0.6 * count else "validation" if number < 0.8 * count else "test",
            label_quality="good" if number % 9 else "kept_late",
            **DONE[actions[rng.integers(5)]],
        )
        for number in range(count)
    ]


def said_of(rows: list[Row], seed: int = 0, sure: float = 4.0) -> np.ndarray:
    """Probabilities (N, 5) that lean to what is right, twice as sure of it as they should be."""
    rng, target = np.random.default_rng(seed), metrics.targets(rows)
    logits = rng.normal(size=(len(rows), 5)) * sure
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    drawn = (p.cumsum(axis=1) < rng.random((len(rows), 1))).sum(axis=1).clip(0, 4)
    logits[np.arange(len(rows)), drawn], logits[np.arange(len(rows)), target] = (
        logits[np.arange(len(rows)), target],
        logits[np.arange(len(rows)), drawn].copy(),
    )
    doubled = np.exp(2 * logits - 2 * logits.max(axis=1, keepdims=True))
    return doubled / doubled.sum(axis=1, keepdims=True)


def table_of(folder: Path, rows: list[Row]) -> None:
    """Their features.parquet."""
    import msgspec

    folder.mkdir(parents=True, exist_ok=True)
    lines = [{**dict.fromkeys(COLUMNS.names), **msgspec.to_builtins(row, builtin_types=(datetime,))} for row in rows]
    pq.write_table(pa.Table.from_pylist(lines, schema=COLUMNS), folder / "features.parquet")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def stage_of(run: Path, name: str, method: str, rows: list[Row], seed: int, goals: tuple[float, ...]) -> dict:
    """A policy's stage; gives what metrics.json says of it. Without `goals` it is not calibrated."""
    folder, parts = run / name, {split: [r for r in rows if r.split == split] for split in ("validation", "test")}
    write(folder / "stage.json", {"steps": 60, "examples": 300, "sha256": f"{seed:064x}"})
    said = {split: said_of(part, seed) for split, part in parts.items()}
    for split, part in parts.items():
        predictions.write(folder / f"{split}.csv", part, said[split])
    if goals:
        target = {split: metrics.targets(part) for split, part in parts.items()}
        found = calibrate.fit(np.log(said["validation"]), target["validation"], "temperature")
        p = {split: calibrate.calibrated(found, each) for split, each in said.items()}
        free = config.Acting(goals=goals, certainty=None, most_cost=10.0)
        rules = acting.choose(p["validation"], target["validation"], free)
        calibrate.write(folder, found)
        acting.write(folder, acting.verified(rules, p["test"], target["test"]))
    told = {split: metrics.summary(part, said[split]) for split, part in parts.items()}
    return {"method": method, "parent": None, "kept": True, **told}


def events_of(stage: str, names: tuple[str, ...], steps: int = 60) -> list[dict]:
    rng = np.random.default_rng(len(stage))
    drawn = {name: (np.exp(-np.arange(steps) / 20) + rng.random(steps) / 9).tolist() for name in names}
    return [
        {"time": 1.0, "event": "step", "stage": stage, "step": step + 1, **{name: drawn[name][step] for name in names}}
        for step in range(steps)
    ]


GOALS = (0.9, 0.95, 0.99)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Makes a run folder: an SFT stage and, unless it is to be `short`, a reward model and DPO."""

    def make(*, short: bool = False, owners: int = 3, count: int = 1500, goals: tuple[float, ...] = GOALS) -> Path:
        run = tmp_path_factory.mktemp("made") / "run"
        rows = rows_of(count, owners)
        table_of(run / "data", rows)
        (run / "config.yaml").write_text(config.dump(config.Config()))
        stages = {"sft": stage_of(run, "sft", "sft", rows, 1, goals)}
        lines = events_of("sft", ("loss", "lr"))
        if not short:
            ranks = {"pairs": 50, "pair_accuracy": 0.7, "pair_accuracy_interval": [0.6, 0.8]}
            stages["reward"] = {"method": "reward", "parent": "sft", "test": ranks}
            stages["dpo"] = stage_of(run, "dpo", "dpo", rows, 2, goals)
            lines += events_of("reward", ("loss", "rewards/accuracy"))
            lines += events_of("dpo", ("loss", "rewards/chosen", "rewards/rejected", "kl/ref"))
        lines.append({"event": "validation", "stage": "sft", "step": 50, "val/loss": 0.5})
        (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        baselines = {"majority": 0.3, "majority_per_owner": 0.35, "boosted_trees": 0.6, "best_possible": 0.95}
        baselines["measured"] = {"boosted_trees": {"accuracy_interval": [0.5, 0.7], "macro_f1": 0.55}}
        ends = "sft" if short else "dpo"
        write(run / "metrics.json", {"final": ends, "stages": stages, "test": {"baselines": baselines}})
        write(run / "environment.json", {"mlx": "0.0", "model": "/a/b/tiny", "base": "ab" * 32, "data": "cd" * 32})
        write(run / "data/prepare.json", {"messages": 2 * count, "labelled": count})
        return run

    return make
