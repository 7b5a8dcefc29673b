"""Temporal RLHF: a window a step, the policy's own predictions, preferences by what came later."""

import dataclasses
import itertools
from datetime import UTC, datetime

import mlx.core as mx
import numpy as np
import pytest
import small

from mlx_email import config
from mlx_email.algorithms import Context, temporal
from mlx_email.config import Temporal
from mlx_email.kernels import losses
from mlx_email.labels.examples.feedback import Feedback
from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.model import lora
from mlx_email.model.frozen import Frozen
from mlx_email.train import batches, events
from mlx_email.train.stage import train_stage

STAGE = Temporal(
    batch_size=2, learning_rate=0.05, schedule="constant", warmup=0.0, log_every=1, save_every=2, validate_every=None
)
SETTINGS = config.Config(
    lora=config.Lora(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "down_proj")), stages=(STAGE,), compile=False
)
START = datetime(2026, 1, 5, tzinfo=UTC)
WINDOWS = (3, 1, 4, 2)  # messages of each


def found(number: int) -> Feedback:
    row = Row(message_id=f"{number}", user="ann", date=START, sender="bob@y.org")
    score = (1.0, 0.7, 0.2, 0.8, 0.4)[number % 5]
    return Feedback(row, ACTIONS[number % 3], score, frozenset({"delete"}) if number == 4 else frozenset())


def job(run, windows=WINDOWS, **stage):
    made = small.job(run, settings=SETTINGS, train_on=sum(WINDOWS), held_out=5, branches=5, **stage)
    turns = [turn for turn, count in enumerate(windows) for _ in range(count)]
    examples = [
        dataclasses.replace(made.examples[n % sum(WINDOWS)], about=found(n % sum(WINDOWS)), turn=turn)
        for n, turn in enumerate(turns)
    ]
    held_out = [dataclasses.replace(each, about=found(n)) for n, each in enumerate(made.held_out)]
    return dataclasses.replace(made, examples=examples, held_out=held_out)


# Which action is preferred


@pytest.mark.parametrize(
    ("seen", "score", "predicted", "preferred"),
    [
        ("archive", 0.8, "archive", True),  # right, and it turned out well
        ("archive", 0.2, "archive", False),  # right, and somebody had to ask again
        ("archive", 0.2, "delete", True),  # it would not have been worse than what was done
        ("archive", 0.8, "delete", False),
        ("reply_now", 0.5, "reply_now", True),  # at the border
        ("reply_now", 1.0, "forward", False),
    ],
)
def test_the_prediction_is_preferred_where_it_did_well(seen, score, predicted, preferred):
    order = [ACTIONS.index(predicted), *(i for i, action in enumerate(ACTIONS) if action != predicted)]
    row = Row(message_id="1", user="ann", date=START, sender="bob@y.org")
    best, other = order[:2]
    expected = (best, other) if preferred else (other, best)
    assert temporal.pair(Feedback(row, seen, score), np.array(order)) == expected
    assert temporal.pair(Feedback(row, seen, score, frozenset({predicted})), np.array(order)) is None


def test_a_step_prefers_by_the_policy_as_it_is(tmp_path):
    made = job(tmp_path / "run")
    model = made.base.model
    reference = Frozen.of(model)
    Frozen({name: array + 0.05 for name, array in lora.adapter_arrays(model).items()}).put_on(model)
    plan = batches.plan(made.examples, STAGE.batch_size)
    for batch in itertools.islice(batches.steps(made.examples, plan, 1, 0), len(WINDOWS)):
        done = temporal.prepare(batch, model, STAGE, Context(step=1, reference=reference))
        columns, scores, right, pairs = iter(done.columns), [], [], 0
        for each in batch:
            likely = np.array(Frozen.of(model).logps(model, each.arrays).sum(axis=-1))
            expected = [temporal.pair(e.about, np.argsort(-row)) for e, row in zip(each.examples, likely, strict=False)]
            said = [ACTIONS[row.argmax()] for row in likely[: len(each.examples)]]
            scores += [e.about.of(action) for e, action in zip(each.examples, said, strict=True)]
            right += [e.about.seen == action for e, action in zip(each.examples, said, strict=True)]
            pairs += sum(both is not None for both in expected)
            if not any(expected):
                continue
            arrays = next(columns)
            assert mx.array_equal(arrays["prompts"], each.arrays["prompts"]).item()
            for row, both in enumerate(expected):
                mask = np.array(arrays["completion_mask"][row])
                assert bool(mask.any()) == (both is not None)
                for side, action in enumerate(both or ()):
                    ids = np.array(arrays["completions"][row, side])[mask[side] > 0]
                    assert ids.tolist() == each.examples[row].completions[action].tolist()
            assert not np.array(arrays["completion_mask"][len(expected) :]).any()
            np.testing.assert_array_equal(arrays["ref_logps"], reference.logps(model, arrays))
        assert next(columns, None) is None
        wanted = {"score": np.mean(scores), "agreement": np.mean(right), "pairs": pairs}
        assert done.metrics == pytest.approx(wanted)


def test_the_loss_is_that_of_dpo():
    rng = np.random.default_rng(0)
    policy, reference = (mx.array(-rng.random((3, 2, 4)).astype(np.float32)) for _ in range(2))
    mask = mx.array((rng.random((3, 2, 4)) < 0.7).astype(np.float32))
    mask[2] = 0.0
    made = temporal.loss(policy, {"ref_logps": reference, "completion_mask": mask}, Temporal(beta=0.3))
    ratio = (np.array(policy - reference) * np.array(mask)).sum(-1)
    expected = np.log1p(np.exp(-0.3 * (ratio[:, 0] - ratio[:, 1])))[:2].sum()
    assert made.total.item() == pytest.approx(expected, rel=1e-5) and made.count.item() == 2
    other = losses.dpo(policy[:, 1], policy[:, 0], reference[:, 1], reference[:, 0], mask[:, 1], mask[:, 0], beta=0.3)
    assert other.total.item() != pytest.approx(expected, rel=1e-3)  # the sides exchanged


# A window a step


def test_a_step_is_a_window_in_the_order_of_time(tmp_path):
    made = job(tmp_path / "run")
    plan = batches.plan(made.examples, 2)
    assert batches.steps_per_epoch(plan, 1) == len(WINDOWS)
    taken = list(itertools.islice(batches.steps(made.examples, plan, 1, 0), 2 * len(WINDOWS)))
    turns = [{example.turn for batch in step for example in batch.examples} for step in taken]
    assert turns == [{0}, {1}, {2}, {3}] * 2  # two epochs
    for step, count in zip(taken, WINDOWS * 2, strict=True):
        assert len({identity for batch in step for identity in batch.ids}) == count
    later = next(batches.steps(made.examples, plan, 1, 0, start=6))
    assert [batch.ids for batch in later] == [batch.ids for batch in taken[6]]
    assert sorted(batches.used(plan, 1, 0, 2)) == [0, 1, 2, 3]


@pytest.mark.slow
def test_the_stage_learns_what_did_well(tmp_path):
    made = job(tmp_path / "run", WINDOWS * 24, validate_every=96)
    whole = list(batches.once(made.examples, batches.plan(made.examples, 2)))
    before = temporal.measure(whole, made.base.model, STAGE, Context())
    train_stage(made)
    after = temporal.measure(whole, made.base.model, STAGE, Context())
    assert after["expected"] > before["expected"] + 0.02 and after["loss"] == -after["expected"]
    said = [event for event in events.read(tmp_path / "run") if event["event"] == "step"]
    assert len(said) == 96 and {"score", "agreement", "pairs"} <= said[0].keys()
    (validation,) = [event for event in events.read(tmp_path / "run") if event["event"] == "validation"]
    assert {"val/expected", "val/score", "val/agreement"} <= validation.keys()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_killed_in_a_window_the_stage_ends_the_same(step, tmp_path):
    def trained(run):
        train_stage(job(run))
        return small.outcome(run, "temporal")

    whole = trained(tmp_path / "whole")

    def kill(result, _):
        if result.step == step:
            raise small.Killed

    with pytest.raises(small.Killed):
        train_stage(dataclasses.replace(job(tmp_path / "cut"), on_step=kill))
    assert trained(tmp_path / "cut") == whole
    assert len(whole["steps"]) == len(WINDOWS)


def test_a_window_is_one_step_and_comes_once():
    with pytest.raises(ValueError, match="a window is a step"):
        Temporal(accumulation=2)
    with pytest.raises(ValueError, match="time passes once"):
        Temporal(epochs=2)


def test_a_window_is_cut_by_length_into_as_few_micro_batches_as_it_takes(tmp_path):
    made = job(tmp_path / "run")
    plan = batches.plan(made.examples, 2)
    for turn, count in zip(plan.turns, WINDOWS, strict=True):
        assert len(turn) == -(-count // 2)
        for bucket, indices in turn:
            lengths = [len(made.examples[index].prompt) for index in indices]
            assert max(lengths) <= plan.widths[bucket][0]
    used = {bucket for turn in plan.turns for bucket, _ in turn}
    assert len({plan.widths[bucket] for bucket in used}) <= batches.MAX_SHAPES
