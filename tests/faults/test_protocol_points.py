"""Killed before or after any operation on the file system, a run has whole checkpoints only, and loses only time.

What a SIGKILL leaves is what is on the file system at that moment; so most of these tests copy the run's folder at each
operation and go on from the copy. The slow one kills.
"""

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
import small

from mlx_email import files
from mlx_email.train import checkpoint, events
from mlx_email.train.stage import train_stage

# Everything a save can do: 4 checkpoints, of which 1 is removed; the best one is not the last.
STAGE = {"held_out": 5, "validate_every": 2, "learning_rate": 0.1, "max_steps": 8, "save_every": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    return small.train(tmp_path_factory.mktemp("whole") / "run", **STAGE)


def states(run, work, monkeypatch) -> list:
    """Copies of `run` as it is before and after each operation of `work`, without repetitions."""
    found, seen, busy = [], set(), []

    def copy(where: str) -> None:
        if busy:
            return
        busy.append(where)  # what copies is not watched
        now = frozenset((str(path.relative_to(run)), path.is_file() and path.read_bytes()) for path in run.rglob("*"))
        if now not in seen:
            seen.add(now)
            found.append(run.with_name(f"{len(found):03d} {where}"))
            shutil.copytree(run, found[-1])
        busy.clear()

    with monkeypatch.context() as watching:
        small.watch(watching.setattr, copy)
        work()
    for state in found:  # a killed process is no more; this one is
        for left in sorted(state.rglob(f"{files.TEMPORARY}*-{os.getpid()}"), reverse=True):
            left.rename(left.with_name(left.name.replace(f"-{os.getpid()}", f"-{small.NOBODY}")))
    return found


def assert_whole(run) -> int:
    """Every visible checkpoint verifies; gives the newest one's step."""
    steps = [checkpoint.verified(run / "sft", int(path.name[5:])).step for path in small.checkpoints(run / "sft")]
    newest = checkpoint.newest(run / "sft", pytest.fail)
    assert (newest.step if newest else None) == max(steps, default=None)
    return max(steps, default=-1)


def assert_goes_on(run, whole) -> None:
    assert small.train(run, **STAGE) == whole
    assert small.temporaries(run) == []


def test_at_every_operation_of_a_whole_stage(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    job = small.job(run, **STAGE)
    found = states(run, lambda: train_stage(job), monkeypatch)
    newest = [assert_whole(state) for state in found]
    assert newest == sorted(newest)
    assert set(newest) == {-1, 0, 2, 4, 6, 8}
    assert len(found) > 100
    # From the second half on everything has happened once: a save, a removal, and the result.
    for state in found[len(found) // 2 :: 7]:
        assert_goes_on(state, whole)


def damaged_in(run) -> Path:
    return run / "sft/step-000006/optimizer.safetensors"


def test_at_every_operation_of_a_resume_past_a_damaged_checkpoint(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    small.train_until(run, 7, **STAGE)
    damaged_in(run).write_bytes(b"damaged")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "st')  # and a line that was being written
    steps = []
    job = small.job(run, **STAGE, on_step=lambda result, _: steps.append(result.step))
    found = states(run, lambda: train_stage(job), monkeypatch)
    assert steps == [5, 6, 7, 8]
    damaged = [state for state in found if damaged_in(state).is_file() and damaged_in(state).read_bytes() == b"damaged"]
    assert len(damaged) > 5
    for state in set(found) - set(damaged):
        assert_whole(state)
    for state in found[::9]:
        assert_goes_on(state, whole)


def test_a_checkpoint_written_in_place_would_be_seen(tmp_path, monkeypatch):
    """The planted fault: no hidden folder."""

    @contextlib.contextmanager
    def in_place(folder, **_):
        folder.mkdir(parents=True)
        yield folder

    monkeypatch.setattr(files, "publish", in_place)
    run = tmp_path / "run"
    job = small.job(run, **STAGE)
    found = states(run, lambda: train_stage(job), monkeypatch)
    with pytest.raises(checkpoint.Damaged):
        list(map(assert_whole, found))


KILL = """
import os, signal, sys
from pathlib import Path
import small
run, at, stage = Path(sys.argv[1]), int(sys.argv[2]), eval(sys.argv[3])
job = small.job(run, **stage)
seen = 0
def count(where):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
small.watch(setattr, count)
small.train_stage(job)
print(seen)
"""


@pytest.mark.slow
def test_killed_at_every_operation(warm, whole, tmp_path):
    counting = warm.run(KILL, tmp_path / "run", 0, STAGE)
    assert counting.wait() == 0, counting.said
    for at in range(1, int(counting.said) + 1, 7):
        run = tmp_path / f"{at}"
        assert warm.run(KILL, run, at, STAGE).wait() == -signal.SIGKILL
        newest = assert_whole(run)
        seen = [event["step"] for event in events.read(run) if event["event"] == "step"]
        assert max(seen, default=0) - max(newest, 0) <= 2
        assert_goes_on(run, whole)
        shutil.rmtree(run)
