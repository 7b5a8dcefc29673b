"""DPO, KTO and the reward model in the loop: their references, their batches, what they learn."""

import dataclasses
import shutil

import mlx.core as mx
import msgspec
import numpy as np
import pytest
import small

from mlx_email import config, files
from mlx_email.algorithms import ALGORITHMS, Context, kto
from mlx_email.model import lora
from mlx_email.model.batch import Batch, collate, example
from mlx_email.model.forward import completion_logps
from mlx_email.model.frozen import Frozen
from mlx_email.train import batches, events, loop, reference
from mlx_email.train.optimizer import adamw
from mlx_email.train.stage import train_stage
from mlx_email.train.validate import validation

SHORT = {"max_steps": 12, "batch_size": 2, "accumulation": 2, "learning_rate": 0.02, "log_every": 1}


def wanted(n: int) -> dict:
    return {"desirable": float(n % 3 > 0)}


def margins(n: int) -> dict:
    return {"margin": [0.1 * (n % 4), 0.0]}


KINDS = {
    "dpo": (config.Dpo, 2, None),
    "kto": (config.Kto, 1, wanted),
    "reward": (config.Reward, 3, margins),
}


def job(run, name, *, settings=None, two_layers=False, **stage):
    kind, branches, numbers = KINDS[name]
    chosen = kind(**{**SHORT, "validate_every": None, "epochs": 4, **stage})
    config_ = msgspec.structs.replace(small.SETTINGS, stages=(chosen,), **(settings or {}))
    return small.job(run, settings=config_, branches=branches, numbers=numbers, held_out=6, layers=1 + two_layers)


def said(run, kind="step") -> list[dict]:
    return [event for event in events.read(run) if event["event"] == kind]


AT_THE_START = {"dpo": np.log(2), "kto": 0.5}


@pytest.mark.parametrize("name", AT_THE_START)
def test_the_first_loss_is_that_of_a_policy_that_is_its_reference(name, tmp_path):
    """Dropout, or another reference, would make it another one."""
    train_stage(job(tmp_path / "run", name))
    assert said(tmp_path / "run")[0]["loss"] == pytest.approx(AT_THE_START[name], abs=2e-6)
    assert abs(said(tmp_path / "run")[-1]["loss"] - AT_THE_START[name]) > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_what_it_optimises(name, tmp_path):
    """On the training examples themselves: the loss falls, and the reward of the better ones rises over the others'."""
    steps = {"max_steps": 60, "epochs": 60, "learning_rate": 0.05, "log_every": 1}
    train_stage(job(tmp_path / "run", name, **steps))
    steps = said(tmp_path / "run")
    first, last = (np.mean([step["loss"] for step in part]) for part in (steps[:5], steps[-5:]))
    assert last < 0.9 * first
    step = steps[-1]
    if name != "kto":
        assert step["rewards/margin"] > 0 and step["rewards/accuracy"] > 0.9


def test_the_reference_does_not_move(tmp_path):
    """What the stage keeps of it is what the policy gave before the first step, after the last as well."""
    stage = job(tmp_path / "run", "dpo")
    model = stage.base.model
    model.eval()
    examples = stage.examples[:4]
    arrays = collate(examples, 4, 9, 6).arrays
    columns = [arrays[name] for name in ("prompts", "prompt_lengths", "completions", "completion_mask")]
    before = np.array(completion_logps(model, *columns))
    train_stage(stage)
    model.eval()
    assert np.abs(np.array(completion_logps(model, *columns)) - before).max() > 1e-2, "the policy has moved"
    kept = reference.with_reference(stage.folder, "train", model, stage.examples, 2)[:4]
    live = np.array(reference.reference_of(stage.folder, model).logps(model, arrays))
    np.testing.assert_allclose(live, before, atol=1e-6)
    for row, each in enumerate(kept):
        for branch, logps in enumerate(each.reference):
            np.testing.assert_allclose(logps, before[row, branch, : len(logps)], atol=1e-5)


def test_a_reference_that_moves_is_seen(tmp_path, monkeypatch):
    """The planted fault: KTO's reference taken from the policy of the moment, as if log-ratios were 0: KL is 0."""
    steps = {"max_steps": 25, "epochs": 25, "learning_rate": 0.05}
    train_stage(job(tmp_path / "honest", "kto", **steps))
    monkeypatch.setattr(Frozen, "put_on", lambda self, model: None)
    monkeypatch.setattr(Frozen, "idle", False)
    train_stage(job(tmp_path / "moving", "kto", **steps))
    assert any(step["kl"] > 0 for step in said(tmp_path / "honest"))
    assert all(step["kl"] == 0 for step in said(tmp_path / "moving"))


def test_a_second_stage_s_reference_is_the_first_stage_s_result(tmp_path):
    first = job(tmp_path / "a", "dpo")
    train_stage(first)
    second = msgspec.structs.replace(first.stage, name="again")
    then = job(tmp_path / "b", "dpo")
    object.__setattr__(then, "stage", second)
    then.base.model.update(first.base.model.parameters())
    train_stage(then)
    started = reference.reference_of(then.folder, then.base.model).arrays
    held = mx.load(str(first.folder / lora.ADAPTERS))
    assert started.keys() == held.keys() and all(mx.array_equal(started[name], held[name]).item() for name in held)
    assert said(tmp_path / "b")[0]["loss"] == pytest.approx(np.log(2), abs=2e-6)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("cut", [(1, 6), (3, 2)])
def test_micro_batches_give_the_gradient_of_one_batch(name, cut, tmp_path):
    """Six examples as one micro-batch, and as several of one shape."""
    results = []
    for size, count in ((6, 1), (cut[0], cut[1])):
        with_job = job(tmp_path / f"{size}", name)
        model, stage = with_job.base.model, with_job.stage
        Frozen({key: array + 0.1 for key, array in lora.adapter_arrays(model).items()}).put_on(model)
        frozen = Frozen({key: 1.5 * array for key, array in lora.adapter_arrays(model).items()})
        examples = with_job.examples[:6]
        if ALGORITHMS[name].reference(stage):
            rows = collate(examples, 6, 7, 5)
            logps = np.array(frozen.logps(model, rows.arrays))
            examples = [
                dataclasses.replace(
                    each, reference=tuple(row[: len(ids)] for row, ids in zip(logps[n], each.completions, strict=True))
                )
                for n, each in enumerate(examples)
            ]
        parts = [collate(examples[start : start + size], size, 7, 5) for start in range(0, 6, size)]
        assert len(parts) == count
        with ALGORITHMS[name].fitting(model, stage, 3):
            (result,) = loop.train(
                model,
                ALGORITHMS[name],
                stage,
                [parts],
                adamw(0.0),
                lambda step: 1e-2,
                clip=1.0,
                seed=0,
                compiled=False,
                context=Context(reference=frozen),
            )
            arrays = {key: np.array(array) for key, array in lora.adapter_arrays(model).items()}
        results.append((result, arrays))
    (one, whole), (many, added) = results
    assert many.loss == pytest.approx(one.loss, rel=1e-5) and many.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    assert many.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-6)
    for key in whole:
        np.testing.assert_allclose(added[key], whole[key], atol=2e-5)


def test_the_reference_is_asked_only_about_examples_that_are_trained_on(tmp_path):
    made = job(tmp_path / "run", "dpo", max_steps=2)
    train_stage(made)
    (part,) = (made.folder / "reference").glob("train-*")
    assert len(mx.load(str(part / "logps.safetensors"))["logps"]) == 8 < len(made.examples)


# KTO's mismatched completions


def kto_batch() -> list[Batch]:
    """Two micro-batches of two rows; the second has one row of padding and wider completions."""
    rows = [example(str(n), [n + 1] * (n + 1), [10 + n] * (n + 1), numbers={"desirable": 1.0}) for n in range(3)]
    return [collate(rows[:2], 2, 3, 2), collate(rows[2:], 2, 3, 3)]


def test_every_completion_goes_to_the_next_prompt_over_all_micro_batches():
    rotated = kto.rotate([each.arrays for each in kto_batch()])
    ids = [np.array(arrays["completions"])[:, 0] for arrays in rotated]
    masks = [np.array(arrays["completion_mask"])[:, 0] for arrays in rotated]
    assert [row[mask > 0].tolist() for row, mask in zip(np.concatenate(ids), np.concatenate(masks), strict=True)] == [
        [12, 12, 12],
        [10],
        [11, 11],
        [],
    ]
    for before, after in zip(kto_batch(), rotated, strict=True):
        assert mx.array_equal(before.arrays["prompts"], after["prompts"]).item()


def test_no_prompt_is_given_a_completion_of_its_own():
    """A message may have a desirable answer and a wrong one, side by side: both are of its own prompt."""
    rows = [
        example(name, prompt, answer, numbers={"desirable": 1.0})
        for name, prompt, answer in (("a", [1, 2], [10]), ("a", [1, 2], [11]), ("b", [3], [12]), ("b", [3], [13]))
    ]
    (rotated,) = kto.rotate([collate(rows, 4, 2, 1).arrays])
    assert rotated["completions"].flatten().tolist() == [13, 13, 11, 11]
    assert kto.rotate([collate(rows[:2], 2, 2, 1).arrays]) is None


def test_one_example_has_no_other_to_be_compared_with():
    (first, _) = kto_batch()
    alone = collate(first.examples[:1], 1, 3, 2)
    assert kto.rotate([alone.arrays]) is None
    (made,) = kto.prepare([alone], None, config.Kto(), Context()).columns
    assert made["kl"].tolist() == [0]


def test_kl_is_the_mean_log_ratio_of_the_mismatched_completions(tmp_path):
    made = job(tmp_path / "run", "kto")
    model = made.base.model
    frozen = Frozen({name: 3 * array + 0.3 for name, array in lora.adapter_arrays(model).items()})
    model.train()
    (first, second) = kto.prepare(kto_batch(), model, config.Kto(), Context(reference=frozen)).columns
    model.eval()
    rows = [
        ([1], [12, 12, 12]),
        ([2, 2], [10]),
        ([3, 3, 3], [11, 11]),
    ]  # each prompt with the completion before its own
    pairs = collate([example("", prompt, ids) for prompt, ids in rows], 3, 3, 3).arrays
    columns = [pairs[name] for name in ("prompts", "prompt_lengths", "completions", "completion_mask")]
    ratio = (completion_logps(model, *columns) - frozen.logps(model, pairs)).sum() / 3
    assert abs(ratio.item()) > 1e-2
    for arrays in (first, second):
        assert arrays["kl"].tolist() == pytest.approx([ratio.item()], rel=1e-4)


def test_apo_zero_unpaired_asks_for_no_kl(monkeypatch):
    monkeypatch.setattr(kto, "rotate", lambda batch: 1 / 0)
    made = kto.prepare(kto_batch(), None, config.Kto(loss_type="apo_zero_unpaired"), Context()).columns
    assert [arrays["kl"].tolist() for arrays in made] == [[0], [0]]


def test_validation_does_not_depend_on_how_examples_are_cut_into_batches(tmp_path):
    """KL and its clamp at 0 are of all of them; it is above 0 with one of two policies moved, and 0 with the other."""
    kls = []
    for moved in ("policy", "reference"):
        found = []
        for size in (1, 2, 4, 6):
            made = job(tmp_path / f"{moved}-{size}", "kto", batch_size=size)
            model = made.base.model
            began, other = Frozen.of(model), {name: array + 0.2 for name, array in lora.adapter_arrays(model).items()}
            if moved == "policy":
                Frozen(other).put_on(model)
            frozen = began if moved == "policy" else Frozen(other)
            zeros = [(np.zeros(len(each.completions[0])),) for each in made.held_out]
            examples = [dataclasses.replace(each, reference=r) for each, r in zip(made.held_out, zeros, strict=True)]
            plan = batches.plan(examples, size)
            found.append(validation(model, made.algorithm, made.stage, examples, plan, Context(reference=frozen)))
        kls.append(found[0]["val/kl"])
        for each in found[1:]:
            assert each == pytest.approx(found[0], rel=1e-4)
    assert max(kls) > 1e-3 and min(kls) == 0


def test_two_reward_models_of_a_run_begin_differently(tmp_path):
    """So that they can be members of an ensemble; the same one begins the same."""
    heads = {}
    for run, name in (("a", "one"), ("b", "one"), ("c", "two")):
        made = job(tmp_path / run, "reward", max_steps=1)
        object.__setattr__(made, "stage", msgspec.structs.replace(made.stage, name=name))
        train_stage(made)
        heads[run] = (made.folder / "step-000000/reward_head.safetensors").read_bytes()
    assert heads["a"] == heads["b"] != heads["c"]


def test_a_reference_of_other_adapters_is_computed_again(tmp_path):
    """What was kept belongs to the adapters of step 0: where those are others, it is not used."""
    first = job(tmp_path / "run", "dpo")
    train_stage(first)
    for path in first.folder.glob("step-*"):
        shutil.rmtree(path)
    (first.folder / "stage.json").unlink()
    again = job(tmp_path / "run", "dpo")
    Frozen({name: array + 0.1 for name, array in lora.adapter_arrays(again.base.model).items()}).put_on(
        again.base.model
    )
    train_stage(again)
    assert said(tmp_path / "run")[0]["loss"] == pytest.approx(np.log(2), abs=2e-6)


# Every setting does something

SETTINGS = {
    "dpo": [
        {"beta": 0.5},
        {"loss_type": "ipo"},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_type": "discopop"},
        {"loss_type": "discopop", "discopop_tau": 0.2},
        {"ld_alpha": 0.3},
    ],
    "kto": [
        {"beta": 0.5},
        {"loss_type": "apo_zero_unpaired"},
        {"desirable_weight": 2.0},
        {"undesirable_weight": 2.0},
    ],
    "reward": [
        {"head": "mlp"},
        {"head": "mlp", "head_dropout": 0.4},
        {"members": 2},
        {"trained_layers": 1},
        {"center_rewards_coefficient": 0.5},
    ],
}
OF_THE_EXAMPLES = {"wrong_answers", "margins", "message_pairs"}  # in test_examples


def test_each_setting_has_its_case():
    for name, cases in SETTINGS.items():
        own = {field for field in KINDS[name][0].__struct_fields__ if field not in config.Stage.__struct_fields__}
        assert own - OF_THE_EXAMPLES == {field for case in cases for field in case}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_each_setting_changes_what_is_learned(name, tmp_path):
    """Two layers, so that one of them can be left out."""
    learned = []
    for number, case in enumerate([{}, *SETTINGS[name]]):
        # KTO's KL is 0 until the policy has moved.
        made = job(tmp_path / str(number), name, max_steps=6, learning_rate=0.1, two_layers=True, **case)
        train_stage(made)
        written = (lora.ADAPTERS, *(["reward_head.safetensors"] if name == "reward" else []))
        learned.append(tuple(files.sha256(made.folder / file) for file in written))
    assert len(set(learned)) == len(learned)


# Going on after a kill


@pytest.mark.parametrize("name", KINDS)
def test_resumed_it_ends_with_the_same_bits(name, tmp_path):
    steps = {"save_every": 3, "validate_every": 4, **({"head": "mlp", "members": 2} if name == "reward" else {})}
    train_stage(job(tmp_path / "whole", name, **steps))

    def killed(result, _):
        if result.step == 8:
            raise small.Killed

    cut = job(tmp_path / "cut", name, **steps)
    object.__setattr__(cut, "on_step", killed)
    with pytest.raises(small.Killed):
        train_stage(cut)
    train_stage(job(tmp_path / "cut", name, **steps))
    assert small.outcome(tmp_path / "cut", name) == small.outcome(tmp_path / "whole", name)
    for file in ("reward_head.safetensors",) if name == "reward" else ():
        whole, again = ((tmp_path / run / name / file).read_bytes() for run in ("whole", "cut"))
        assert whole == again


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_compiled_equals_plain(name, tmp_path):
    for compiled in (False, True):
        train_stage(job(tmp_path / str(compiled), name, max_steps=3, settings={"compile": compiled}))
    plain, traced = ([step["loss"] for step in said(tmp_path / str(compiled))] for compiled in (False, True))
    np.testing.assert_allclose(traced, plain, rtol=1e-4)
