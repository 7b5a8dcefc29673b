"""A run to export: on a quantised random model, with an adapter as small as training leaves one.

The model computes in float32 on the CPU and lies in bfloat16 on the disk, as real ones do.
"""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import small
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import qwen2

from mlx_email import files
from mlx_email.cli import main
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import Row, read_rows
from mlx_email.model import load, lora

SIZES = {**small.SIZES, "hidden_size": 64, "intermediate_size": 64}
SHARE = 0.01  # of the size of the weights, that of the adapter's change


def write_model(folder: Path, *, bits: int | None = 4) -> Path:
    """A random model, in groups of 32, or dense."""
    small.write_model(folder)
    config = {**json.loads((folder / "config.json").read_bytes()), **SIZES}
    mx.random.seed(5)
    model = qwen2.Model(qwen2.ModelArgs(**SIZES, vocab_size=config["vocab_size"], tie_word_embeddings=True))
    # Attention that looks at something: else all messages are the same to it, and every way of merging agrees.
    larger = {"q_proj": 4, "k_proj": 4, "v_proj": 6, "o_proj": 6}
    arrays = dict(tree_flatten(model.parameters()))
    model.load_weights([(name, array * larger.get(name.split(".")[-2], 1)) for name, array in arrays.items()])
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
        config["quantization"] = {"group_size": 32, "bits": bits}
    arrays = {
        name: array.astype(mx.bfloat16) if array.dtype == mx.float32 else array
        for name, array in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_run(folder: Path, table: Path, model: Path) -> Path:
    """A run of one step, whose result is then replaced by a small adapter."""
    short = ("stages.sft.max_steps=1", "stages.sft.validate_every=null", "gate.messages=4")
    assert main([*small.command(table, model, folder, *short), "--stage", "sft"]) == 0
    plant(folder, model)
    return folder


def plant(run: Path, model: Path) -> None:
    """Replace the adapters of a run by random ones that change each matrix by SHARE of its size."""
    base = load.load(str(model)).model
    lora.load(base, run / "sft")
    mx.random.seed(3)
    planted = []
    for name, module in base.named_modules():
        if "lora_a" in module:
            a, b = mx.random.normal(module.lora_a.shape), mx.random.normal(module.lora_b.shape)
            linear = module.linear
            weight = linear.weight
            if isinstance(linear, nn.QuantizedLinear):
                weight = mx.dequantize(weight, linear.scales, linear.biases, linear.group_size, linear.bits)
            change = module.scale * (a @ b)
            planted += [(f"{name}.lora_a", a), (f"{name}.lora_b", b * SHARE * size(weight) / size(change))]
    base.update(tree_unflatten(planted))
    mx.save_safetensors(str(run / "sft/adapters.safetensors"), lora.adapter_arrays(base))
    record = json.loads((run / "sft/stage.json").read_bytes())
    record["sha256"] = files.sha256(run / "sft/adapters.safetensors")
    (run / "sft/stage.json").write_text(json.dumps(record))


def size(array: mx.array) -> mx.array:
    return mx.sqrt((array**2).mean())


def rows(run: Path) -> list[Row]:
    """100 messages that the run was not trained on."""
    return [row for row in read_rows(run / "data" / FEATURES, body_characters=400) if row.split != "train"][:100]
