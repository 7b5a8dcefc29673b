"""Our attention and gate in the place of mlx-lm's: only where they are meant to be, and equal to them there."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations, base, llama, qwen2
from mlx_lm.models.cache import make_prompt_cache

from mlx_email.model import checkpointing, substitutes
from mlx_email.model.cache import BranchCache, PromptCache
from mlx_email.model.forward import completion_logps

ON_THE_CPU = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="they are for the CPU only")
OPEN = ["llama", "llama-tied", "llama-sliding", "llama-4bit", "qwen2", "qwen3", "phi3"]  # attention by mlx-lm's name


@pytest.fixture
def attended(monkeypatch):
    """The caches that did their layer's attention themselves, in order."""
    seen = []
    for kind in (PromptCache, BranchCache):
        honest = kind.attend

        def attend(self, *args, honest=honest):
            seen.append(type(self))
            return honest(self, *args)

        monkeypatch.setattr(kind, "attend", attend)
    return seen


@ON_THE_CPU
@pytest.mark.parametrize("name", OPEN)
def test_they_are_used_and_change_nothing(name, small, attended, monkeypatch):
    model, inputs = small.build(name), small.batch(2)
    ours, gradients = small.gradients(model, completion_logps, inputs)
    layers = len(model.layers)
    assert attended == [PromptCache] * layers + [BranchCache] * layers
    monkeypatch.setattr(substitutes, "_ours", lambda array: False)
    theirs, their_gradients = small.gradients(model, completion_logps, inputs)
    assert len(attended) == 2 * layers
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert small.apart(gradients, their_gradients) < 1e-5


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("name", OPEN)
def test_without_them_the_shared_prompt_is_as_exact(name, branches, checkpointed, small, monkeypatch):
    """What other devices and half precision run."""
    monkeypatch.setattr(substitutes, "_ours", lambda array: False)
    model, inputs = small.build(name), small.batch(branches)
    if checkpointed:
        model.train()
        checkpointing.apply(model)
    ours, gradients = small.gradients(model, completion_logps, inputs)
    theirs, their_gradients = small.gradients(model, small.own_logps, inputs)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert small.apart(gradients, their_gradients) < 1e-5


@ON_THE_CPU
def test_mlx_lm_s_own_generation_is_its_own(small, attended):
    model = small.build("llama")
    tokens = mx.array([[1, 2, 3, 4]])
    np.testing.assert_allclose(model(tokens, cache=make_prompt_cache(model)), model(tokens), atol=1e-6)
    assert attended == []


@ON_THE_CPU
def test_half_precision_and_additive_masks_are_handed_on(attended):
    mx.random.seed(0)
    queries, keys, values = (mx.random.normal((1, 2, 3, 4)) for _ in range(3))
    additive = mx.random.normal((3, 3))
    for cast, mask in ((mx.float16, None), (mx.float32, additive)):
        given = [array.astype(cast) for array in (queries, keys, values)]
        found = substitutes.scaled_dot_product_attention(*given, PromptCache(), 0.5, mask)
        np.testing.assert_array_equal(found, mx.fast.scaled_dot_product_attention(*given, scale=0.5, mask=mask))
    assert attended == []
    substitutes.scaled_dot_product_attention(queries, keys, values, PromptCache(), 0.5, None)
    assert attended == [PromptCache]


def test_a_model_that_changes_its_keys_after_the_cache(small):
    """Then each branch's own copy of the prompt is what counts."""
    mx.random.seed(0)
    prompt = PromptCache()
    prompt.update_and_fetch(mx.random.normal((1, 2, 3, 4)), mx.random.normal((1, 2, 3, 4)))
    cache = BranchCache(prompt, mx.array([3, 3]))
    queries = mx.random.normal((2, 2, 2, 4))
    keys, values = cache.update_and_fetch(mx.random.normal((2, 2, 2, 4)), mx.random.normal((2, 2, 2, 4)))
    mask = cache.make_mask(2)
    for changed in (keys, 2 * keys):
        theirs = mx.fast.scaled_dot_product_attention(queries, changed, values, scale=0.5, mask=mask)
        np.testing.assert_allclose(cache.attend(queries, changed, values, 0.5, mask), theirs, atol=1e-6)


@ON_THE_CPU
def test_both_names_are_exchanged_where_models_are_defined(small):
    small.build("llama"), small.build("qwen2")
    for module in (llama, qwen2):
        assert module.scaled_dot_product_attention is substitutes.scaled_dot_product_attention
        assert module.swiglu is substitutes.swiglu
    assert base.scaled_dot_product_attention is not substitutes.scaled_dot_product_attention
    assert activations.swiglu is not substitutes.swiglu
