"""Asked to stop, a run saves first; asked twice, it stops at once; a pause or a clock changes nothing."""

import shlex
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import small

from mlx_email import pipeline, progress
from mlx_email.cli import main
from mlx_email.errors import MlxEmailError
from mlx_email.train import checkpoint, events, interrupts, loop, stage
from mlx_email.train.stage import train_stage


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    return small.train(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def whole_run(table, little, tmp_path_factory):
    """A run of the command that nothing stopped."""
    run = tmp_path_factory.mktemp("whole run") / "run"
    assert main(small.command(table, little, run)) == 0
    return run


def raising_at(step: int, *numbers: signal.Signals):
    """An `on_step` that sends signals to this process."""

    def on_step(result, steps) -> None:
        if result.step == step:
            for number in numbers:
                signal.raise_signal(number)

    return on_step


@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupt_saves_the_step_it_was_in(step, whole, tmp_path):
    run, notes = tmp_path / "run", []
    with pytest.raises(interrupts.Interrupted, match=f"^saved at step {step} of 9; to go on: mlx-email train --resume"):
        train_stage(small.job(run, on_step=raising_at(step, signal.SIGINT), note=notes.append))
    assert notes == ["interrupted: the step is finished and saved first; once more to stop at once"]
    assert checkpoint.newest(run / "sft", pytest.fail).step == step
    assert small.train(run) | {"checkpoints": whole["checkpoints"]} == whole


def test_an_interrupt_in_the_last_step_is_not_forgotten(whole, tmp_path):
    """The next stage, and the measuring, would go on otherwise."""
    run = tmp_path / "run"
    with pytest.raises(interrupts.Interrupted, match=r"^saved at step 9 of 9; to go on"):
        train_stage(small.job(run, on_step=raising_at(9, signal.SIGINT)))
    assert not stage.finished(run, "sft")
    assert small.train(run) == whole


def test_a_second_interrupt_stops_at_once(whole, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as stopped:
        train_stage(small.job(run, on_step=raising_at(5, signal.SIGINT, signal.SIGINT)))
    assert not isinstance(stopped.value, interrupts.Interrupted)
    assert checkpoint.newest(run / "sft", pytest.fail).step == 3
    assert small.train(run) == whole


@pytest.mark.parametrize("where", small.OPERATIONS, ids=lambda operation: operation[1])
def test_a_second_interrupt_while_it_saves(where, whole, tmp_path, monkeypatch):
    """The save is whole or did not happen, wherever in it the second one arrives."""
    run, saving, sent = tmp_path / "run", [], []

    def at(place: str) -> None:
        if saving and not sent and place == f"after {where[1]}":
            sent.append(place)
            signal.raise_signal(signal.SIGINT)

    def on_step(result, steps) -> None:
        if result.step == 5:
            signal.raise_signal(signal.SIGINT)
            saving.append(True)

    with monkeypatch.context() as watching:
        small.watch(watching.setattr, at)
        with pytest.raises(KeyboardInterrupt):
            train_stage(small.job(run, on_step=on_step))
    assert checkpoint.newest(run / "sft", pytest.fail).step in (3, 5)
    assert small.temporaries(run) == []
    assert small.train(run)["adapters"] == whole["adapters"]


def test_the_handler_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    small.train(tmp_path / "run", max_steps=1)
    with pytest.raises(interrupts.Interrupted):
        train_stage(small.job(tmp_path / "b", on_step=raising_at(1, signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_it_trains_too(whole, tmp_path):
    with ThreadPoolExecutor(1) as other:
        assert other.submit(small.train, tmp_path / "run").result() == whole


# The command


def same(run, other) -> None:
    a, b = small.outcome(run), small.outcome(other)
    assert a | {"checkpoints": b["checkpoints"]} == b
    assert (run / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_to_the_command(number, warm, table, little, whole_run, tmp_path):
    run, gate = tmp_path / "run", tmp_path / "gate"
    process = warm.start(small.GATED, gate, *small.command(table, little, run))
    assert process.wait_for(lambda: small.begun(run, 4)), process.said
    process.send(number)
    assert process.wait_for(lambda: "once more to stop at once" in process.said), process.said
    gate.touch()
    assert process.wait() == 130, process.said
    assert "Traceback" not in process.said
    assert process.last_line.startswith("error: interrupted: saved at step 5 of 9; to go on: mlx-email train --resume")
    assert checkpoint.newest(run / "sft", pytest.fail).step == 5
    assert main(["train", "--resume", str(run), "--json"]) == 0
    same(run, whole_run)


def test_the_last_line_says_how_to_go_on(table, little, whole_run, tmp_path, monkeypatch, capsys):
    run = tmp_path / "a run"  # with a space: the command that is named quotes it
    with monkeypatch.context() as interrupting:
        interrupting.setattr(progress.StepBar, "step", lambda _, *result: raising_at(4, signal.SIGINT)(*result))
        assert main(small.command(table, little, run)) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    start = "error: interrupted: saved at step 4 of 9; to go on: mlx-email "
    assert said.startswith(start)
    assert main([*shlex.split(said.removeprefix(start)), "--json"]) == 0
    same(run, whole_run)


def test_an_interrupt_while_it_is_measured(table, little, whole_run, tmp_path, monkeypatch, capsys):
    """Outside of the training there is nothing to save: it stops at once, and goes on with the measuring."""
    run = tmp_path / "run"
    with monkeypatch.context() as interrupting:
        interrupting.setattr(pipeline, "predict", lambda *_: signal.raise_signal(signal.SIGINT))
        assert main(small.command(table, little, run)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"
    assert stage.finished(run, "sft") and not (run / "sft/metrics.json").exists()
    assert main(["train", "--resume", str(run), "--json"]) == 0
    same(run, whole_run)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_two_signals_to_the_command(number, warm, table, little, whole_run, tmp_path):
    run = tmp_path / "run"
    process = warm.start(small.GATED, tmp_path / "never", *small.command(table, little, run))
    assert process.wait_for(lambda: small.begun(run, 4)), process.said
    process.send(number)
    assert process.wait_for(lambda: "once more to stop at once" in process.said), process.said
    process.send(number)
    assert process.wait() == 130, process.said
    assert process.last_line == "error: interrupted"
    assert checkpoint.newest(run / "sft", pytest.fail).step == 3
    assert main(["train", "--resume", str(run), "--json"]) == 0
    same(run, whole_run)


@pytest.mark.slow
def test_a_pause_changes_nothing(warm, table, little, whole_run, tmp_path):
    run, gate = tmp_path / "run", tmp_path / "gate"
    process = warm.start(small.GATED, gate, *small.command(table, little, run))
    for _ in range(3):
        process.send(signal.SIGSTOP)
        time.sleep(0.1)
        process.send(signal.SIGCONT)
        assert process.wait_for(lambda: small.begun(run, 4)), process.said
    gate.touch()
    assert process.wait() == 0, process.said
    same(run, whole_run)


@pytest.mark.parametrize("clock", ["backwards", "standing"])
def test_a_clock_changes_nothing(clock, whole, tmp_path, monkeypatch):
    now = [2e9]

    def tell() -> float:
        now[0] -= 1000 * (clock == "backwards")
        return now[0]

    for module in (loop.time, events.time):
        monkeypatch.setattr(module, "time", tell)
        monkeypatch.setattr(module, "perf_counter", tell)
    small.train_until(tmp_path / "run", 5)
    assert small.train(tmp_path / "run") == whole


def test_no_state_tells_the_time(tmp_path):
    """But for the events, nothing that a run writes differs from one time to another."""
    run = tmp_path / "run"
    small.train(run)
    run.rename(tmp_path / "before")
    small.train(run)
    a, b = (small.contents(folder / "sft") for folder in (tmp_path / "before", run))
    assert {name for name in a if a[name] != b[name]} == {"stage.json"}


def test_an_error_after_an_interrupt_is_still_said(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "save", lambda *_: (_ for _ in ()).throw(MlxEmailError("the disk is full")))
    with pytest.raises(MlxEmailError, match="the disk is full"):
        train_stage(small.job(tmp_path / "run", on_step=raising_at(5, signal.SIGINT)))
