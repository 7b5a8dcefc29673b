"""GRPO in the loop: what a rollout is, that its gradient is REINFORCE's, that a kill in the middle changes nothing."""

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import sampled
import small
from mlx.utils import tree_flatten

from mlx_email import files
from mlx_email.algorithms import ENUMERATED, grpo
from mlx_email.algorithms.actions import measure
from mlx_email.errors import MlxEmailError, UserError
from mlx_email.labels.schema import ACTIONS
from mlx_email.model import lora
from mlx_email.model.frozen import Frozen
from mlx_email.rewards.sample import done
from mlx_email.train import batches, events, loop, session
from mlx_email.train.stage import train_stage


def steps(run, kind="step") -> list[dict]:
    return [event for event in events.read(run) if event["event"] == kind]


def moved(job):
    """Adapters that do something; the reference: other ones."""
    model = job.base.model
    Frozen({name: array + 0.05 for name, array in lora.adapter_arrays(model).items()}).put_on(model)
    return Frozen({name: 0.5 * array for name, array in lora.adapter_arrays(model).items()})


def prepared(job, reference=None, **judge):
    stage = job.stage
    plan = batches.plan(job.examples, stage.batch_size)
    batch = next(batches.steps(job.examples, plan, stage.accumulation, 0))
    context = dataclasses.replace(job.context, step=1, seed=5, reference=reference)
    return batch, job.algorithm.prepare(batch, job.base.model, stage, context)


# What a rollout is


def test_a_rollout_has_a_group_for_every_prompt(tmp_path):
    job = sampled.job(tmp_path / "run", group_size=3, beta=0.0)
    batch, made = prepared(job)
    assert len(made.judged) == 3 * 4 and len(made.columns) == 2
    rewards = np.array([each.reward for each in made.judged]).reshape(4, 3)
    np.testing.assert_allclose(
        np.concatenate([np.array(arrays["advantages"]) for arrays in made.columns]),
        (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4),
        rtol=1e-4,
        atol=1e-5,
    )
    prompts = [each.sample.prompt.tolist() for each in made.judged]
    assert prompts == [example.prompt.tolist() for each in batch for example in each.examples for _ in range(3)]
    for arrays, each in zip(made.columns, batch, strict=True):
        assert mx.array_equal(arrays["prompts"], each.arrays["prompts"]).item()
    tokens = [row[mask > 0].tolist() for arrays in made.columns for row, mask in rows_of(arrays)]
    assert tokens == [each.sample.tokens.tolist() for each in made.judged]
    assert made.metrics["reward"] == pytest.approx(rewards.mean())
    assert made.metrics["reward/low"] == pytest.approx(rewards.mean())
    assert made.metrics["rollout/kept"] == 1 and made.metrics["rollout/truncated"] == 1
    assert 0 < made.metrics["rollout/entropy"] <= np.log(sampled.WORDS)


def rows_of(arrays):
    shape = arrays["completions"].shape
    flat = (np.array(arrays[name]).reshape(-1, shape[-1]) for name in ("completions", "completion_mask"))
    return zip(*flat, strict=True)


def test_sampled_log_probabilities_are_those_of_the_loss(tmp_path):
    """The gap that is logged is rounding; a sampler that forgot the adapters would have another one."""
    job = sampled.job(tmp_path / "run", updates=2, max_steps=2)
    moved(job)
    _, made = prepared(job, reference=Frozen.of(job.base.model))
    for arrays in made.columns:
        np.testing.assert_allclose(arrays["sampler_logps"], arrays["old_logps"], atol=2e-5)
        metrics = grpo.loss(arrays["old_logps"], arrays, job.stage).metrics
        assert metrics["gap"][0].item() / metrics["gap"][1].item() < 1e-5
        away = {**arrays, "sampler_logps": arrays["sampler_logps"] - 0.01}
        metrics = grpo.loss(arrays["old_logps"], away, job.stage).metrics
        assert metrics["gap"][0].item() / metrics["gap"][1].item() == pytest.approx(0.01, rel=0.01)


def test_groups_worth_the_same_are_left_out(tmp_path):
    """Of all others the gradient is what it is without them; a step of nothing else changes nothing."""

    def judge(samples):
        values = sampled.low(samples)
        return [0.3 if len(sample.prompt) % 2 else value for sample, value in zip(samples, values, strict=True)]

    job = sampled.job(tmp_path / "run", judge=judge, group_size=3, beta=0.1, batch_size=4, accumulation=1)
    batch, made = prepared(job, reference=moved(job))
    useful = [len(example.prompt) % 2 == 0 for example in batch[0].examples]
    assert 0 < sum(useful) < 4
    (arrays,) = made.columns
    assert (np.array(arrays["completion_mask"]).any(axis=(1, 2)) == useful).all()
    assert made.metrics["rollout/kept"] == sum(useful) / 4 and made.metrics["rollout/dropped"] == 4 - sum(useful)
    kept = {name: array[mx.array(np.flatnonzero(useful))] for name, array in arrays.items()}
    for whole, part in zip(gradient(job, arrays), gradient(job, kept), strict=True):
        np.testing.assert_allclose(whole, part, atol=1e-5)

    nothing = sampled.job(tmp_path / "nothing", judge=lambda samples: [0.5] * len(samples))
    train_stage(nothing)
    began, ended = (
        small.files.sha256(nothing.folder / name / lora.ADAPTERS) for name in ("step-000000", "step-000006")
    )
    assert began == ended and {step["rollout/dropped"] for step in steps(nothing.run)} == {4}


def gradient(job, arrays) -> list[np.ndarray]:
    model = job.base.model

    def value():
        total, count, _ = grpo.loss(job.algorithm.forward(model, arrays, True), arrays, job.stage)
        return total / count

    _, found = nn.value_and_grad(model, value)()
    return [np.array(array) for _, array in sorted(tree_flatten(found))]


def test_truncated_completions_can_be_left_out(tmp_path):
    for masked in (False, True):
        job = sampled.job(tmp_path / f"{masked}", mask_truncated=masked)
        _, made = prepared(job, reference=Frozen.of(job.base.model))
        assert any(np.array(arrays["completion_mask"]).any() for arrays in made.columns) is not masked


def test_the_same_seed_gives_the_same_rollout_and_another_one_another(tmp_path):
    job = sampled.job(tmp_path / "run", beta=0.0)
    first, again = (prepared(job)[1].judged for _ in range(2))
    assert [each.sample.tokens.tolist() for each in first] == [each.sample.tokens.tolist() for each in again]
    assert len({each.sample.tokens.tobytes() for each in first}) > len(first) // 2


# Its gradient


def reinforce(job, batch, judged, advantages) -> list[np.ndarray]:
    """-sum over completions of A / length * log-probability, over their number: by the model itself, one at a time."""
    model = job.base.model
    model.train()

    def value():
        total = mx.array(0.0)
        for each, advantage in zip(judged, advantages, strict=True):
            prompt, tokens = each.sample.prompt, each.sample.tokens
            ids = mx.array(np.concatenate([prompt, tokens]))[None]
            logps = nn.log_softmax(model(ids[:, :-1])[0, len(prompt) - 1 :], axis=-1)
            total = total - advantage * mx.take_along_axis(logps, mx.array(tokens)[:, None], axis=-1).mean()
        return total / len(judged)

    _, found = nn.value_and_grad(model, value)()
    return [np.array(array) for _, array in sorted(tree_flatten(found))]


@pytest.mark.parametrize("settings", [{}, {"advantages": "none"}, {"advantages": "rloo"}])
def test_of_the_current_policy_s_samples_it_is_reinforce(settings, tmp_path):
    """No KL, and the first update after the rollout: every ratio is 1 and nothing is clipped."""
    job = sampled.job(tmp_path / "run", beta=0.0, group_size=4, batch_size=4, accumulation=1, **settings)
    moved(job)
    batch, made = prepared(job)
    (arrays,) = made.columns
    ours = gradient(job, arrays)
    advantages = np.array(arrays["advantages"]).reshape(-1).tolist()
    theirs = reinforce(job, batch, made.judged, advantages)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert max(np.abs(a).max() for a in ours) > 1e-3
    wrong = reinforce(job, batch, made.judged, [value + 0.05 for value in advantages])
    assert max(np.abs(a - b).max() for a, b in zip(ours, wrong, strict=True)) > 1e-4


def test_later_updates_have_a_true_ratio(tmp_path):
    train_stage(sampled.job(tmp_path / "run", updates=3, max_steps=6, beta=0.0, learning_rate=0.1))
    ratios = [step["kl/old"] for step in steps(tmp_path / "run")]
    assert max(ratios[0], ratios[3]) < 1e-9 < min(ratios[1], ratios[2], ratios[4], ratios[5])
    assert all("rollout/kept" in step for step in steps(tmp_path / "run"))


def test_the_kl_is_to_the_policy_that_the_stage_began_with(tmp_path):
    job = sampled.job(tmp_path / "run", beta=0.1, learning_rate=0.1)
    train_stage(job)
    distances = [step["kl/ref"] for step in steps(job.run)]
    assert abs(distances[0]) < 1e-9 and distances[-1] > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rollout", ["sample", "enumerate"])
def test_it_learns_what_it_is_rewarded_for(rollout, tmp_path):
    def worth(samples):
        if rollout == "sample":
            return sampled.low(samples)
        return [float(sample.said.action == sample.done) for sample in samples]

    sampling = {"max_tokens": 8, "top_k": 4, "learning_rate": 0.05}
    chosen = sampling if rollout == "sample" else {"learning_rate": 0.1}
    steady = {"max_steps": 30, "epochs": 30, "schedule": "constant", "beta": 0.0}
    job = sampled.job(tmp_path / "run", judge=worth, rollout=rollout, **steady, **chosen)
    train_stage(job)
    rewards = [step["reward"] for step in steps(job.run)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1


CHANGES = [
    {"group_size": 6},
    {"temperature": 0.3},
    {"top_p": 0.2},
    {"top_k": 5},
    {"min_p": 0.5},
    {"max_tokens": 3},
    {"beta": 0.5},
    {"beta": 0.0},
    {"updates": 3},
    {"loss_type": "dr_grpo"},
    {"loss_type": "dapo"},
    {"loss_type": "cispo"},
    {"loss_type": "sapo"},
    {"loss_type": "luspo"},
    {"importance_sampling_level": "sequence"},
    {"advantages": "batch"},
    {"advantages": "none"},
    {"advantages": "rloo"},
    {"epsilon_low": 0.0001},
    {"epsilon_high": 0.0001},
    {"delta": 1.0001, "updates": 3},
    {"loss_type": "sapo", "sapo_temperature_pos": 3.0},
    {"loss_type": "sapo", "sapo_temperature_neg": 3.0},
]


@pytest.mark.slow
def test_each_setting_matters(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo, "is_over", lambda renderer, tokens: tokens[-1] % 3 == 0)  # of different lengths
    learned = {}
    for change in [{}, *CHANGES]:
        run = tmp_path / str(len(learned))
        train_stage(sampled.job(run, **{"updates": 2, "group_size": 4, "learning_rate": 0.1, **change}))
        learned[str(change)] = files.sha256(run / "grpo/adapters.safetensors")
    assert len(set(learned.values())) == len(learned)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"advantages": "group"}, {"kl": "k3"}, {"epsilon_high": 0.001}, {"beta": 0.0}])
def test_each_setting_of_the_enumeration_matters(change, tmp_path):
    def right(samples):
        return [float(sample.said.action == sample.done) for sample in samples]

    learned = []
    for run, changes in ((tmp_path / "a", {}), (tmp_path / "b", change)):
        train_stage(sampled.job(run, judge=right, rollout="enumerate", updates=2, learning_rate=0.1, **changes))
        learned.append(files.sha256(run / "grpo/adapters.safetensors"))
    assert learned[0] != learned[1]


# The closed set


def test_the_enumeration_has_the_rewards_of_the_canonical_answers(tmp_path):
    seen = []

    def judge(samples):
        seen.extend(samples)
        return [ACTIONS.index(sample.said.action) / 10 for sample in samples]

    job = sampled.job(tmp_path / "run", judge=judge, rollout="enumerate", updates=2)
    _, made = prepared(job)
    for arrays in made.columns:
        np.testing.assert_allclose(arrays["rewards"], [[0, 0.1, 0.2, 0.3, 0.4]] * 2, atol=1e-6)
        assert arrays["old_logps"].shape == arrays["completions"].shape
    assert all(sample.said.well_formed and sample.ended for sample in seen) and len(seen) == 20
    prepared(job)
    assert len(seen) == 20  # a message is judged once


def test_rows_of_padding_have_no_reward(tmp_path):
    job = sampled.job(tmp_path / "run", rollout="enumerate", batch_size=5, accumulation=1)
    batch, made = prepared(job)
    (arrays,) = made.columns
    real = np.array(arrays["completion_mask"]).any(axis=(1, 2))
    loss = ENUMERATED.loss(
        ENUMERATED.forward(job.base.model, arrays, False), {**arrays, "ref_logps": arrays["completion_mask"]}, job.stage
    )
    assert loss.count.item() == real.sum() == len(batch[0].examples)


def test_validation_is_over_the_five_actions(tmp_path):
    def judge(samples):
        return [float(sample.said.action == sample.done) for sample in samples]

    job = sampled.job(tmp_path / "run", judge=judge)
    plan = batches.plan(job.held_out, 3)
    whole = list(batches.once(job.held_out, plan))
    found = measure(whole, job.base.model, job.stage, job.context)
    rows = {each.id: each.about.row for each in job.held_out}
    likely, right = [], []
    for batch in whole:
        for each in batch.examples:
            scores = []
            for line in each.completions:
                ids = mx.array(np.concatenate([each.prompt, line]))[None]
                logps = nn.log_softmax(job.base.model(ids[:, :-1])[0, len(each.prompt) - 1 :], axis=-1)
                scores.append(mx.take_along_axis(logps, mx.array(line)[:, None], axis=-1).sum().item())
            weights = np.exp(np.array(scores) - max(scores))
            owners = ACTIONS.index(done(rows[each.id]))
            likely.append(weights[owners] / weights.sum())
            right.append(int(np.argmax(scores)) == owners)
    assert found["reward"] == pytest.approx(np.mean(likely), rel=1e-4) == -found["loss"]
    assert found["accuracy"] == np.mean(right)


def test_the_stage_stops_above_an_accuracy(tmp_path):
    said = []
    job = sampled.job(tmp_path / "run", validate_every=2, stop_accuracy=0.0)
    found = {"loss": -1.0, "accuracy": 0.25, "reward": 1.0}
    algorithm = dataclasses.replace(job.algorithm, measure=lambda *_: found)
    stopping = dataclasses.replace(job, note=said.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "algorithm_of", lambda stage: algorithm)
        record = train_stage(stopping)
    assert (record["steps"], record["reached"], record["planned_steps"]) == (2, True, 6)
    assert "grpo: accuracy 0.250 of the validation at step 2" in said
    again = train_stage(stopping)  # what has stopped stays so
    assert again["steps"] == 2


# Kills


SETTINGS = {"updates": 2, "group_size": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    run = tmp_path_factory.mktemp("grpo") / "run"
    train_stage(sampled.job(run, **SETTINGS))
    return small.outcome(run, "grpo")


def killed(run, step: int) -> None:
    """Right after the update of a step."""

    def kill(result, steps):
        if result.step == step:
            raise small.Killed

    with pytest.raises(small.Killed):
        train_stage(dataclasses.replace(sampled.job(run, **SETTINGS), on_step=kill))


@pytest.mark.parametrize("step", [1, 3, 6])
def test_killed_after_any_step(step, whole, tmp_path):
    killed(tmp_path / "run", step)
    train_stage(sampled.job(tmp_path / "run", **SETTINGS))
    assert small.outcome(tmp_path / "run", "grpo") == whole


def test_killed_while_it_samples(whole, tmp_path):
    tokens = []

    def kill(more):
        tokens.append(more)
        if len(tokens) == 13:  # in the third rollout of five tokens each
            raise small.Killed

    with pytest.raises(small.Killed):
        train_stage(sampled.job(tmp_path / "run", rolling=kill, **SETTINGS))
    train_stage(sampled.job(tmp_path / "run", **SETTINGS))
    assert small.outcome(tmp_path / "run", "grpo") == whole


def test_a_checkpoint_within_a_rollout_would_be_seen(tmp_path, monkeypatch):
    with monkeypatch.context() as anywhere:
        anywhere.setattr(session.Session, "may_stop", True)
        anywhere.setattr(session.Session, "save_is_due", True)
        killed(tmp_path / "run", 4)
        checkpoints = small.checkpoints(tmp_path / "run/grpo")
        assert checkpoints[-1].name == "step-000003"
    with pytest.raises(MlxEmailError, match="step-000005"):  # the rollout of steps 3 and 4 is lost; 5 never ends one
        train_stage(sampled.job(tmp_path / "run", **SETTINGS))


def test_rollouts_that_count_from_the_session_would_be_seen(whole, tmp_path, monkeypatch):
    killed(tmp_path / "run", 4)
    honest = loop.derived_seed
    monkeypatch.setattr(loop, "derived_seed", lambda seed, step, *rest: honest(seed, step - 2, *rest))
    train_stage(sampled.job(tmp_path / "run", **SETTINGS))
    assert small.outcome(tmp_path / "run", "grpo")["adapters"] != whole["adapters"]


def test_an_interrupt_lets_the_rollout_end(whole, tmp_path, monkeypatch):
    job = sampled.job(tmp_path / "run", **SETTINGS)
    stopping = {"on_step": lambda result, steps: result.step == 3 and small.os.kill(small.os.getpid(), 2)}
    with pytest.raises(KeyboardInterrupt, match="saved at step 4 of 6"):
        train_stage(dataclasses.replace(job, **stopping))
    train_stage(sampled.job(tmp_path / "run", **SETTINGS))
    assert small.outcome(tmp_path / "run", "grpo") == whole


# Bad input


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (lambda samples: [np.nan] * len(samples), "the reward function low gave nan for the message '0-"),
        (lambda samples: [1.0], "the reward function low gave 1 numbers for"),
        (lambda samples: 1 / 0, "the reward function low failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_reward_function_that_fails_is_named(judge, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train_stage(sampled.job(tmp_path / "run", judge=judge))


def test_tables_of_samples(tmp_path):
    job = sampled.job(tmp_path / "run", updates=2, max_steps=8, samples_every=3)
    train_stage(job)
    tables = sorted(path.name for path in (job.folder / "samples").iterdir())
    assert tables == ["step-000001.md", "step-000005.md", "step-000007.md"]
    text = (job.folder / "samples/step-000001.md").read_text()
    assert text.startswith("# What was sampled before step 1\n")
    assert text.count("## 0-") == 4 and text.count("| reward | low | completion |") == 4
    assert "the owner did" in text and (job.folder / "samples/step-000001.md").stat().st_mode & 0o77 == 0


def test_a_compiled_step_has_one_width(tmp_path):
    """Each width would be a trace more."""
    job = sampled.job(tmp_path / "run", beta=0.0, max_tokens=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "is_over", lambda renderer, tokens: len(tokens) > 2)
        plan = batches.plan(job.examples, 2)
        batch = next(batches.steps(job.examples, plan, 2, 0))
        for compiled, width in ((True, 9), (False, 3)):
            context = dataclasses.replace(job.context, seed=1, compiled=compiled)
            made = job.algorithm.prepare(batch, job.base.model, job.stage, context)
            assert {arrays["completions"].shape[-1] for arrays in made.columns} == {width}


@pytest.mark.slow
@pytest.mark.parametrize("rollout", ["sample", "enumerate"])
def test_a_compiled_step_learns_the_same(rollout, tmp_path):
    learned = []
    for compiled in (False, True):
        one_shape = {"batch_size": 8, "accumulation": 1, "max_steps": 2, "updates": 2, "rollout": rollout}
        job = sampled.job(tmp_path / f"{compiled}", settings={"compile": compiled}, judge=worth, **one_shape)
        record = train_stage(job)
        assert 0 < record["traces"] <= 8 if compiled else record["traces"] == 0
        learned.append({name: np.array(array) for name, array in lora.adapter_arrays(job.base.model).items()})
    for name, array in learned[0].items():
        np.testing.assert_allclose(learned[1][name], array, atol=1e-4)


def worth(samples):
    """Of any text."""
    low = sampled.low(samples)
    return [float(s.said.action == s.done) if s.said.action else rest for s, rest in zip(samples, low, strict=True)]
