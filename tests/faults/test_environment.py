"""A run needs no home, no network, no locale; where the memory does not suffice it stops with advice, resumable."""

import json
import os
import subprocess
import sys

import mlx.core as mx
import msgspec
import pytest
import small

from mlx_email.cli import main
from mlx_email.config import Memory
from mlx_email.errors import MlxEmailError
from mlx_email.train import checkpoint, loop, memory, validate
from mlx_email.train.stage import train_stage

BARE = """
import socket, sys
def refuse(*args, **named):
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from mlx_email.cli import main
from mlx_email.config import Memory
run, *arguments = sys.argv[1:]
assert main(arguments) == 1, "the memory was to end it"
sys.exit(main(["train", "--resume", run, "--set", "memory.limit_gb=null"]))
"""


@pytest.fixture(scope="module")
def whole(table, little, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(small.command(table, little, run)) == 0
    return run


@pytest.mark.parametrize("home", [None, "/dev/null/nobody"], ids=["no home", "a home that cannot be"])
@pytest.mark.slow
def test_without_a_home_a_locale_and_a_network(home, table, little, whole, tmp_path):
    run = tmp_path / "läuft"  # to be printed in a locale of ASCII
    kept = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"LANG": "C", "LC_ALL": "C", "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "1"}
    environment |= {} if home is None else {"HOME": home}
    done = subprocess.run(
        [sys.executable, "-c", BARE, run, *small.command(table, little, run, "memory.limit_gb=0.000001")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [run.name]
    ours, theirs = small.outcome(run), small.outcome(whole)
    assert ours | {"checkpoints": theirs["checkpoints"]} == theirs


# Memory


def test_a_ceiling_stops_cleanly_and_a_higher_one_goes_on(table, little, whole, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(small.command(table, little, run, "memory.limit_gb=0.000001")) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: step 1: too much memory") and "batch_size" in said
    assert "The last checkpoint is of step 1; to go on from it" in said
    assert checkpoint.newest(run / "sft", pytest.fail).step == 1
    # Under the same ceiling it does a step and stops again; nothing is lost.
    assert main(["train", "--resume", str(run)]) == 1
    assert checkpoint.newest(run / "sft", pytest.fail).step == 2
    assert main(["train", "--resume", str(run), "--json", "--set", "memory.limit_gb=1000"]) == 0
    ours, theirs = small.outcome(run), small.outcome(whole)
    assert ours | {"checkpoints": theirs["checkpoints"]} == theirs


def test_no_ceiling_is_the_machines_memory(tmp_path):
    assert 0.1 < memory.ceiling_gb(None) < 10**6
    assert memory.ceiling_gb(3.5) == 3.5


@pytest.fixture(scope="module")
def validated(tmp_path_factory) -> dict:
    return small.train(tmp_path_factory.mktemp("validated") / "run", held_out=3, validate_every=4)


SAYINGS = [
    RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBuffer...)"),
    RuntimeError("[malloc_or_wait] Unable to allocate 100000000000 bytes.\nwhat is more\nin lines"),
    RuntimeError("[metal::malloc] Attempting to allocate 100 bytes which is greater than the maximum allowed"),
    MemoryError(),
]


@pytest.mark.parametrize(
    ("where", "error"), [*(("forward", error) for error in SAYINGS), ("update", SAYINGS[0]), ("validation", SAYINGS[1])]
)
def test_memory_that_is_refused_inside_a_step(where, error, validated, tmp_path, monkeypatch):
    run = tmp_path / "run"
    module, name, at = {
        "forward": (loop, "clipped_mean", 5),
        "update": (loop.optim.AdamW, "apply_gradients", 5),
        "validation": (validate.batches, "once", 1),
    }[where]
    honest, calls = getattr(module, name), []

    def refuse(*args):
        calls.append(None)
        if len(calls) == at:
            raise error
        return honest(*args)

    with monkeypatch.context() as refusing:
        refusing.setattr(module, name, refuse)
        with pytest.raises(MlxEmailError) as said:
            train_stage(small.job(run, held_out=3, validate_every=4))
    message = str(said.value)
    assert "the memory does not suffice" in message and "batch_size" in message and "\n" not in message
    assert f"The last checkpoint is of step {3 if where == 'validation' else 4}; to go on" in message
    assert said.value.exit_code == 1
    assert small.train(run, held_out=3, validate_every=4) == validated


def test_another_error_of_mlx_keeps_its_traceback(tmp_path, monkeypatch):
    """What is not about memory is a defect of ours, and must not be called anything else."""

    def broken(*args):
        raise RuntimeError("[matmul] Last dimension of first input must match")

    monkeypatch.setattr(loop, "clipped_mean", broken)
    with pytest.raises(RuntimeError, match="matmul"):
        train_stage(small.job(tmp_path / "run"))


def test_the_cache_is_bounded(tmp_path):
    before = mx.set_cache_limit(10**9)
    try:
        settings = msgspec.structs.replace(small.SETTINGS, memory=Memory(cache_gb=0.5))
        small.train(tmp_path / "run", settings=settings)
        assert mx.set_cache_limit(before) == 5 * 10**8
    finally:
        mx.set_cache_limit(before)


def test_no_validation_messages_at_all(tmp_path):
    """Then the last step is the result, whatever validate_every says."""
    outcome = small.train(tmp_path / "run", held_out=0, validate_every=2, patience=1)
    assert outcome["stage.json"]["result_step"] == 9
    small.train_until(tmp_path / "killed", 5, held_out=0, validate_every=2, patience=1)
    assert small.train(tmp_path / "killed", held_out=0, validate_every=2, patience=1) == outcome


def test_what_a_run_was_trained_with_is_written_down(whole):
    said = json.loads((whole / "environment.json").read_bytes())
    assert {"mlx", "mlx_lm", "mlx_email", "python", "device", "platform"} <= said.keys()
