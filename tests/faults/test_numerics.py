"""A number that is not finite never reaches the weights, nor a checkpoint; the same run gives the same bits."""

from types import SimpleNamespace

import mlx.core as mx
import msgspec
import numpy as np
import pytest
import small

from mlx_email import files
from mlx_email.algorithms import ALGORITHMS, Algorithm
from mlx_email.algorithms.record import Prepared
from mlx_email.cli import main
from mlx_email.errors import MlxEmailError
from mlx_email.kernels import losses
from mlx_email.model import lora
from mlx_email.train import checkpoint, events, loop, stage
from mlx_email.train.stage import train_stage

AT = 5  # the step with the number; the checkpoint before it is of step 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    return small.train(tmp_path_factory.mktemp("whole") / "run")


def poison(monkeypatch, loss, at: int = AT) -> None:
    """An SFT whose loss is also given 1 in step `at` and 0 before."""
    steps = []

    def prepare(batch, policy, settings, context):
        steps.append(len(steps) + 1)
        return Prepared([each.arrays | {"poison": mx.array(float(steps[-1] == at))} for each in batch])

    monkeypatch.setitem(ALGORITHMS, "sft", Algorithm(loss=loss, prepare=prepare))


def in_the_loss(value: float):
    def loss(logps, arrays, settings):
        honest = losses.sft(logps, arrays["completion_mask"])
        return honest._replace(total=mx.where(arrays["poison"] > 0, value, honest.total))

    return loss


def in_the_gradient(value: float):
    @mx.custom_function
    def through(logps, poison):
        return logps

    @through.vjp
    def through_vjp(primals, cotangent, output):
        return mx.where(primals[1] > 0, value, cotangent), mx.zeros_like(primals[1])

    def loss(logps, arrays, settings):
        return losses.sft(through(logps, arrays["poison"]), arrays["completion_mask"])

    return loss


def weights(job) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in lora.adapter_arrays(job.base.model).items()}


def stops(run, *, at: int = AT, **job_settings) -> str:
    """The run stops in step `at`, with the weights of the step before; gives the error."""
    before = {}

    def on_step(result, steps) -> None:
        before.clear()
        before.update(weights(job))

    job = small.job(run, on_step=on_step, **job_settings)
    before.update(weights(job))
    with pytest.raises(MlxEmailError) as said:
        train_stage(job)
    after = weights(job)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    message = str(said.value)
    assert message.startswith(f"step {at}: ") and "\n" not in message
    assert f"the weights are as after step {at - 1}" in message
    saved = 3 * ((at - 1) // 3)
    assert f"The last checkpoint is of step {saved}; to go on from it: mlx-email train --resume" in message
    assert checkpoint.newest(run / "sft", pytest.fail).step == saved
    assert all(event["step"] < at for event in events.read(run) if event["event"] == "step")
    return message


def assert_finite(run) -> None:
    for folder in small.checkpoints(run / "sft"):
        for path in folder.glob("*.safetensors"):
            assert all(mx.isfinite(array).all().item() for array in mx.load(str(path)).values()), path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [in_the_loss, in_the_gradient])
def test_in_a_step(where, value, whole, tmp_path, monkeypatch):
    run, ids = tmp_path / "run", []
    with monkeypatch.context() as poisoning:
        poison(poisoning, where(value))
        message = stops(run)
    # The messages of that step, and no others.
    plan = stage.batches.plan(small.examples(14), 2)
    steps = stage.batches.steps(small.examples(14), plan, 2, 0, start=AT - 1)
    ids = [identity for batch in next(steps) for identity in batch.ids]
    assert message.partition("the messages ")[2].partition(".")[0] == ", ".join(ids)
    assert_finite(run)
    # Were it gone (another learning rate, another mail), the run would go on from step 3.
    assert small.train(run) == whole


def test_an_unchecked_number_would_reach_the_weights(tmp_path, monkeypatch):
    """The planted fault: the loop takes everything for finite. Then the save refuses what it made."""
    poison(monkeypatch, in_the_gradient(np.nan))
    monkeypatch.setattr(loop, "math", SimpleNamespace(isfinite=lambda number: True))
    job = small.job(tmp_path / "run")
    with pytest.raises(MlxEmailError, match=r"step 6: .* holds a number that is not finite; nothing was saved"):
        train_stage(job)
    assert not all(np.isfinite(array).all() for array in weights(job).values())
    assert checkpoint.newest(tmp_path / "run/sft", pytest.fail).step == 3
    assert_finite(tmp_path / "run")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_in_the_learning_rate(value, whole, tmp_path, monkeypatch):
    honest = stage.learning_rate
    with monkeypatch.context() as poisoning:
        rate = lambda schedule, step, *rest: value if step == AT else honest(schedule, step, *rest)  # noqa: E731
        poisoning.setattr(stage, "learning_rate", rate)
        message = stops(tmp_path / "run")
    assert f"learning rate {value}" in message
    assert small.train(tmp_path / "run") == whole


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_in_one_weight_of_the_base(value, tmp_path, monkeypatch):
    honest = small.model

    def damaged(*args, **options):
        model = honest(*args, **options)
        layer = model.layers[0].mlp.up_proj
        layer.weight = mx.where(mx.arange(layer.weight.size).reshape(layer.weight.shape) == 7, value, layer.weight)
        return model

    monkeypatch.setattr(small, "model", damaged)
    stops(tmp_path / "run", at=1)
    assert_finite(tmp_path / "run")


def test_weights_that_overflow_are_not_saved(tmp_path):
    """A learning rate beyond all reason: each step is finite, what it makes is not."""
    job = small.job(tmp_path / "run", learning_rate=3e38, schedule="constant", save_every=1)
    with pytest.raises(MlxEmailError, match=r"[lL]ower the learning rate"):
        train_stage(job)
    assert_finite(tmp_path / "run")


def test_in_a_validation(tmp_path, monkeypatch):
    run = tmp_path / "run"
    honest = losses.sft

    def loss(logps, arrays, settings):
        found = honest(logps, arrays["completion_mask"])
        return found if arrays["completion_mask"].shape[2] == 5 else found._replace(total=found.total * np.nan)

    # Training batches have room for completions of 5 tokens; of these validation examples, for 3.
    monkeypatch.setitem(ALGORITHMS, "sft", Algorithm(loss=loss))
    job = small.job(run, validate_every=4)
    few = [example for example in small.examples(14, seed=4) if len(example.completions[0]) <= 3]
    job = stage.dataclasses.replace(job, held_out=few)
    with pytest.raises(MlxEmailError, match=r"step 4: the validation loss is nan") as said:
        train_stage(job)
    assert "The last checkpoint is of step 3" in str(said.value)
    assert_finite(run)


def test_in_a_metric(tmp_path, monkeypatch):
    """A metric is for people: what is not finite in it must not end a run as a defect of the program."""

    def loss(logps, arrays, settings):
        found = losses.sft(logps, arrays["completion_mask"])
        return found._replace(metrics={"entropy": (mx.array(np.nan), mx.array(1.0))})

    monkeypatch.setitem(ALGORITHMS, "sft", Algorithm(loss=loss))
    small.train(tmp_path / "run", held_out=3, validate_every=3)
    held = [event for event in events.read(tmp_path / "run") if event["event"] in ("step", "validation")]
    assert len(held) == 12
    for event in held:
        assert event.get("entropy") is None and event.get("val/entropy") is None


def test_the_command_says_it_in_one_line(table, little, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as poisoning:
        poison(poisoning, in_the_loss(np.nan))
        assert main(small.command(table, little, tmp_path / "run")) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: step 5: loss nan") and "Traceback" not in "".join(said)
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 0
    assert [step for step, _ in small.outcome(tmp_path / "run")["steps"]] == list(range(1, 10))


# The same run gives the same bits


TRAIN = (
    "import small, sys; from pathlib import Path; print(small.train(Path(sys.argv[1]), held_out=3, validate_every=4))"
)


def test_twice_in_one_process_and_in_two_others(warm, tmp_path):
    ours = [small.train(tmp_path / name, held_out=3, validate_every=4) for name in "ab"]
    assert ours[0] == ours[1]
    theirs = [warm.start(TRAIN, tmp_path / name) for name in "cd"]
    for process, name in zip(theirs, "cd", strict=True):
        assert process.wait() == 0, process.said
        assert files.sha256(tmp_path / name / "sft/adapters.safetensors") == ours[0]["adapters"]
        assert small.outcome(tmp_path / name) == ours[0]


def test_whatever_was_drawn_before(whole, tmp_path):
    """The global random state is nothing to a run."""
    mx.random.seed(99)
    np.random.seed(99)
    mx.eval(mx.random.normal((100,)))
    job = small.job(tmp_path / "run", on_step=lambda *_: mx.random.seed(5))
    train_stage(job)
    assert small.outcome(tmp_path / "run") == whole


def test_another_seed_would_be_seen(whole, tmp_path):
    settings = msgspec.structs.replace(small.SETTINGS, seed=1)
    assert small.train(tmp_path / "run", settings=settings)["adapters"] != whole["adapters"]
