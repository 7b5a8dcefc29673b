"""Small random models of mlx-lm's own classes, with adapters, and what they give when run the plain way."""

from collections.abc import Callable
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import deepseek_v2, llama, mamba, mamba2, phi3, qwen2, qwen3

from mlx_email.model import lora
from mlx_email.model.load import prepare

VOCABULARY = 61
SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=VOCABULARY,
    max_position_embeddings=128,
    rope_theta=10000.0,
)
MAMBA = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, state_size=4, num_hidden_layers=2)
MAMBA |= dict(conv_kernel=3, use_bias=False, use_conv_bias=True)


def of_llama(**options) -> nn.Module:
    return llama.Model(llama.ModelArgs(model_type="llama", **(SIZES | dict(tie_word_embeddings=False) | options)))


def of_phi3() -> nn.Module:
    # The long form of its rotary embedding: per-frequency factors and a scaled input.
    longrope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 3.0]}
    return phi3.Model(
        phi3.ModelArgs(model_type="phi3", rope_scaling=longrope, original_max_position_embeddings=16, **SIZES)
    )


def of_deepseek() -> nn.Module:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 8, "mscale": 0.7, "mscale_all_dim": 0.7}
    experts = dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=16)
    ranks = dict(kv_lora_rank=16, q_lora_rank=None, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8)
    model = deepseek_v2.Model(
        deepseek_v2.ModelArgs(first_k_dense_replace=1, rope_scaling=yarn, **(SIZES | experts | ranks))
    )
    for module in model.modules():
        if isinstance(module, deepseek_v2.MoEGate):  # zeros as they come: every expert would be as good
            module.weight = mx.random.normal(module.weight.shape)
    return model


def of_mamba2() -> nn.Module:
    more = dict(num_heads=4, head_dim=8, layer_norm_epsilon=1e-5, n_groups=1, time_step_limit=(0.0, 100.0))
    return mamba2.Model(
        mamba2.ModelArgs(model_type="mamba2", time_step_rank=2, tie_word_embeddings=True, **MAMBA, **more)
    )


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "llama": of_llama,
    "llama-tied": lambda: of_llama(tie_word_embeddings=True),
    "llama-sliding": lambda: of_llama(layer_types=["full_attention", "sliding_attention"], sliding_window=4),
    "llama-4bit": of_llama,
    "qwen2": lambda: qwen2.Model(qwen2.ModelArgs(model_type="qwen2", tie_word_embeddings=True, **SIZES)),
    "qwen3": lambda: qwen3.Model(qwen3.ModelArgs(model_type="qwen3", tie_word_embeddings=False, head_dim=8, **SIZES)),
    "phi3": of_phi3,
    "deepseek": of_deepseek,
    "mamba": lambda: mamba.Model(mamba.ModelArgs(model_type="mamba", time_step_rank=2, **MAMBA)),
    "mamba2": of_mamba2,
}
TARGETS = {
    "phi3": ("qkv_proj", "down_proj"),
    "deepseek": ("q_proj", "kv_b_proj", "o_proj"),
    "mamba": ("in_proj", "x_proj"),
    "mamba2": ("in_proj", "out_proj"),
}


def bare(name: str) -> nn.Module:
    """A random model without adapters."""
    mx.random.seed(7)
    model = BUILDERS[name]()
    # Attention that looks at something: at random as they come, queries and keys are almost orthogonal.
    sharper = [(key, 3 * array) for key, array in tree_flatten(model.parameters()) if "q_proj" in key or "qkv" in key]
    model.load_weights(sharper, strict=False)
    if name.endswith("4bit"):
        nn.quantize(model, group_size=32, bits=4)
    prepare(model)
    return model


def build(name: str, *, dropout: float = 0.0, dora: bool = False) -> nn.Module:
    """`bare` with adapters that are not zero, so that every adapter array has a gradient."""
    model = bare(name)
    targets = TARGETS.get(name, ("q_proj", "v_proj", "down_proj"))
    lora.apply(model, lora.Lora(4, 8.0, dropout, targets, dora), seed=1)
    for key, array in lora.adapter_arrays(model).items():
        if key.endswith("lora_b"):
            model.load_weights([(key, 0.1 * mx.random.normal(array.shape))], strict=False)
    mx.eval(model.parameters())
    return model


def batch(branches: int, length: int = 5) -> tuple[mx.array, ...]:
    """Three ragged prompts in 11 columns, `branches` ragged completions each, some empty."""
    rng = np.random.default_rng(branches)
    lengths = np.array([9, 1, 6])
    prompts = rng.integers(0, VOCABULARY, (3, 11))
    completions = rng.integers(0, VOCABULARY, (3, branches, length))
    mask = np.arange(length) < rng.integers(0, length + 1, (3, branches, 1))
    mask[0, 0] = True
    return mx.array(prompts), mx.array(lengths), mx.array(completions), mx.array(mask)


def own_logps(model, prompts, lengths, completions, mask) -> mx.array:
    """The model's own logits for each prompt with each completion, as one sequence without padding."""
    rows = []
    for b, length in enumerate(lengths.tolist()):
        prompt = mx.broadcast_to(prompts[b, :length], (completions.shape[1], length))
        logits = model(mx.concatenate([prompt, completions[b, :, :-1]], axis=1))[:, length - 1 :].astype(mx.float32)
        logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        rows.append(mx.take_along_axis(logps, completions[b, ..., None], axis=-1)[..., 0])
    return mx.stack(rows) * mask


def gradients(model, path, inputs) -> tuple[mx.array, dict[str, mx.array]]:
    """The log-probabilities by `path`, and the adapters' gradients of their randomly weighted sum."""
    weights = mx.random.normal(inputs[2].shape, key=mx.random.key(3))

    def total() -> tuple[mx.array, mx.array]:
        logps = path(model, *inputs)
        return (logps * weights).sum(), logps

    (_, logps), found = nn.value_and_grad(model, total)()
    return logps, dict(tree_flatten(found))


def apart(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> float:
    """The furthest relative distance of two sets of arrays, array by array."""
    assert ours.keys() == theirs.keys()
    sizes = {name: mx.linalg.norm(array.flatten()).item() for name, array in theirs.items()}
    assert min(sizes.values()) > 0
    return max(mx.linalg.norm((ours[name] - theirs[name]).flatten()).item() / sizes[name] for name in theirs)


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    return SimpleNamespace(bare=bare, build=build, batch=batch, own_logps=own_logps, gradients=gradients, apart=apart)
