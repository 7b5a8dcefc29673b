"""SFT, reward model, DPO and KTO in one run: what goes on from what, and what each leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import small

from mlx_email import jobs, measure, pipeline
from mlx_email.cli import main
from mlx_email.labels.schema import read_rows
from mlx_email.model import load as loading
from mlx_email.model import reward
from mlx_email.train import events
from mlx_email.train import run as runs

pytestmark = pytest.mark.slow  # they share a run of several stages

SHORT = "max_steps: 3, batch_size: 4, accumulation: 1, log_every: 1, learning_rate: 1.0e-3"
NAMES = ("sft", "reward", "dpo", "kto", "temporal")
STAGES = f"stages=[{', '.join(f'{{algorithm: {name}, {SHORT}}}' for name in NAMES)}]"
SETTINGS = [
    STAGES,
    "gate.metric=null",
    "evaluation.max_messages=30",
    "evaluation.validation_messages=8",
    "lora.dropout=0.1",
]


def train(table: Path, run: Path, *more: str) -> list[str]:
    settings = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    return ["train", str(table), "--out", str(run), "--json", *settings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("offline")
    assert main(["synth", "--out", str(folder / "box"), "--messages", "240"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "table")]) == 0
    assert main(train(folder / "table", folder / "run")) == 0
    return folder


@pytest.fixture
def run(folder) -> Path:
    return folder / "run"


def read(file: Path) -> dict:
    return json.loads(file.read_bytes())


def test_each_stage_goes_on_from_the_last_policy(run):
    parents = {name: read(run / name / "stage.json")["parent"] for name in NAMES}
    assert parents == {"sft": None, "reward": "sft", "dpo": "sft", "kto": "dpo", "temporal": "kto"}
    for child, parent in (("reward", "sft"), ("dpo", "sft"), ("kto", "dpo"), ("temporal", "kto")):
        began = (run / child / "step-000000/adapters.safetensors").read_bytes()
        assert began == (run / parent / "adapters.safetensors").read_bytes(), child
        assert began != (run / child / "adapters.safetensors").read_bytes(), child
    assert read(run / "metrics.json")["final"] == "temporal"


def test_dropout_is_for_sft_only(run):
    said = {name: read(run / name / "adapter_config.json")["lora_parameters"]["dropout"] for name in ("sft", "reward")}
    assert said == {"sft": 0.1, "reward": 0.0}


def test_policies_begin_at_their_reference(run):
    first = {event["stage"]: event for event in events.read(run) if event["event"] == "step" and event["step"] == 1}
    assert first["dpo"]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["temporal"]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["kto"]["rewards/desirable"] == pytest.approx(0, abs=1e-5)
    begun = [event for event in events.read(run) if event["event"] == "begin"]
    assert [event["stage"] for event in begun] == list(NAMES)
    assert all(event["examples"] > 0 and isinstance(event["left_out"], dict) for event in begun)


def test_the_reward_model_is_measured_and_loads_back(run, folder):
    measured = read(run / "reward/metrics.json")
    assert 20 < measured["examples"] <= 30 and 60 < measured["pairs"] <= 120  # some are not certain enough
    assert 0 <= measured["pair_accuracy"] <= 1 and measured["calibration_error"] < 1 and measured["spread"] == 0
    assert measured["messages"]["pairs"] > 0
    base = loading.load("tiny")
    model = reward.load(base, run / "reward")
    rows = list(read_rows(folder / "table/features.parquet", "test"))
    config = runs.open_run(run)
    words = pipeline.renderer(base.tokenizer, history=config.sender_history)
    again = measure.evaluate_reward(model, words, config.stages[1], config, jobs.spread(rows, 30), rows)
    assert measured == {**again, "of_messages": 30}


def test_the_policy_of_the_last_stage_is_what_the_commands_use(run, capsys, tmp_path):
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["stage"] == "temporal"
    assert found["accuracy"] == read(run / "temporal/metrics.json")["accuracy"]


def test_the_table_names_every_stage(run, capsys):
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "accuracy on 30 messages" in said and "pairs in the right order" in said
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
    assert listed[2:7] == list(NAMES)


def killed_at(monkeypatch, stage: str, step: int) -> None:
    honest = pipeline.train_stage

    def training(job):
        def kill(result, _):
            if (job.stage.name, result.step) == (stage, step):
                raise small.Killed

        object.__setattr__(job, "on_step", kill)
        return honest(job)

    monkeypatch.setattr(pipeline, "train_stage", training)


@pytest.mark.parametrize("stage", ["reward", "dpo", "kto", "temporal"])
def test_killed_in_any_stage_the_run_ends_the_same(stage, folder, run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(patch, stage, 2)
        with pytest.raises(small.Killed):
            main(train(folder / "table", tmp_path / "cut"))
    assert main(["train", "--resume", str(tmp_path / "cut"), "--json"]) == 0
    for name in NAMES:
        assert small.outcome(tmp_path / "cut", name) == small.outcome(run, name), name
    head = "reward/reward_head.safetensors"
    assert (tmp_path / "cut" / head).read_bytes() == (run / head).read_bytes()
    assert read(tmp_path / "cut/metrics.json") == read(run / "metrics.json")


def test_a_run_with_a_reward_model_only_has_no_policy(folder, tmp_path, capsys):
    assert main(train(folder / "table", tmp_path / "run", f"stages=[{{algorithm: reward, {SHORT}}}]")) == 0
    assert json.loads(capsys.readouterr().out)["final"] is None
    for command, *more in (["evaluate"], ["export", "--out", str(tmp_path / "x")]):
        assert main([command, str(tmp_path / "run"), *more]) == 2
        assert "has a reward model only" in capsys.readouterr().err


def test_stages_can_be_chosen_by_name(folder, tmp_path, capsys):
    assert main([*train(folder / "table", tmp_path / "run"), "--stage", "dpo"]) == 0
    assert list(json.loads(capsys.readouterr().out)["stages"]) == ["dpo"]


def test_mail_of_one_class_is_refused_by_kto_alone(folder, tmp_path, capsys, monkeypatch):
    honest = jobs.gather

    def wanted_only(stage, *others):
        writer, examples = honest(stage, *others)
        return writer, [each for each in examples if each.numbers.get("desirable", 1.0)]

    monkeypatch.setattr(jobs, "gather", wanted_only)
    assert main([*train(folder / "table", tmp_path / "run"), "--stage", "kto"]) == 2
    assert "is undesirable: KTO needs both kinds" in capsys.readouterr().err
