"""GRPO and rejection sampling in a run, after SFT and a reward model: what judges, what is kept, what ends them."""

import json
from pathlib import Path

import pytest
import small

from mlx_email import pipeline
from mlx_email.algorithms import grpo
from mlx_email.cli import main
from mlx_email.train import events, rejection, session

pytestmark = pytest.mark.slow  # they share a run of several stages

SHORT = "max_steps: 2, batch_size: 2, accumulation: 1, log_every: 1, learning_rate: 1.0e-3"
REWARDS = "validate_every: 2, rewards: [{function: learned}, {function: action, weight: 2}]"
BEST = (
    f"prompts: 20, samples: 3, keep: 2, iterations: 2, max_tokens: 8, {SHORT.replace('batch_size: 2', 'batch_size: 8')}"
)
STAGES = ", ".join(
    [
        f"{{algorithm: sft, {SHORT}}}",
        f"{{algorithm: reward, {SHORT}}}",
        f"{{algorithm: grpo, group_size: 3, updates: 2, max_tokens: 8, {SHORT}, {REWARDS}}}",
        f"{{algorithm: grpo, name: exact, rollout: enumerate, {SHORT}, {REWARDS}}}",
        f"{{algorithm: rsf, {BEST}, {REWARDS}}}",
    ]
)
NAMES = ["sft", "reward", "grpo", "exact", "rsf-1", "rsf-2"]
SETTINGS = ["gate.metric=null", "evaluation.max_messages=20", "evaluation.validation_messages=6", "lora.rank=4"]


def train(table: Path, run: Path, stages: str = STAGES) -> list[str]:
    settings = [part for setting in (f"stages=[{stages}]", *SETTINGS) for part in ("--set", setting)]
    return ["train", str(table), "--out", str(run), "--json", *settings]


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """An untrained model's answers have no end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "is_over", lambda renderer, tokens: len(tokens) > 5)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    assert main(["synth", "--out", str(folder / "box"), "--messages", "60"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "table")]) == 0
    return folder


@pytest.fixture(scope="module")
def run(folder) -> Path:
    assert main(train(folder / "table", folder / "run")) == 0
    return folder / "run"


def read(file: Path) -> dict:
    return json.loads(file.read_bytes())


def test_each_goes_on_from_the_policy_before(run):
    parents = {name: read(run / name / "stage.json")["parent"] for name in NAMES}
    assert parents == dict(zip(NAMES, [None, "sft", "sft", "grpo", "exact", "rsf-1"], strict=True))
    for child, parent in (("grpo", "sft"), ("exact", "grpo"), ("rsf-1", "exact"), ("rsf-2", "rsf-1")):
        began = (run / child / "step-000000/adapters.safetensors").read_bytes()
        assert began == (run / parent / "adapters.safetensors").read_bytes(), child
    assert set(read(run / "metrics.json")["stages"]) == set(NAMES) and read(run / "metrics.json")["final"] == "rsf-2"


def test_what_is_said_of_a_rollout(run):
    first = next(event for event in events.read(run) if event.get("stage") == "grpo" and event["event"] == "step")
    wanted = {"reward", "reward/std", "reward/learned", "reward/action", "rollout/kept", "rollout/truncated", "gap"}
    assert wanted | {"rollout/entropy", "rollout/tokens", "clip_fraction", "kl/ref", "kl/old"} <= first.keys()
    assert first["reward"] == pytest.approx(first["reward/learned"] + 2 * first["reward/action"])
    table = (run / "grpo/samples/step-000001.md").read_text()
    assert "| reward | learned | action | completion |" in table
    (validation,) = [e for e in events.read(run) if e.get("stage") == "grpo" and e["event"] == "validation"]
    assert 0 <= validation["val/accuracy"] <= 1 and validation["val/loss"] == -validation["val/reward"]


def test_what_was_kept_is_data(run):
    prompts = []
    for name in ("rsf-1", "rsf-2"):
        kept = list(rejection.read(run / name / "kept"))
        begin = next(e for e in events.read(run) if e.get("stage") == name and e["event"] == "begin")
        assert begin["left_out"]["kept"] == len(kept) > 0
        assert begin["left_out"]["samples"] == 3 * 20 >= 3 * begin["examples"]
        prompts.append({each.message_id for each in kept})
    assert prompts[0] != prompts[1]  # drawn anew in each iteration


@pytest.mark.parametrize("stage", ["exact", "rsf-2"])
def test_killed_in_any_stage_the_run_ends_the_same(stage, folder, run, tmp_path, monkeypatch):
    honest = pipeline.train_stage

    def killed(job):
        if job.stage.name == stage:
            raise small.Killed
        return honest(job)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_stage", killed)
        with pytest.raises(small.Killed):
            main(train(folder / "table", tmp_path / "cut"))
    assert main(["train", "--resume", str(tmp_path / "cut"), "--json"]) == 0
    for name in NAMES:
        assert small.outcome(tmp_path / "cut", name) == small.outcome(run, name), name


def test_no_iteration_follows_one_that_is_good_enough(folder, tmp_path, capsys):
    iterations = f"{{algorithm: rsf, {BEST}, stop_accuracy: 0.0}}"
    few = iterations.replace("iterations: 2", "iterations: 3, validate_every: 1")
    sft = STAGES.split("}, ")[0] + "}"
    with pytest.MonkeyPatch.context() as patch:
        honest = session.validation
        patch.setattr(session, "validation", lambda *args: {**honest(*args), "val/accuracy": 0.5})
        assert main(train(folder / "table", tmp_path / "run", f"{sft}, {few}")) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["stages"]) == ["sft", "rsf-1"] and found["final"] == "rsf-1"
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["final"] == "rsf-1" and "rsf-2: left out" in said.err
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["stage"] == "rsf-1"


def test_a_learned_reward_needs_a_reward_model(folder, tmp_path, capsys):
    assert main(train(folder / "table", tmp_path / "run", f"{{algorithm: grpo, {REWARDS}}}")) == 2
    assert "the reward function learned needs a stage before it that trains a reward model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_code_is_taken_from_the_command_line_only(folder, tmp_path, capsys):
    code = tmp_path / "mine.py"
    code.write_text("def few(samples):\n    return [-len(each.tokens) for each in samples]\n")
    stages = f"{{algorithm: grpo, {SHORT}, max_tokens: 4, rewards: [{{function: '{code}:few'}}]}}"
    assert main(train(folder / "table", tmp_path / "run", stages)) == 0
    capsys.readouterr()
    resume = ["train", "--resume", str(tmp_path / "run"), "--json"]
    (tmp_path / "run/grpo/stage.json").rename(tmp_path / "finished.json")
    assert main(resume) == 2
    assert "is code, which is not taken from a run folder: name it again with --set" in capsys.readouterr().err
    (tmp_path / "finished.json").rename(tmp_path / "run/grpo/stage.json")
    assert main(resume) == 0  # nothing is left to be judged
    (tmp_path / "run/grpo/stage.json").unlink()
    assert main(resume) == 2
    again = f"stages.grpo.rewards=[{{function: '{code}:few'}}]"
    assert main([*resume, "--set", again.replace("mine.py", "not/mine.py")]) == 2
    assert main([*resume, "--set", again]) == 0
    other = again.replace("few", "many")
    assert main([*resume, "--set", other]) == 2
    (tmp_path / "run/grpo/stage.json").unlink()
    code.unlink()
    assert main([*resume, "--set", again]) == 2
    assert "FileNotFoundError" in capsys.readouterr().err
