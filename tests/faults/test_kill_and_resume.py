"""A run that was killed goes on from its last checkpoint and ends with the bits of a run that was not."""

import random
import signal
import subprocess
import sys
import time

import msgspec
import pytest
import small

from mlx_email import files, final, pipeline, sealed
from mlx_email.config import Config, Evaluation, Lora, Sft
from mlx_email.progress import Progress
from mlx_email.train import batches, checkpoint, events, loop, session, stage

STEPS_AN_EPOCH = {1: 7, 3: 3}  # by accumulation: 14 examples of 7 lengths, 2 a micro-batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """What a run gives that nothing interrupts."""
    return small.train(tmp_path_factory.mktemp("whole") / "run")


def test_two_runs_are_equal_in_every_file_that_is_compared(whole, tmp_path):
    assert small.train(tmp_path / "run") == whole
    assert whole["checkpoints"] == ["step-000000", "step-000006", "step-000009"]
    assert [step for step, _ in whole["steps"]] == list(range(1, 10))


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7, 9])
def test_killed_before_a_step_is_saved(step, whole, tmp_path):
    small.train_until(tmp_path / "run", step)
    assert small.train(tmp_path / "run") == whole


def test_killed_again_and_again(whole, tmp_path):
    for step in (2, 1, 5, 4, 6, 9, 7, 9):
        small.train_until(tmp_path / "run", step)
    assert small.train(tmp_path / "run") == whole


@pytest.mark.parametrize("accumulation", [1, 3])
def test_saved_in_an_epoch_at_its_last_step_and_after_it(accumulation, tmp_path):
    """Composer's three places."""
    an_epoch = STEPS_AN_EPOCH[accumulation]
    length = {"accumulation": accumulation, "max_steps": an_epoch + 2, "save_every": 1}
    expected = small.train(tmp_path / "whole", **length)
    plan = batches.plan(small.examples(14), 2)
    assert batches.steps_per_epoch(plan, accumulation) == an_epoch
    for saved in (1, an_epoch, an_epoch + 1):
        run = tmp_path / f"saved-{saved}"
        small.train_until(run, saved + 1, **length)
        assert checkpoint.newest(run / "sft", print).step == saved
        assert small.train(run, **length) == expected


# The best step is in the middle, and patience ends the stage before its steps do.
PATIENT = {"held_out": 5, "validate_every": 1, "patience": 3, "max_steps": 12, "save_every": 5, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def patient(tmp_path_factory) -> dict:
    return small.train(tmp_path_factory.mktemp("patient") / "run", **PATIENT)


def test_the_best_checkpoint_and_patience_survive(patient, tmp_path):
    said = patient["stage.json"]
    best, last = said["result_step"], said["steps"]
    assert best > 0 and last == best + 3 < 12
    for step in (best, last):
        small.train_until(tmp_path / f"{step}", step, **PATIENT)
        assert small.train(tmp_path / f"{step}", **PATIENT) == patient


def test_killed_when_patience_was_over(patient, tmp_path, monkeypatch):
    """After the last save and before the result: not one step more."""
    with monkeypatch.context() as killing:
        at(killing, stage, "_finish", lambda *_: True)
        with pytest.raises(small.Killed):
            stage.train_stage(small.job(tmp_path / "run", **PATIENT))
    assert small.train(tmp_path / "run", on_step=pytest.fail, **PATIENT) == patient


def test_one_checkpoint_kept_is_enough(tmp_path):
    settings = {"settings": msgspec.structs.replace(small.SETTINGS, keep_checkpoints=1), **PATIENT}
    expected = small.train(tmp_path / "whole", **settings)
    small.train_until(tmp_path / "run", expected["stage.json"]["steps"] - 1, **settings)
    assert small.train(tmp_path / "run", **settings) == expected
    best, last = expected["stage.json"]["result_step"], expected["stage.json"]["steps"]
    assert expected["checkpoints"] == [f"step-{step:06d}" for step in (0, best, last)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"compile": True},
        {"gradient_checkpointing": True},
        {"lora": msgspec.structs.replace(small.SETTINGS.lora, dora=True)},
        {"weight_decay": 0.1},
    ],
    ids=lambda how: min(how),
)
def test_however_the_step_is_computed(how, tmp_path):
    settings = {
        "settings": msgspec.structs.replace(small.SETTINGS, **how),
        "train_on": 4,
        "batch_size": 4,
        "accumulation": 1,
        "max_steps": 4,
        "save_every": 2,  # one shape to compile
    }
    small.train_until(tmp_path / "run", 3, **settings)
    assert small.train(tmp_path / "run", **settings) == small.train(tmp_path / "whole", **settings)


# Planted faults: each of these is seen by the comparisons above.


def cold(run) -> None:
    """Resets the moments of the newest checkpoint, and seals that."""
    held = small.checkpoints(run / "sft")[-1]
    arrays = small.mx.load(str(held / checkpoint.OPTIMIZER))
    reset = {name: array * 0 for name, array in arrays.items()}
    small.mx.eval(reset)
    small.mx.save_safetensors(str(held / checkpoint.OPTIMIZER), reset)
    sealed.seal(held, stage="sft", step=int(held.name[-6:]))


def test_a_cold_optimizer_would_be_seen(whole, tmp_path):
    small.train_until(tmp_path / "run", 5)
    cold(tmp_path / "run")
    assert small.train(tmp_path / "run")["adapters"] != whole["adapters"]


def test_an_order_that_begins_anew_would_be_seen(whole, tmp_path, monkeypatch):
    small.train_until(tmp_path / "run", 5)
    honest = batches.steps
    monkeypatch.setattr(batches, "steps", lambda *args, start: honest(*args, start=0))
    assert small.train(tmp_path / "run")["adapters"] != whole["adapters"]


def test_dropout_that_counts_from_the_session_would_be_seen(whole, tmp_path, monkeypatch):
    honest = loop.derived_seed
    small.train_until(tmp_path / "run", 5)
    monkeypatch.setattr(loop, "derived_seed", lambda seed, step, *number: honest(seed, step - 3, *number))
    assert small.train(tmp_path / "run")["adapters"] != whole["adapters"]


def test_a_schedule_that_begins_anew_would_be_seen(whole, tmp_path, monkeypatch):
    small.train_until(tmp_path / "run", 5)
    honest = stage.learning_rate
    monkeypatch.setattr(stage, "learning_rate", lambda schedule, step, *rest: honest(schedule, step - 3, *rest))
    assert small.train(tmp_path / "run")["adapters"] != whole["adapters"]


def test_a_forgotten_best_step_would_be_seen(patient, tmp_path, monkeypatch):
    small.train_until(tmp_path / "run", patient["stage.json"]["steps"] - 1, **PATIENT)
    honest = stage._begin

    def forgetful(job, optimizer):
        return msgspec.structs.replace(honest(job, optimizer), best_loss=None, best_step=None, worse=0)

    monkeypatch.setattr(stage, "_begin", forgetful)
    assert small.train(tmp_path / "run", **PATIENT) != patient


# Two stages, by the pipeline

TWO = Config(
    lora=Lora(rank=2, dropout=0.2),
    max_prompt_tokens=160,
    stages=tuple(Sft(name=n, max_steps=4, save_every=2, batch_size=2, accumulation=2, log_every=1) for n in "ab"),
    evaluation=Evaluation(max_messages=4, validation_messages=4),
)


def both(run) -> dict:
    said = (
        "config.yaml",
        "metrics.json",
        "a/metrics.json",
        "b/metrics.json",
        "a/gate.json",
        "b/gate.json",
        "b/lineage.json",
    )
    return {name: small.outcome(run, name) for name in "ab"} | {name: (run / name).read_text() for name in said}


@pytest.fixture(scope="module")
def two_stages(table, little):
    """Trains two stages in a folder, from the start."""
    return lambda run: pipeline.train(
        table, msgspec.structs.replace(TWO, model=str(little)), run, (), Progress(quiet=True)
    )


@pytest.fixture(scope="module")
def two_whole(two_stages, tmp_path_factory) -> dict:
    run = tmp_path_factory.mktemp("two") / "run"
    two_stages(run)
    return both(run)


def at(monkeypatch, module, name, when) -> None:
    """Kill at the call of a function that `when` picks by its arguments."""
    honest = getattr(module, name)

    def killing(*args, **named):
        if when(*args, **named):
            raise small.Killed
        return honest(*args, **named)

    monkeypatch.setattr(module, name, killing)


def writes(stage_name, file_name):
    """Picks the writing of a stage's file."""
    return lambda path, *_: (path.parent.name, path.name) == (stage_name, file_name)


PLACES = {
    "in the second stage": (session, "save", lambda job, standing, _: (job.stage.name, standing.step) == ("b", 4)),
    "before the second stage begins": (
        session,
        "save",
        lambda job, standing, _: (job.stage.name, standing.step) == ("b", 0),
    ),
    "between a last checkpoint and the result": (stage, "_finish", lambda job, _: job.stage.name == "a"),
    "between the adapters and stage.json": (files, "write_json", writes("a", "stage.json")),
    "between stage.json and the validation": (pipeline, "predict", lambda policy, *_: policy.stage == "a"),
    "between the validation and the verdict": (files, "write_json", writes("a", "gate.json")),
    "before the second stage's lineage": (files, "write_json", writes("b", "lineage.json")),
    "before the test": (final, "predict_each", lambda policy, adapters, rows, _: rows[0].split == "test"),
    "between the measuring and a stage's metrics.json": (files, "write_json", writes("b", "metrics.json")),
    "before the run's metrics.json": (files, "write_json", writes("run", "metrics.json")),
}


@pytest.mark.parametrize("place", PLACES)
def test_killed_between_two_stages(place, two_stages, two_whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as killing:
        module, name, when = PLACES[place]
        at(killing, module, name, when)
        if name == "save":  # stage has it by name
            at(killing, stage, name, when)
        with pytest.raises(small.Killed):
            two_stages(run)
    pipeline.resume(run, (), Progress(quiet=True))
    assert both(run) == two_whole


def test_a_second_stage_that_forgets_the_first_would_be_seen(two_stages, two_whole, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "put_adapters", lambda *_: None)
    with monkeypatch.context() as killing:
        at(killing, stage, *PLACES["before the second stage begins"][1:])
        with pytest.raises(small.Killed):
            two_stages(tmp_path / "run")
    pipeline.resume(tmp_path / "run", (), Progress(quiet=True))
    assert both(tmp_path / "run")["b"]["adapters"] != two_whole["b"]["adapters"]


# Whole processes, killed by the system

KILLS, STEPS, SAVE_EVERY = 25, 40, 3


@pytest.mark.slow
def test_killed_at_any_moment_the_command_goes_on(warm, table, little, tmp_path):
    length = [f"stages.sft.{a}" for a in (f"max_steps={STEPS}", "epochs=4", f"save_every={SAVE_EVERY}")]
    length.append("stages.sft.validate_every=10")
    run, rng = tmp_path / "killed", random.Random(0)
    killed, lost = 0, []
    while killed < KILLS:
        begun = (run / "config.yaml").exists()
        arguments = ["train", "--resume", run, "--json"] if begun else small.command(table, little, run, *length)
        process = warm.command(*arguments)
        done = len(events.read(run))
        enough = done + rng.choice((0, 1, 1, 3, 5))  # further on each time, whatever the machine's speed
        process.wait_for(lambda enough=enough: len(events.read(run)) >= enough)
        time.sleep(rng.uniform(0, 0.01))
        if process.poll() is not None:
            break
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.said
        killed += 1
        if (run / "sft").exists() and (found := checkpoint.newest(run / "sft", print)):
            seen = [event["step"] for event in events.read(run) if event["event"] == "step"]
            lost.append(max(seen, default=0) - found.step)
    assert killed >= KILLS // 2
    assert max(lost) <= SAVE_EVERY  # G2
    process = warm.command("train", "--resume", run, "--json")
    assert process.wait() == 0, process.said
    other = warm.command(*small.command(table, little, tmp_path / "whole", *length))
    assert other.wait() == 0, other.said
    assert small.outcome(run) == small.outcome(tmp_path / "whole")
    assert [step for step, _ in small.outcome(run)["steps"]] == list(range(1, STEPS + 1))
    for name in ("metrics.json", "sft/metrics.json", "config.yaml", "data/features.parquet"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert small.temporaries(run) == []


@pytest.mark.slow
def test_the_embedded_model_with_all_threads(table, tmp_path):
    """The program itself, as a user starts it: its own process, MKL's own number of threads, the model that comes with
    it."""
    few = ("max_steps=6", "save_every=2", "log_every=1", "batch_size=4", "accumulation=2")
    settings = [f"stages.sft.{setting}" for setting in few] + ["lora.dropout=0.1", "evaluation.max_messages=4"]
    arguments = [str(table), "--model", "tiny", "--json", *(part for change in settings for part in ("--set", change))]
    command = [sys.executable, "-m", "mlx_email", "train"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    subprocess.run([*command, *arguments, "--out", whole], check=True, capture_output=True)
    process = subprocess.Popen([*command, *arguments, "--out", run], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(events.read(run)) < 7:  # begun, 3 steps, 2 saves and one step more
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not stage.finished(run, "sft")
    subprocess.run([*command, "--json", "--resume", run], check=True, capture_output=True)
    assert small.outcome(run) == small.outcome(whole)
    assert (run / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
