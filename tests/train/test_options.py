"""Every setting of a stage changes what is learned; what is not a setting does not."""

import numpy as np
import pytest

from mlx_email import config, jobs, measure
from mlx_email.cli import main
from mlx_email.labels.schema import read_rows
from mlx_email.model import load as loading
from mlx_email.model import lora
from mlx_email.model.render import renderer
from mlx_email.train import run as runs
from mlx_email.train.resume import identity
from mlx_email.train.session import Job
from mlx_email.train.stage import train_stage

BASE = ["stages.sft.max_steps=3", "stages.sft.batch_size=4", "stages.sft.accumulation=2", "lora.dropout=0.1"]
CHANGES = [
    "seed=1",
    "max_prompt_tokens=140",
    "gradient_clip=0.001",
    "weight_decay=0.5",
    "lora.rank=8",
    "lora.alpha=64",
    "lora.dropout=0.0",
    "lora.targets=[q_proj]",
    "stages.sft.batch_size=3",
    "stages.sft.accumulation=1",
    "stages.sft.learning_rate=0.004",
    "stages.sft.warmup=1.0",
    "stages.sft.max_steps=2",
    "stages.sft.schedule=constant",
    "lora.dora=true",
    "stages.sft.augment=true",
    "sender_history=true",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    assert main(["synth", "--out", str(folder / "box"), "--messages", "60"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "table")]) == 0
    return folder / "table/features.parquet"


def learned(table, where, overrides, rows=None) -> dict[str, np.ndarray]:
    chosen = config.load("quickstart", [*BASE, *overrides])
    base = loading.load("tiny")
    words = renderer(base.tokenizer, history=chosen.sender_history)
    where.mkdir()
    rows = list(read_rows(table, "train")) if rows is None else rows
    (where / "data").mkdir()
    runs.link(table, where / "data/features.parquet")
    held_out = list(read_rows(table, "validation"))
    job = Job(
        run=where,
        base=base,
        config=chosen,
        stage=chosen.stages[0],
        adapters=runs.adapt(base, chosen, chosen.stages[0]),
        parent=None,
        examples=jobs.gather(chosen.stages[0], rows, words, chosen)[1],
        held_out=jobs.gather(chosen.stages[0], held_out, words, chosen)[1],
        identity=identity(base, where / "data", chosen),
        on_step=lambda *_: None,
        note=lambda _: None,
    )
    train_stage(job)
    return {name: np.array(array) for name, array in lora.adapter_arrays(base.model).items()}


@pytest.fixture(scope="module")
def unchanged(table, tmp_path_factory):
    return learned(table, tmp_path_factory.mktemp("unchanged") / "run", [])


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_each_setting_matters(change, table, unchanged, tmp_path):
    assert not same(learned(table, tmp_path / "run", [change]), unchanged)


def test_nothing_else_matters(table, unchanged, tmp_path):
    assert same(learned(table, tmp_path / "run", ["stages.sft.log_every=1", "evaluation.batch_size=1"]), unchanged)


def test_epochs_are_passes(table, tmp_path):
    rows = list(read_rows(table, "train"))[:16]
    once = learned(table, tmp_path / "a", ["stages.sft.max_steps=null", "stages.sft.epochs=1"], rows)
    twice = learned(table, tmp_path / "b", ["stages.sft.max_steps=null", "stages.sft.epochs=2"], rows)
    assert not same(once, twice)


def test_lora_is_scaled_by_alpha_over_rank():
    base = loading.load("tiny")
    lora.apply(base.model, lora.Lora(8, 32.0, 0.0, ("q_proj",)), seed=0)
    assert base.model.layers[0].self_attn.q_proj.scale == 4.0


def test_only_training_mail_is_trained_on_and_only_test_mail_is_measured(table, tmp_path, monkeypatch):
    seen = {}
    honest_train, honest_score = jobs.gather, measure.action_logps

    def gathered(stage, rows, *others):
        rows = list(rows)
        return honest_train(stage, seen.setdefault(rows[0].split, rows), *others)

    monkeypatch.setattr(jobs, "gather", gathered)
    monkeypatch.setattr(
        measure,
        "action_logps",
        lambda b, r, p, rows, **k: honest_score(b, r, p, seen.setdefault(rows[0].split, rows), **k),
    )
    few = ["--stage", "sft", "--set", "stages.sft.max_steps=1", "--json"]
    assert main(["train", str(table), "--out", str(tmp_path / "run"), *few]) == 0
    for split, rows in seen.items():
        assert [row.message_id for row in rows] == [row.message_id for row in read_rows(table, split)], split
    assert seen.keys() == {"train", "validation", "test"}


def test_demonstrations_are_drawn_from_training_mail_for_sft_alone(table, tmp_path, monkeypatch):
    seen = []
    honest = jobs.gather

    def gathered(stage, rows, *others):
        rows = list(rows)
        seen.append((stage.name, rows[0].split, [row.message_id for row in rows]))
        return honest(stage, rows, *others)

    monkeypatch.setattr(jobs, "gather", gathered)
    short = "max_steps: 1, batch_size: 2, accumulation: 1"
    both = f"stages=[{{algorithm: sft, demonstrations: 5, {short}}}, {{algorithm: dpo, {short}}}]"
    assert main(["train", str(table), "--out", str(tmp_path / "run"), "--set", both, "--json"]) == 0
    everything = [row.message_id for row in read_rows(table, "train")]
    of = {stage: ids for stage, split, ids in seen if split == "train"}
    assert len(of["sft"]) == 5 and [each for each in everything if each in of["sft"]] == of["sft"]
    assert of["dpo"] == everything


@pytest.mark.slow
def test_stages_go_on_from_each_other(table, tmp_path):
    stages = "stages=[{name: a, max_steps: 1}, {name: b, max_steps: 1}]".replace("name", "algorithm: sft, name")
    assert main(["train", str(table), "--out", str(tmp_path / "run"), "--set", stages, "--json"]) == 0
    a, b = (tmp_path / "run" / name / "adapters.safetensors" for name in "ab")
    assert a.read_bytes() != b.read_bytes()
    assert '"parent": "a"' in (tmp_path / "run/b/stage.json").read_text()
    chosen = runs.open_run(tmp_path / "run")
    assert runs.last_policy(tmp_path / "run", chosen).name == "b"
