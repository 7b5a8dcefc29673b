"""Trackers get every number and table of a run, each in its own way; none can end a run."""

import json
import sys
from pathlib import Path

import pytest
import small

from mlx_email import tracking
from mlx_email.cli import main
from mlx_email.errors import ConfigError
from mlx_email.tracking import TRACKERS, Tracker, Tracking
from mlx_email.train import events

STEP = {"event": "step", "stage": "sft", "step": 10, "time": 1.0, "tokens": 7, "traces": 0, "loss": 0.5, "lr": 1e-3}
COLUMNS, LINES = ("message_id", "correct"), [["a@x", True], ["b@x", False]]


class Recorder:
    """Any program: remembers what it was called with, and answers everything with itself."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        def called(*args, **named):
            self.calls.append((name, args, named))
            return self

        return called

    def of(self, name: str) -> list[tuple]:
        return [(args, named) for called, args, named in self.calls if called == name]


def told(name: str, run: Path) -> Recorder:
    """What a tracker's module is called with for two events and a table."""
    module = Recorder()
    made = Tracking({name: module}, pytest.fail)
    made.begin(run, {"seed": 0})
    made.event(STEP)
    made.event({"event": "gate", "stage": "sft", "kept": True, "than": None, "val/accuracy": 0.7})
    made.event({"event": "checkpoint", "stage": "sft", "step": 10})
    made.table("sft/test", COLUMNS, LINES)
    made.close()
    return module


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_runs_with_a_step_of_their_own(name, tmp_path):
    module = told(name, tmp_path)
    ((_, begun),) = module.of("init")
    assert begun["config"] == {"seed": 0} and begun["name"] == tmp_path.name
    logged = [args[0] for args, _ in module.of("log")]
    assert logged[0] == {"sft/step": 10, "sft/loss": 0.5, "sft/lr": 1e-3}
    assert logged[1] == {"sft/step": 0, "sft/gate/kept": 1.0, "sft/gate/val/accuracy": 0.7}
    assert list(logged[2]) == ["sft/test"] and len(logged) == 3
    assert module.of("Table") == [((), {"columns": list(COLUMNS), "data": LINES})]
    assert len(module.of("finish")) == 1


def test_wandb_is_offline_unless_it_is_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert told("wandb", tmp_path).of("init")[0][1]["mode"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert told("wandb", tmp_path).of("init")[0][1]["mode"] == "online"


def test_tensorboard_gets_a_curve_a_number(tmp_path):
    module = told("tensorboard", tmp_path)
    assert module.of("add_scalar")[:2] == [(("sft/loss", 0.5, 10), {}), (("sft/lr", 1e-3, 10), {})]
    assert len(module.of("close")) == 1


def test_mlflow_keeps_a_data_base_in_the_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    module = told("mlflow", tmp_path)
    assert module.of("set_tracking_uri")[0][0][0] == f"sqlite:///{tmp_path}/tracking/mlflow.db"
    assert module.of("log_metrics")[0] == (({"sft/loss": 0.5, "sft/lr": 1e-3},), {"step": 10})
    table = {"columns": list(COLUMNS), "data": {"message_id": ["a@x", "b@x"], "correct": [True, False]}}
    assert module.of("log_dict")[1][0] == (table, "sft/test.json")
    assert len(module.of("end_run")) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    assert told("mlflow", tmp_path).of("set_tracking_uri") == []


def test_a_tracker_that_fails_is_left_behind(monkeypatch):
    said, others = [], []

    def fail(*_):
        raise OSError("no network")

    made = {"one": Tracker(fail, fail, fail), "two": Tracker(lambda *n: others.append(n), fail, lambda: None)}
    monkeypatch.setattr(tracking, "TRACKERS", {n: (n, lambda module, run, config: made[module]) for n in made})
    both = Tracking({"one": "one", "two": "two"}, said.append)
    both.begin(Path("x"), {})
    both.event(STEP)
    both.event(STEP)
    both.close()
    assert said == ["warning: one takes no more numbers (OSError: no network); the run goes on"]
    assert [(stage, step) for stage, step, _ in others] == [("sft", 10), ("sft", 10)]


def test_what_trackers_print_is_no_result(capsys, monkeypatch):
    quiet = Tracker(lambda *_: print("hello"), lambda *_: None, lambda: None)
    monkeypatch.setattr(tracking, "TRACKERS", {"one": ("one", lambda module, run, config: quiet)})
    made = Tracking({"one": "one"})
    made.begin(Path("x"), {})
    made.event(STEP)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hello\n")


def test_one_that_is_not_installed_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", "--track", "wandb", "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'mlx-email[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError):
        tracking.installed(["wandb"])


def test_a_run_tells_what_its_events_say(tmp_path, monkeypatch):
    """Every step, validation, verdict and test, and both tables."""
    assert main(["synth", "--out", str(tmp_path / "box"), "--messages", "60"]) == 0
    assert main(["prepare", str(tmp_path / "box/maildir"), "--out", str(tmp_path / "table")]) == 0
    small.write_model(tmp_path / "model")
    module = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", module)
    few = ["stages.sft.max_steps=3", "stages.sft.validate_every=3", "stages.sft.log_every=1"]
    settings = [part for each in few for part in ("--set", each)]
    arguments = small.command(tmp_path / "table", tmp_path / "model", tmp_path / "run")
    assert main([*arguments, *settings, "--track", "trackio"]) == 0
    followed = [e for e in events.read(tmp_path / "run") if e["event"] in ("step", "validation", "gate", "evaluate")]
    logged = [args[0] for args, _ in module.of("log")]
    numbers = [each for each in logged if "sft/step" in each]
    assert len(numbers) == len(followed) == 6
    for event, each in zip(followed, numbers, strict=True):
        assert each["sft/step"] == event.get("step", 0)
    assert numbers[0]["sft/loss"] == followed[0]["loss"] and "sft/test/accuracy" in numbers[-1]
    tables = [named for _, named in module.of("Table")]
    assert [list(each) for each in logged if "sft/step" not in each] == [["sft/validation"], ["sft/test"]]
    assert tables[0]["columns"] == ["message_id", "predicted", "actual", "correct", "confidence"]
    assert len(tables[1]["data"]) == json.loads((tmp_path / "run/sft/metrics.json").read_text())["messages"]


@pytest.mark.parametrize("name", TRACKERS)
def test_with_the_program_itself(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it is read when trackio is imported
    module = pytest.importorskip(TRACKERS[name][0], reason=f"{name} is not installed: it is an extra")
    made = Tracking({name: module}, pytest.fail)
    made.begin(tmp_path, {"seed": 0, "stages": [{"name": "sft"}]})
    made.event(STEP)
    made.event({**STEP, "step": 11})
    made.table("sft/test", COLUMNS, LINES)
    made.close()
    assert any(path.is_file() for path in tmp_path.rglob("*"))
