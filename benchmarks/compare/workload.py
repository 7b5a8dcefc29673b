"""What is trained on: a random model, random adapters and random token ids, pure functions of the sizes.

Speed and memory depend on shapes alone, so random weights serve as well as trained ones. The adapters' B is not zero,
as it would be at the start of a training: else half of the gradient would be, and policy and reference would agree.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from safetensors.numpy import save_file

from mlx_email.model.batch import Example, example

MODEL = "model"  # folders of the workload
ADAPTER = "adapter"
FIRST_TOKEN = 3  # 0 is what every side pads with; 1 and 2 are commonly control tokens
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Sizes:
    """A model and three workloads. Lengths in tokens."""

    layers: int
    width: int
    inner: int  # of the gated feed-forward part
    heads: int
    vocabulary: int
    rank: int  # of the adapters, on all seven projections
    rows: int  # SFT: examples an epoch
    batch: int  # SFT: examples a step
    median: int  # SFT: of the rows' log-normal lengths, answer included
    longest: int  # SFT
    answer: int  # SFT
    pairs: int  # DPO: a step
    prompt: int  # DPO and GRPO
    completion: int  # DPO and GRPO
    group: int  # GRPO: completions of the prompt
    epochs: int  # SFT: repetitions
    repetitions: int  # DPO and GRPO
    steps: int  # DPO and GRPO: of one repetition


FULL = Sizes(
    layers=8,
    width=512,
    inner=1408,
    heads=8,
    vocabulary=32_000,
    rank=16,
    rows=64,
    batch=8,
    median=250,
    longest=1048,  # prompts are cut at 1,024, as by the default configuration
    answer=24,
    pairs=4,
    prompt=384,
    completion=32,
    group=8,
    epochs=3,
    repetitions=5,
    steps=2,
)
QUICK = Sizes(  # seconds, for tests: no ratio of these sizes means anything
    layers=2,
    width=32,
    inner=64,
    heads=2,
    vocabulary=128,
    rank=2,
    rows=8,
    batch=2,
    median=24,
    longest=64,
    answer=4,
    pairs=2,
    prompt=12,
    completion=5,
    group=3,
    epochs=2,
    repetitions=2,
    steps=1,
)
SPREAD = 0.8  # sigma of the log-normal lengths of mail
SHORTEST_PROMPT = 8


def write(folder: Path, sizes: Sizes) -> None:
    """The model and its adapters as mlx-lm's folders."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    shapes = {f"self_attn.{name}": (sizes.width, sizes.width) for name in PROJECTIONS[:4]}
    shapes |= {f"mlp.{name}": (sizes.inner, sizes.width) for name in PROJECTIONS[4:6]}
    shapes |= {"mlp.down_proj": (sizes.width, sizes.inner)}
    weights = {
        "model.embed_tokens.weight": normal(sizes.vocabulary, sizes.width, scale=sizes.width**-0.5),
        "model.norm.weight": np.ones(sizes.width, np.float32),
    }
    adapters = {}
    for layer in (f"model.layers.{number}" for number in range(sizes.layers)):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{norm}.weight"] = np.ones(sizes.width, np.float32)
        for name, (out, into) in shapes.items():
            weights[f"{layer}.{name}.weight"] = normal(out, into, scale=into**-0.5)
            adapters[f"{layer}.{name}.lora_a"] = normal(into, sizes.rank, scale=into**-0.5)
            adapters[f"{layer}.{name}.lora_b"] = normal(sizes.rank, out, scale=0.01)
    model = {
        "model_type": "llama",
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "rms_norm_eps": 1e-5,
        "vocab_size": sizes.vocabulary,
        "tie_word_embeddings": True,
    }
    adapter = {
        "fine_tune_type": "lora",
        "num_layers": sizes.layers,
        "lora_parameters": {"rank": sizes.rank, "scale": 2.0, "dropout": 0.0, "keys": list(shapes)},
    }
    for name, config, config_file, arrays, arrays_file in (
        (MODEL, model, "config.json", weights, "model.safetensors"),
        (ADAPTER, adapter, "adapter_config.json", adapters, "adapters.safetensors"),
    ):
        (folder / name).mkdir()
        (folder / name / config_file).write_text(json.dumps(config))
        save_file(arrays, folder / name / arrays_file, metadata={"format": "mlx"})


def demonstrations(sizes: Sizes) -> list[Example]:
    """Rows of log-normal length. The lengths are the distribution's own quantiles in random order, so that a few rows
    have its mean and its tail."""
    rng = np.random.default_rng(1)
    quantiles = [NormalDist().inv_cdf((row + 0.5) / sizes.rows) for row in range(sizes.rows)]
    lengths = np.rint(sizes.median * np.exp(SPREAD * rng.permutation(quantiles))).astype(int)
    lengths = np.clip(lengths, sizes.answer + SHORTEST_PROMPT, sizes.longest)
    return [_example(rng, sizes, length - sizes.answer, 1, sizes.answer) for length in lengths]


def pairs(sizes: Sizes) -> list[Example]:
    """One step's pairs: chosen and rejected."""
    rng = np.random.default_rng(2)
    return [_example(rng, sizes, sizes.prompt, 2, sizes.completion) for _ in range(sizes.pairs)]


def group(sizes: Sizes) -> Example:
    """One prompt with its group of completions."""
    return _example(np.random.default_rng(3), sizes, sizes.prompt, sizes.group, sizes.completion)


def rewards(sizes: Sizes) -> list[float]:
    """Of the group's completions."""
    return np.random.default_rng(4).random(sizes.group).tolist()


def _example(rng: np.random.Generator, sizes: Sizes, prompt: int, branches: int, completion: int) -> Example:
    ids = rng.integers(FIRST_TOKEN, sizes.vocabulary, (prompt + branches * completion,))
    return example("", ids[:prompt].tolist(), *ids[prompt:].reshape(branches, completion).tolist())
