"""A run has one writer: who comes second is refused at once, and told who is there; the dead hold nothing."""

import json
import os
import signal
import time

import pytest
import small

from mlx_email import files
from mlx_email.cli import main
from mlx_email.train import checkpoint


@pytest.fixture(scope="module")
def whole(table, little, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(small.command(table, little, run)) == 0
    return run


def test_a_second_writer_is_refused_at_once(warm, table, little, whole, tmp_path, capsys):
    run, gate = tmp_path / "run", tmp_path / "gate"
    first = warm.start(small.GATED, gate, *small.command(table, little, run))
    assert first.wait_for(lambda: small.begun(run, 4)), first.said
    for arguments in (["train", "--resume", str(run)], ["train", "--resume", str(run), "--set", "keep_checkpoints=1"]):
        capsys.readouterr()
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"in use by process {first.pid}" in said
    assert main(small.command(table, little, run)) == 2
    gate.touch()
    assert first.wait() == 0, first.said
    assert small.outcome(run) == small.outcome(whole)
    assert (run / "config.yaml").read_bytes() == (whole / "config.yaml").read_bytes()


@pytest.mark.slow
def test_three_resumes_at_once(warm, table, little, whole, tmp_path):
    run, gate = tmp_path / "run", tmp_path / "gate"
    first = warm.start(small.GATED, gate, *small.command(table, little, run))
    assert first.wait_for(lambda: small.begun(run, 4)), first.said
    first.send(signal.SIGKILL)
    first.wait()
    three = [warm.start(small.GATED, gate, "train", "--resume", run, "--json") for _ in range(3)]
    # Two end; the third waits in the middle of the training until they have.
    deadline = time.monotonic() + 60
    while sum(process.poll() is not None for process in three) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    gate.touch()
    assert sorted(process.wait() for process in three) == [0, 2, 2], [process.said for process in three]
    for process in three:
        assert process.wait() == 0 or "in use by process" in process.last_line
    assert small.outcome(run) == small.outcome(whole)


def test_a_lock_of_a_dead_process_is_taken_over(warm, table, little, whole, tmp_path):
    run = tmp_path / "run"
    process = warm.start(small.GATED, tmp_path / "never", *small.command(table, little, run))
    assert process.wait_for(lambda: small.begun(run, 4)), process.said
    process.send(signal.SIGKILL)
    process.wait()
    assert (run / files.LOCK).read_text() == str(process.pid)
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert (run / files.LOCK).read_text() == str(os.getpid())
    assert small.outcome(run) == small.outcome(whole)


@pytest.mark.parametrize("held", ["", "not a number", str(os.getpid()), "1", "\0" * 100])
def test_what_stands_in_the_lock_decides_nothing(held, whole, tmp_path, capsys):
    """Not the pid, which may be another process's by now: the kernel's lock."""
    (tmp_path / files.LOCK).write_text(held)
    with files.locked(tmp_path):
        assert (tmp_path / files.LOCK).read_text() == str(os.getpid())
    (tmp_path / "config.yaml").write_text("{}")
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "in use" not in capsys.readouterr().err


def test_reading_needs_no_lock(warm, table, little, tmp_path, whole, capsys):
    """A run can be evaluated while a later stage of it trains."""
    with files.locked(whole):
        capsys.readouterr()
        assert main(["evaluate", str(whole), "--json"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)
    assert measured["messages"] == 4


def test_a_lock_that_is_held_is_left_alone(tmp_path, warm):
    """Refused: nothing of the run is touched, not even its configuration."""
    holder = warm.start(
        "import sys, time; from pathlib import Path; from mlx_email import files\n"
        "with files.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)",
        tmp_path,
    )
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert holder.wait_for(lambda: "held" in holder.said)
    before = small.contents(tmp_path)
    assert main(["train", "--resume", str(tmp_path), "--set", "keep_checkpoints=5"]) == 2
    assert small.contents(tmp_path) == before
    holder.send(signal.SIGKILL)
    holder.wait()


def test_retention_leaves_what_is_not_its_own(tmp_path):
    """A writer of another machine (a shared disk) is not seen by its pid; what it is writing has its own name."""
    run = tmp_path / "run"
    small.train_until(run, 4)
    theirs = run / "sft" / f"{files.TEMPORARY}step-000006-{os.getppid()}"
    theirs.mkdir()
    small.train(run)
    assert theirs.is_dir()
    assert checkpoint.newest(run / "sft", pytest.fail).step == 9
