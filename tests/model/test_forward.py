"""The shared-prompt forward equals running every prompt and completion as one sequence, values and gradients."""

import logging

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import cohere, granite, llama
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache

from mlx_email.errors import ModelError
from mlx_email.model import checkpointing, forward
from mlx_email.model.cache import BranchCache, PromptCache
from mlx_email.model.forward import agrees_with_model, completion_logps

SHARED = ["llama", "llama-tied", "llama-sliding", "llama-4bit", "qwen2", "qwen3", "phi3", "deepseek"]
FULL = ["mamba", "mamba2"]


def distances(small, model, inputs) -> tuple[float, float]:
    """How far the log-probabilities (nats) and the gradients (relative) are from those of the model's own logits."""
    ours, our_gradients = small.gradients(model, completion_logps, inputs)
    theirs, their_gradients = small.gradients(model, small.own_logps, inputs)
    return mx.abs(ours - theirs).max().item(), small.apart(our_gradients, their_gradients)


@pytest.mark.parametrize("branches", [1, 2, 5, 8])
@pytest.mark.parametrize("name", SHARED + FULL)
def test_equals_full_sequences(name, branches, small):
    model, inputs = small.build(name), small.batch(branches)
    model.train()
    assert max(distances(small, model, inputs)) < 1e-5
    checkpointing.apply(model)
    assert max(distances(small, model, inputs)) < 1e-5
    assert forward.shares_prompts(model) == (name in SHARED)


@pytest.mark.parametrize("name", SHARED + FULL)
def test_one_token_completions_and_float_masks(name, small):
    model, (*inputs, _) = small.build(name), small.batch(5, length=1)
    assert max(distances(small, model, (*inputs, mx.ones(inputs[2].shape)))) < 1e-5


class PromptPaddingSeen(BranchCache):
    def make_mask(self, n, return_array=False, window_size=None):
        honest = super().make_mask(n, return_array, window_size)
        width = self.prompt.keys.shape[2]
        return mx.concatenate([mx.ones_like(honest[..., :width]), honest[..., width:]], axis=-1)


class OffByOne(BranchCache):
    def __init__(self, prompt, offset):
        super().__init__(prompt, offset)
        self.mask_offset, self.offset = offset, offset + 1

    def make_mask(self, n, return_array=False, window_size=None):  # only the positions are wrong, not what is seen
        return BranchCache(self.prompt, self.mask_offset).make_mask(n, return_array, window_size)


class WindowForgotten(BranchCache):
    def make_mask(self, n, return_array=False, window_size=None):
        whole = PromptCache()
        whole.hold(self.prompt.arrays())
        return BranchCache(whole, self.offset).make_mask(n)


FAULTS = [(name, fault) for name in SHARED for fault in (PromptPaddingSeen, OffByOne)]


@pytest.mark.parametrize(("name", "fault"), [*FAULTS, ("llama-sliding", WindowForgotten)])
def test_planted_faults_are_seen(name, fault, small, monkeypatch):
    monkeypatch.setattr(forward, "BranchCache", fault)
    assert min(distances(small, small.build(name), small.batch(2))) > 1e-3


def padding_between(model, prompts, lengths, completions):
    return honest(model, prompts, mx.full(lengths.shape, prompts.shape[1]), completions)


def off_by_one(model, prompts, lengths, completions):
    return honest(model, prompts, lengths + 1, completions)


honest = forward.full_hidden


@pytest.mark.parametrize("fault", [padding_between, off_by_one])
@pytest.mark.parametrize("name", FULL)
def test_planted_faults_of_full_sequences_are_seen(name, fault, small, monkeypatch):
    monkeypatch.setattr(forward, "full_hidden", fault)
    assert min(distances(small, small.build(name), small.batch(2))) > 1e-3


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_without_gradient_the_values_are_the_same(name, small):
    model, inputs = small.build(name), small.batch(2)
    np.testing.assert_array_equal(completion_logps(model, *inputs, gradient=False), completion_logps(model, *inputs))


@pytest.mark.parametrize("name", ["llama", "llama-sliding", "deepseek", "mamba", "mamba2"])
def test_padding_of_any_amount_changes_nothing(name, small):
    model, (prompts, lengths, completions, mask) = small.build(name), small.batch(2)
    wide = mx.pad(prompts, [(0, 0), (0, 5)], constant_values=3)
    long = mx.pad(completions, [(0, 0), (0, 0), (0, 3)], constant_values=2)
    padded = completion_logps(model, wide, lengths, long, mx.pad(mask, [(0, 0), (0, 0), (0, 3)]))
    np.testing.assert_allclose(padded[..., :5], completion_logps(model, prompts, lengths, completions, mask), atol=1e-5)
    assert not padded[..., 5:].any().item()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("asked", [None, 3])
@pytest.mark.parametrize("as_array", [False, True])
def test_the_prompt_s_mask_is_that_of_mlx_lm_s_caches(window, asked, as_array):
    """Also where a model leaves the window to its cache."""

    def seen(cache, n) -> np.ndarray:
        mask = cache.make_mask(n, return_array=as_array, window_size=asked)
        mask = create_causal_mask(n) if isinstance(mask, str) else mx.ones((n, n)) if mask is None else mask
        return np.array(mask) > 0

    for n in (1, 2, 4, 5, 9):
        theirs = KVCache() if window is None else RotatingKVCache(window)
        np.testing.assert_array_equal(seen(PromptCache(window), n), seen(theirs, n))


# Which path a model takes


def logged(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", FULL)
def test_a_model_without_plain_caches_says_once_that_it_is_slower(name, small, caplog):
    model, inputs = small.build(name), small.batch(1)
    completion_logps(model, *inputs)
    completion_logps(model, *inputs)
    assert agrees_with_model(small.build("qwen2"))
    (line,) = logged(caplog)
    assert "ArraysCache" in line and "slower" in line and f"mlx_lm.models.{name}" in line


def test_a_model_whose_caches_look_plain_but_do_not_share_is_found_out(small, caplog):
    class Absolute(llama.LlamaModel):  # learned positions, which know one offset only
        def __call__(self, inputs, cache=None, input_embeddings=None):
            offset = 0 if cache is None or not isinstance(cache[0], BranchCache) else 5
            h = self.embed_tokens(inputs) + 0.3 * mx.sin(mx.arange(inputs.shape[1]) + offset)[:, None]
            return super().__call__(inputs, cache, h)

    class Scalar(llama.LlamaModel):  # uses the offset as a number
        def __call__(self, inputs, cache=None, input_embeddings=None):
            if cache is not None and cache[0].offset > 0:
                raise AssertionError("a number was expected")
            return super().__call__(inputs, cache, input_embeddings)

    for kind, says in ((Absolute, "changes its numbers"), (Scalar, "ValueError")):
        caplog.clear()
        model, inputs = small.build("llama"), small.batch(2)
        model.model.__class__ = kind
        assert agrees_with_model(model)
        assert [says in line for line in logged(caplog)] == [True]
        assert max(distances(small, model, inputs)) < 1e-5


def test_families_that_scale_their_logits_are_refused():
    mx.random.seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4)
    sizes |= dict(num_key_value_heads=2, vocab_size=61)
    more = dict(attention_multiplier=0.3, embedding_multiplier=12.0, residual_multiplier=0.2, rms_norm_eps=1e-5)
    more |= dict(max_position_embeddings=64, attention_bias=False, mlp_bias=False, rope_theta=1e4, logits_scaling=8.0)
    assert not agrees_with_model(granite.Model(granite.ModelArgs(model_type="granite", **sizes, **more)))
    assert not agrees_with_model(cohere.Model(cohere.ModelArgs(model_type="cohere", logit_scale=0.0625, **sizes)))


@pytest.mark.parametrize("fault", [PromptPaddingSeen, OffByOne])
@pytest.mark.parametrize("name", SHARED)
def test_the_probe_sees_a_path_that_is_wrong(name, fault, small, monkeypatch):
    assert agrees_with_model(small.build(name))
    monkeypatch.setattr(forward, "BranchCache", fault)
    model = small.build(name)
    assert agrees_with_model(model)
    assert not forward.shares_prompts(model)


def test_a_model_without_a_body_is_refused():
    class Odd(nn.Module):
        layers = ()

    with pytest.raises(ModelError, match="its architecture is not supported"):
        completion_logps(Odd(), mx.array([[1]]), mx.array([1]), mx.array([[[1]]]), mx.ones((1, 1, 1)))
