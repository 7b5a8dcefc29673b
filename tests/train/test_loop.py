"""The loop: accumulation is exact, padding is nothing, a non-finite number stops it before the weights move."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2

from mlx_email.algorithms import ALGORITHMS
from mlx_email.algorithms.record import Algorithm
from mlx_email.config import Sft
from mlx_email.errors import MlxEmailError
from mlx_email.kernels import losses
from mlx_email.model import lora
from mlx_email.model.batch import Example, collate, example
from mlx_email.model.load import prepare
from mlx_email.train.loop import train
from mlx_email.train.optimizer import adamw, clipped_mean

LORA = lora.Lora(rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "down_proj"))


def policy(dropout: float = 0.0, *, bits: int | None = None) -> nn.Module:
    mx.random.seed(11)
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            vocab_size=53,
        )
    )
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
        prepare(model)
    lora.apply(model, lora.Lora(LORA.rank, LORA.alpha, dropout, LORA.targets), seed=5)
    return model


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(3)
    return [
        example(f"message-{i}", rng.integers(0, 53, rng.integers(1, 9)).tolist(), rng.integers(0, 53, 1 + i).tolist())
        for i in range(count)
    ]


def batch(rows, size=None, extra=0):
    return collate(rows, size or len(rows), 9 + extra, 8 + extra)


def run(model, steps, *, algorithm=ALGORITHMS["sft"], rate=1e-2, clip=1.0, seed=0, compiled=False):
    results = list(
        train(model, algorithm, Sft(), steps, adamw(0.0), lambda step: rate, clip=clip, seed=seed, compiled=compiled)
    )
    return results, lora.adapter_arrays(model)


def assert_equal(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_eight_of_one_equals_one_of_eight():
    rows = examples(8)
    whole, one = run(policy(), [[batch(rows)]] * 3)
    parts, eight = run(policy(), [[batch([row]) for row in rows]] * 3)
    assert_equal(one, eight)
    np.testing.assert_allclose([r.loss for r in whole], [r.loss for r in parts], rtol=1e-5)
    np.testing.assert_allclose([r.grad_norm for r in whole], [r.grad_norm for r in parts], rtol=1e-4)


def test_a_mean_of_means_would_be_seen():
    """The planted fault: a loss that divides by its own micro-batch gives other weights."""
    mean = Algorithm(loss=lambda logps, arrays, settings: _mean(losses.sft(logps, arrays["completion_mask"])))
    rows = examples(8)
    _, one = run(policy(), [[batch(rows)]], algorithm=mean)
    _, eight = run(policy(), [[batch([row]) for row in rows]], algorithm=mean)
    with pytest.raises(AssertionError):
        assert_equal(one, eight)


def _mean(loss):
    return losses.Loss(loss.total / loss.count, mx.array(1.0), loss.metrics)


def test_padding_rows_and_columns_change_nothing():
    rows = examples(5)
    _, tight = run(policy(), [[batch(rows)]] * 2)
    _, padded = run(policy(), [[batch(rows, size=9, extra=6)]] * 2)
    assert_equal(tight, padded)


def test_loss_falls_and_the_base_stays():
    model = policy()
    before = {k: np.array(v) for k, v in tree_flatten(model.parameters()) if "lora" not in k}
    results, _ = run(model, [[batch(examples(4))]] * 30)
    assert results[-1].loss < 0.7 * results[0].loss
    after = dict(tree_flatten(model.parameters()))
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_the_same_seed_gives_the_same_weights_with_dropout():
    steps = [[batch(examples(4)), batch(examples(3), size=4)]] * 3
    first, second, other = (run(policy(0.3), steps, seed=s)[1] for s in (0, 0, 1))
    assert all(np.array_equal(first[k], second[k]) for k in first)
    assert not all(np.array_equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_number_never_reaches_the_weights(where, value):
    @mx.custom_function
    def poisoned(logps):
        return logps

    @poisoned.vjp
    def poisoned_vjp(primals, cotangent, output):
        return cotangent * value

    def loss(logps, arrays, settings):
        honest = losses.sft(poisoned(logps) if where == "gradient" else logps, arrays["completion_mask"])
        return honest._replace(total=honest.total + value) if where == "loss" else honest

    model = policy()
    run(model, [[batch(examples(2))]])
    before = {k: np.array(v) for k, v in lora.adapter_arrays(model).items()}
    with pytest.raises(MlxEmailError, match=r"step 1: .*message-0, message-1"):
        run(model, [[batch(examples(2))]], algorithm=Algorithm(loss=loss))
    after = lora.adapter_arrays(model)
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_the_global_norm_is_clipped():
    sums = {"a": mx.array([3.0, 0.0]), "b": {"c": mx.array([[4.0]])}}
    clipped, norm = clipped_mean(sums, mx.array(1.0), limit=1.0)
    assert norm.item() == 5.0
    np.testing.assert_allclose(np.sqrt(sum((v**2).sum().item() for _, v in tree_flatten(clipped))), 1.0, rtol=1e-5)
    untouched, _ = clipped_mean(sums, mx.array(10.0), limit=1.0)
    np.testing.assert_allclose(untouched["a"], [0.3, 0.0], rtol=1e-5)


def test_a_step_of_nothing_but_padding_moves_nothing():
    model = policy()
    before = {k: np.array(v) for k, v in lora.adapter_arrays(model).items()}
    empty = batch(examples(1))
    empty.arrays["completion_mask"] = mx.zeros_like(empty.arrays["completion_mask"])
    results, after = run(model, [[empty]])
    assert (results[0].loss, results[0].grad_norm) == (0.0, 0.0)
    assert all(np.array_equal(before[k], after[k]) for k in before)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, 4])
def test_compiled_equals_plain(bits):
    steps = [[batch(examples(4)), batch(examples(3), size=4)]] * 2
    plain, plain_weights = run(policy(0.2, bits=bits), steps)
    traced, traced_weights = run(policy(0.2, bits=bits), steps, compiled=True)
    np.testing.assert_allclose([r.loss for r in plain], [r.loss for r in traced], rtol=1e-5)
    assert_equal(plain_weights, traced_weights, tolerance=1e-4)
