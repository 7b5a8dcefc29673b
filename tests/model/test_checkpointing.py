"""Checkpointed layers give the same numbers with less memory, prompts shared or not, dropout or not."""

import gc

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache

from mlx_email.model import checkpointing, dropout, forward, lora
from mlx_email.model.forward import completion_logps
from mlx_email.model.load import prepare

KEY = mx.random.key(17)


def gradients(small, model, branches, key=KEY):
    """Log-probabilities and adapter gradients in training mode; seeded, so that the global state is the same too."""
    mx.random.seed(5)

    def path(model, *inputs):
        dropout.rekey(model, key)
        logps = completion_logps(model, *inputs)
        dropout.rekey(model, None)
        return logps

    model.train()
    found = small.gradients(model, path, small.batch(branches))
    mx.eval(found)
    return found


SOME = ["llama-4bit", "qwen2", "qwen3", "deepseek", "mamba", "mamba2"]
CASES = [("llama-sliding", p, branches) for p in (0.0, 0.3) for branches in (1, 2, 5, 8)]


@pytest.mark.parametrize(("name", "p", "branches"), [*CASES, *((name, 0.3, 2) for name in SOME)])
def test_the_same_numbers_as_without(name, p, branches, small):
    model = small.build(name, dropout=p)
    plain, plain_gradients = gradients(small, model, branches)
    checkpointing.apply(model)
    ours, our_gradients = gradients(small, model, branches)
    np.testing.assert_array_equal(ours, plain)
    assert small.apart(our_gradients, plain_gradients) < 1e-6
    checkpointing.remove(model)
    again, _ = gradients(small, model, branches)
    np.testing.assert_array_equal(again, plain)


class KeptAside(nn.Module):
    """The planted fault: a checkpointed layer that writes the keys and values into its cache from inside."""

    def __call__(self, x, mask=None, cache=None):
        call = super().__call__

        def run(trained, x):
            self.update(trained)
            return call(x, mask, cache=cache)

        return mx.checkpoint(run)(self.trainable_parameters(), x)


def test_keys_and_values_kept_aside_would_be_seen(small):
    model = small.build("llama")
    plain, plain_gradients = gradients(small, model, 2)
    for layer in model.layers:
        layer.__class__ = type("Faulty", (KeptAside, type(layer)), {})
    ours, our_gradients = gradients(small, model, 2)
    np.testing.assert_array_equal(ours, plain)  # nothing but the gradient is wrong
    assert small.apart(our_gradients, plain_gradients) > 1e-2


def test_dropout_from_the_global_state_would_be_seen(small, monkeypatch):
    monkeypatch.setattr(dropout.Dropout, "__call__", lambda self, x: nn.Dropout(self.p)(x))
    model = small.build("llama", dropout=0.3)
    plain, plain_gradients = gradients(small, model, 2)
    checkpointing.apply(model)
    ours, our_gradients = gradients(small, model, 2)
    np.testing.assert_array_equal(ours, plain)
    assert small.apart(our_gradients, plain_gradients) > 1e-2


def test_without_a_key_the_second_computation_has_the_first_one_s_masks(small):
    """A directional derivative, by differences: nothing else knows the masks that were drawn."""
    model, inputs = small.build("llama", dropout=0.3), small.batch(2)
    checkpointing.apply(model)
    _, found = gradients(small, model, 2, key=None)
    start = lora.adapter_arrays(model)
    totals = []
    for step in (3e-4, -3e-4):
        model.load_weights([(name, start[name] + step * found[name]) for name in start], strict=False)
        totals.append((gradients(small, model, 2, key=None)[0] * weights(inputs)).sum().item())
    squared = sum((array**2).sum().item() for array in found.values())
    assert (totals[0] - totals[1]) / 6e-4 == pytest.approx(squared, rel=2e-2)


def weights(inputs) -> mx.array:
    return mx.random.normal(inputs[2].shape, key=mx.random.key(3))  # those of `small.gradients`


def test_arrays_names_and_classes_stay(small):
    model = small.build("llama")
    names = [name for name, _ in tree_flatten(model.parameters())]
    kind = type(model.layers[0])
    checkpointing.apply(model)
    checkpointing.apply(model)
    assert isinstance(model.layers[0], kind) and type(model.layers[0]).__mro__.count(checkpointing.Checkpointed) == 1
    before = lora.adapter_arrays(model)
    gradients(small, model, 2)
    after = lora.adapter_arrays(model)
    assert [name for name, _ in tree_flatten(model.parameters())] == names
    assert all(mx.array_equal(before[name], after[name]).item() for name in before)  # no placeholder is left
    checkpointing.remove(model)
    checkpointing.remove(model)
    assert type(model.layers[0]) is kind


def test_mlx_lm_s_own_caches_still_work(small):
    """Sampling while in training mode: a cache with a state is not drawn into the second computation."""
    model, ids = small.build("llama"), mx.array([[1, 5, 3, 2]])
    plain = model(ids)
    checkpointing.apply(model)
    for training in (False, True):
        model.train(training)
        cache = make_prompt_cache(model)
        steps = [model(ids[:, :2], cache=cache), model(ids[:, 2:], cache=cache)]
        np.testing.assert_allclose(mx.concatenate(steps, axis=1), plain, atol=1e-5)


def test_nothing_is_checkpointed_in_eval_mode(small, monkeypatch):
    model, inputs = small.build("llama"), small.batch(2)
    checkpointing.apply(model)
    monkeypatch.setattr(mx, "checkpoint", None)
    model.eval()
    assert mx.isfinite(completion_logps(model, *inputs)).all().item()


def deep(layers: int) -> nn.Module:
    mx.random.seed(0)
    sizes = dict(hidden_size=64, intermediate_size=256, num_attention_heads=4, vocab_size=32)
    model = llama.Model(llama.ModelArgs(model_type="llama", num_hidden_layers=layers, rms_norm_eps=1e-5, **sizes))
    prepare(model)
    lora.apply(model, lora.Lora(4, 8.0, 0.1, ("q_proj", "v_proj", "down_proj")), seed=1)
    model.train()
    mx.eval(model.parameters())
    return model


def step_of(model, *, compiled: bool = False):
    inputs = mx.zeros((1, 96), mx.int32), mx.array([90]), mx.zeros((1, 4, 8), mx.int32), mx.ones((1, 4, 8))

    def total(key):
        dropout.rekey(model, key)
        logps = completion_logps(model, *inputs)
        dropout.rekey(model, None)
        return logps.sum()

    step = nn.value_and_grad(model, total)
    return mx.compile(step, inputs=[model.state], outputs=[model.state]) if compiled else step


def peak(step) -> int:
    """Bytes that a step needs beyond what is there before."""
    mx.eval(step(KEY))
    gc.collect()
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(step(KEY))
    return mx.get_peak_memory() - held


def test_memory_falls_and_hardly_grows_with_depth():
    peaks = {}
    for layers in (2, 8):
        model = deep(layers)
        plain = peak(step_of(model))
        checkpointing.apply(model)
        peaks[layers] = plain, peak(step_of(model))
    assert peaks[8][1] < 0.6 * peaks[8][0], peaks
    assert peaks[8][1] - peaks[2][1] < 0.3 * (peaks[8][0] - peaks[2][0]), peaks


def test_nothing_is_left_behind():
    """What is kept for the backward pass must be let go of; a cycle through mlx would never be."""
    model = deep(2)
    checkpointing.apply(model)
    step = step_of(model)
    held = []
    for _ in range(4):
        step(KEY)  # not even evaluated
        gc.collect()
        mx.clear_cache()
        held.append(mx.get_active_memory())
    assert held[1:] == [held[1]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-sliding", "llama-4bit"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_compiled(name, p, small):
    model = small.build(name, dropout=p)
    plain, plain_gradients = gradients(small, model, 2)
    checkpointing.apply(model)
    inputs = small.batch(2)

    def step(key, *inputs):
        dropout.rekey(model, key)
        logps = completion_logps(model, *inputs)
        dropout.rekey(model, None)
        return (logps * weights(inputs)).sum(), logps

    traced = mx.compile(nn.value_and_grad(model, step), inputs=[model.state], outputs=[model.state])
    for _ in range(2):
        (_, ours), found = traced(KEY, *inputs)
        np.testing.assert_allclose(ours, plain, atol=1e-5)
        assert small.apart(dict(tree_flatten(found)), plain_gradients) < 1e-5
    again, _ = gradients(small, model, 2)  # uncompiled after compiled: no placeholder is left
    np.testing.assert_array_equal(again, plain)


@pytest.mark.slow
def test_memory_falls_compiled():
    model = deep(12)
    plain = peak(step_of(model, compiled=True))
    checkpointing.apply(model)
    ours = peak(step_of(model, compiled=True))
    assert ours < 0.6 * plain, (ours, plain)


def test_full_sequences_are_checkpointed_too(small, monkeypatch):
    model = small.build("mamba")
    checkpointing.apply(model)
    calls = []
    monkeypatch.setattr(mx, "checkpoint", lambda run: calls.append(run) or run)
    gradients(small, model, 2)
    assert not forward.shares_prompts(model) and len(calls) == len(model.layers)
