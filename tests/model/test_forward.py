"""The shared-prompt forward equals running every prompt and completion as one sequence, values and gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen2, qwen3
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_email.errors import ModelError
from mlx_email.model import forward
from mlx_email.model.forward import BranchCache, completion_logps
from mlx_email.model.load import prepare

SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=61,
    max_position_embeddings=128,
    rope_theta=10000.0,
)


def build(name: str) -> nn.Module:
    mx.random.seed(7)
    if name.startswith("llama"):
        kinds = ["full_attention", "sliding_attention"] if name == "llama-sliding" else None
        arguments = llama.ModelArgs(
            model_type="llama",
            tie_word_embeddings=name == "llama-tied",
            layer_types=kinds,
            sliding_window=4 if kinds else None,
            **SIZES,
        )
        model = llama.Model(arguments)
    elif name == "qwen2":
        model = qwen2.Model(qwen2.ModelArgs(model_type="qwen2", tie_word_embeddings=True, **SIZES))
    else:
        model = qwen3.Model(qwen3.ModelArgs(model_type="qwen3", tie_word_embeddings=False, head_dim=8, **SIZES))
    if name == "llama-4bit":
        nn.quantize(model, group_size=32, bits=4)
    prepare(model)
    keys = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys})
    for key, array in tree_flatten(model.trainable_parameters()):
        if key.endswith("lora_b"):  # zero at the start: gradients of A would be zero too
            model.load_weights([(key, 0.1 * mx.random.normal(array.shape))], strict=False)
    return model


def batch(branches: int, length: int = 5) -> tuple[mx.array, ...]:
    rng = np.random.default_rng(branches)
    lengths = np.array([9, 1, 6])
    prompts = rng.integers(0, 61, (3, 11))
    completions = rng.integers(0, 61, (3, branches, length))
    mask = np.arange(length) < rng.integers(0, length + 1, (3, branches, 1))
    return mx.array(prompts), mx.array(lengths), mx.array(completions), mx.array(mask)


def full_sequences(model, prompts, lengths, completions, mask) -> mx.array:
    rows = []
    for b, length in enumerate(lengths.tolist()):
        for g in range(completions.shape[1]):
            ids = mx.concatenate([prompts[b, :length], completions[b, g]])
            logits = model(ids[None, :-1])[0, length - 1 :].astype(mx.float32)
            logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            rows.append(mx.take_along_axis(logps, completions[b, g][:, None], axis=-1)[:, 0])
    return mx.stack(rows).reshape(completions.shape) * mask


def value_and_gradients(model, path, inputs) -> tuple[mx.array, dict[str, mx.array]]:
    weights = mx.random.normal(inputs[2].shape, key=mx.random.key(3))
    total, gradients = nn.value_and_grad(model, lambda: (path(model, *inputs) * weights).sum())()
    return total, dict(tree_flatten(gradients))


def furthest(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> float:
    return max((mx.abs(ours[k] - theirs[k]).max() / (mx.abs(theirs[k]).max() + 1e-12)).item() for k in theirs)


MODELS = ["llama", "llama-tied", "llama-sliding", "llama-4bit", "qwen2", "qwen3"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("branches", [1, 2, 5])
def test_equals_full_sequences(name, branches):
    model = build(name)
    inputs = batch(branches)
    ours, our_gradients = value_and_gradients(model, completion_logps, inputs)
    theirs, their_gradients = value_and_gradients(model, full_sequences, inputs)
    np.testing.assert_allclose(ours.item(), theirs.item(), rtol=1e-4)
    np.testing.assert_allclose(completion_logps(model, *inputs), full_sequences(model, *inputs), rtol=1e-4, atol=1e-4)
    assert furthest(our_gradients, their_gradients) < 1e-4


def unpadded_prompt_seen(self, n, return_array=False, window_size=None):
    honest = BranchCache.make_mask(self, n, return_array, window_size)
    width = self.prompt.keys.shape[2]
    return mx.concatenate([mx.ones_like(honest[..., :width]), honest[..., width:]], axis=-1)


def shifted_by_one(self, prompt, prompt_lengths, branches):
    BranchCache.__init__(self, prompt, prompt_lengths, branches)
    self.offset = self.offset + 1


@pytest.mark.parametrize("fault", [{"make_mask": unpadded_prompt_seen}, {"__init__": shifted_by_one}])
def test_planted_faults_are_seen(fault, monkeypatch):
    monkeypatch.setattr(forward, "BranchCache", type("Faulty", (BranchCache,), fault))
    model, inputs = build("llama"), batch(2)
    assert not np.allclose(completion_logps(model, *inputs), full_sequences(model, *inputs), rtol=1e-4, atol=1e-4)


def test_one_token_completions_and_float_masks():
    model, (prompts, lengths, completions, _) = build("qwen2"), batch(5, length=1)
    mask = mx.ones(completions.shape)
    ours = completion_logps(model, prompts, lengths, completions, mask)
    np.testing.assert_allclose(ours, full_sequences(model, prompts, lengths, completions, mask), rtol=1e-4, atol=1e-5)


def test_without_gradient_the_values_are_the_same():
    model, inputs = build("llama"), batch(2)
    np.testing.assert_array_equal(completion_logps(model, *inputs, gradient=False), completion_logps(model, *inputs))


def test_padding_of_any_amount_changes_nothing():
    model, (prompts, lengths, completions, mask) = build("llama"), batch(2)
    wide = mx.pad(prompts, [(0, 0), (0, 5)], constant_values=3)
    long = mx.pad(completions, [(0, 0), (0, 0), (0, 3)], constant_values=2)
    padded = completion_logps(model, wide, lengths, long, mx.pad(mask, [(0, 0), (0, 0), (0, 3)]))
    np.testing.assert_allclose(padded[..., :5], completion_logps(model, prompts, lengths, completions, mask), atol=1e-5)
    assert not padded[..., 5:].any().item()


def test_a_model_with_other_caches_is_refused():
    class Recurrent(nn.Module):
        model = type("Body", (), {"embed_tokens": None})
        lm_head = None
        layers = ()

        def make_cache(self):
            return [object()]

    with pytest.raises(ModelError, match="only models with plain attention caches"):
        completion_logps(Recurrent(), *batch(1))
