"""The reference's log-probabilities: computed once, never half, never moving, whatever kills the process."""

import shutil
import signal

import numpy as np
import pytest
import small
from safetensors import SafetensorError

from mlx_email import files, sealed
from mlx_email.algorithms import ALGORITHMS
from mlx_email.errors import MlxEmailError
from mlx_email.model.batch import collate
from mlx_email.train import batches, checkpoint, reference
from mlx_email.train.stage import train_stage

PAIRS = {"branches": 2, "held_out": 3, "max_steps": 6, "save_every": 2, "validate_every": 3}
PARTS = ("train-000000", "train-000004", "train-000008", "train-000012", "validation-000000")


@pytest.fixture(autouse=True)
def preference(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "sft", small.PREFERENCE)
    monkeypatch.setattr(reference, "PART", 4)


@pytest.fixture
def calls(monkeypatch) -> list:
    """How many examples each pass of the reference had."""
    seen, honest = [], reference.completion_logps

    def counting(model, prompts, *rest, **named):
        seen.append(len(prompts))
        return honest(model, prompts, *rest, **named)

    monkeypatch.setattr(reference, "completion_logps", counting)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: its folder, and what it gives."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALGORITHMS, "sft", small.PREFERENCE)
        patch.setattr(reference, "PART", 4)
        return run, small.train(run, **PAIRS)


def rows(run, part: str) -> np.ndarray:
    return reference.load_file(run / "sft/reference" / part / reference.LOGPS)["logps"]


def test_the_first_loss_is_that_of_an_untrained_policy(whole):
    run, outcome = whole
    assert {path.name for path in (run / "sft/reference").iterdir()} == set(PARTS)
    (step, loss), *_ = outcome["steps"]
    assert step == 1
    # The policy is the reference, but for the dropout in its fresh adapters, whose product is zero.
    assert loss == pytest.approx(np.log(2), abs=1e-5)


def test_a_resume_computes_nothing_again(whole, calls, tmp_path):
    _, outcome = whole
    small.train_until(tmp_path / "run", 5, **PAIRS)
    assert sum(calls) == 14 + 3
    calls.clear()
    assert small.train(tmp_path / "run", **PAIRS) == outcome
    assert calls == []


def test_the_reference_does_not_move(whole, tmp_path):
    """Computed again after training has gone on, the numbers are the same: they are of step 0."""
    run, outcome = whole
    copy = tmp_path / "run"
    small.train_until(copy, 5, **PAIRS)
    shutil.rmtree(copy / "sft/reference")
    assert small.train(copy, **PAIRS) == outcome
    assert small.contents(copy / "sft/reference") == small.contents(run / "sft/reference")


def test_a_reference_that_moves_would_be_seen(whole, tmp_path, monkeypatch):
    """The planted fault: the numbers of the newest adapters instead of those of step 0."""
    _, outcome = whole
    small.train_until(tmp_path / "run", 5, **PAIRS)
    shutil.rmtree(tmp_path / "run/sft/reference")
    honest = checkpoint.verified
    monkeypatch.setattr(reference.checkpoint, "verified", lambda stage, step: honest(stage, 4 if step == 0 else step))
    assert small.train(tmp_path / "run", **PAIRS)["adapters"] != outcome["adapters"]


@pytest.mark.parametrize("pass_", range(1, 10, 2))
def test_killed_while_it_computes(pass_, whole, calls, tmp_path, monkeypatch):
    run, outcome = whole
    copy, honest = tmp_path / "run", reference.completion_logps

    def killing(*args, **named):
        if len(calls) == pass_ - 1:
            raise small.Killed
        return honest(*args, **named)

    with monkeypatch.context() as kill:
        kill.setattr(reference, "completion_logps", killing)
        with pytest.raises(small.Killed):
            train_stage(small.job(copy, **PAIRS))
    there = {path.name for path in (copy / "sft/reference").glob("*")}
    assert there == set(PARTS[: len(there)])
    assert small.contents(copy / "sft/reference").items() <= small.contents(run / "sft/reference").items()
    computed, known = sum(calls), min(4 * len(there), 14)
    assert computed - known < 4  # a kill costs one part
    calls.clear()
    assert small.train(copy, **PAIRS) == outcome
    assert sum(calls) == 14 + 3 - known
    assert small.contents(copy / "sft/reference") == small.contents(run / "sft/reference")


def test_what_was_not_computed_is_no_number(whole):
    run, _ = whole
    examples = small.examples(14, branches=2)
    plan = batches.plan(examples, small.STAGE.batch_size)
    taken = batches.used(plan, small.STAGE.accumulation, small.SETTINGS.seed, 9)
    for start, part in zip(range(0, 14, 4), PARTS, strict=False):
        held = rows(run, part)
        for row, index in zip(
            held, sorted(taken[start : start + 4], key=lambda n: len(examples[n].prompt)), strict=True
        ):
            for logps, ids in zip(row, examples[index].completions, strict=True):
                assert np.isfinite(logps[: len(ids)]).all() and (logps[: len(ids)] < 0).all()
                assert np.isnan(logps[len(ids) :]).all()


def test_a_row_that_was_not_computed_would_stop_the_run(whole, tmp_path):
    """Were NaN to come through nevertheless, the loss would not be finite, and nothing would be learned from it."""
    run = tmp_path / "run"
    small.train_until(run, 1, **PAIRS)
    folder = run / "sft/reference/train-000000"
    said = sealed.verify(folder)
    held = rows(run, "train-000000")
    held[:] = np.nan
    reference.save_file({"logps": held}, folder / reference.LOGPS)
    sealed.seal(folder, examples=said["examples"])
    with pytest.raises(MlxEmailError, match="loss nan"):
        train_stage(small.job(run, **PAIRS))


@pytest.mark.parametrize(
    ("name", "damage"),
    [(reference.LOGPS, "flip"), (reference.LOGPS, "empty"), (sealed.MANIFEST, "cut"), (sealed.MANIFEST, "gone")],
)
def test_a_damaged_part_is_computed_again(name, damage, whole, calls, tmp_path):
    run, outcome = whole
    copy = tmp_path / "run"
    small.train_until(copy, 3, **PAIRS)
    calls.clear()
    file = copy / "sft/reference" / PARTS[1] / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) * 2 // 3] ^= 4
    file.write_bytes({"flip": bytes(data), "cut": bytes(data[:-2]), "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        file.unlink()
    assert small.train(copy, **PAIRS) == outcome
    assert sum(calls) == 4
    assert small.contents(copy / "sft/reference") == small.contents(run / "sft/reference")


def test_a_part_of_other_examples_is_computed_again(whole, calls, tmp_path):
    _, outcome = whole
    copy = tmp_path / "run"
    small.train_until(copy, 3, **PAIRS)
    calls.clear()
    folder = copy / "sft/reference"
    (folder / PARTS[0]).rename(folder / "held")
    (folder / PARTS[1]).rename(folder / PARTS[0])
    (folder / "held").rename(folder / PARTS[1])
    assert small.train(copy, **PAIRS) == outcome
    assert sum(calls) == 8


def test_a_damaged_beginning_is_named(tmp_path):
    """Without step 0 there is no reference: going on would compare with something else."""
    run = tmp_path / "run"
    small.train_until(run, 3, **PAIRS)
    (run / "sft/step-000000/adapters.safetensors").write_bytes(b"")
    with pytest.raises(MlxEmailError, match=r"step-000000/adapters.safetensors is damaged") as said:
        train_stage(small.job(run, **PAIRS))
    assert said.value.exit_code == 1
    assert checkpoint.newest(run / "sft", pytest.fail).step == 2


def test_examples_and_their_numbers_stay_together(whole):
    """Beside each completion stand its own log-probabilities, as the model gives them."""
    job = small.job(whole[0], **PAIRS)
    given = reference.with_reference(job.folder, "train", job.base.model, job.examples, job.stage.batch_size)
    assert [example.id for example in given] == [example.id for example in job.examples]
    checkpoint.put_adapters(checkpoint.verified(job.folder, 0).folder / "adapters.safetensors", job.base.model)
    for example in given:
        (arrays,) = [collate([example], 1, len(example.prompt), 5).arrays]
        again = reference.completion_logps(
            job.base.model, *(arrays[name] for name in ("prompts", "prompt_lengths", "completions", "completion_mask"))
        )
        for branch, logps in enumerate(example.reference):
            np.testing.assert_allclose(np.array(again)[0, branch, : len(logps)], logps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("broken", "error"), [("save_file", SafetensorError), ("fsync", OSError)])
def test_a_full_disk(broken, error, whole, tmp_path, monkeypatch):
    _, outcome = whole
    run = tmp_path / "run"

    def full(*args):
        raise error(28, "No space left on device")

    with monkeypatch.context() as filling:
        if broken == "save_file":
            filling.setattr(reference, "save_file", full)
        else:
            honest = files.fsync
            filling.setattr(files, "fsync", lambda path: full() if "train-0" in str(path) else honest(path))
        with pytest.raises(MlxEmailError, match="No space left") as said:
            train_stage(small.job(run, **PAIRS))
    assert "train-000000" in str(said.value) and said.value.exit_code == 1
    assert list((run / "sft/reference").iterdir()) == []
    assert small.train(run, **PAIRS) == outcome


LIMITED = """
import resource, sys
from pathlib import Path
import small
from mlx_email.algorithms import ALGORITHMS
from mlx_email.errors import MlxEmailError
from mlx_email.train import checkpoint, reference
ALGORITHMS["sft"] = small.PREFERENCE
job = small.job(Path(sys.argv[1]), branches=2)
honest = reference._computed
def computed(*args):
    rows = honest(*args)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    return rows
reference._computed = computed
try:
    small.train_stage(job)
except MlxEmailError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
"""


def test_a_write_that_the_system_refuses(warm, tmp_path):
    process = warm.run(LIMITED, tmp_path / "run")
    assert process.wait() == 0, process.said
    assert "cannot write" in process.said and "train-000000" in process.said
    assert list((tmp_path / "run/sft/reference").iterdir()) == []


KILL = """
import os, signal, sys
from pathlib import Path
import small
from mlx_email.algorithms import ALGORITHMS
from mlx_email.train import reference
ALGORITHMS["sft"], reference.PART = small.PREFERENCE, 4
job = small.job(Path(sys.argv[1]), **eval(sys.argv[3]))
seen = 0
def count(where):
    global seen
    seen += 1
    if seen == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
honest = reference._part
def part(*args):
    if not seen:
        small.watch(setattr, count)
    return honest(*args)
reference._part = part
small.train_stage(job)
"""


@pytest.mark.slow
def test_killed_at_each_operation_of_publishing(warm, whole, tmp_path):
    run, outcome = whole
    for at in range(1, 60, 4):
        copy = tmp_path / f"{at}"
        assert warm.run(KILL, copy, at, PAIRS).wait() == -signal.SIGKILL
        assert small.train(copy, **PAIRS) == outcome
        assert small.contents(copy / "sft/reference") == small.contents(run / "sft/reference")
        assert small.temporaries(copy) == []
