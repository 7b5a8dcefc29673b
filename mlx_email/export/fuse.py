"""Merging adapters into their base, and how much the merged model still agrees with them.

Requantising to 4 bits would round a small adapter away (an update of 1% of the weights' size comes back with a cosine
of 0.05), so the layers that were trained are stored with 8 bits and everything else stays as it was.
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.utils import save_config, save_model

from mlx_email.errors import MlxEmailError
from mlx_email.model.load import Base

FUSED_BITS = 8
# Copied as they are: writing a tokenizer anew may change it.
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.jinja")


def fuse(base: Base) -> dict:
    """Merge the adapters on the base's model into it, in place; gives the config.json of the result.

    A trained layer of a quantised base becomes an 8-bit one, a dense one stays dense.
    """
    config = json.loads(json.dumps(base.config))  # a copy of plain JSON
    fused: list[tuple[str, nn.Module]] = []
    for name, module in base.model.named_modules():
        if not hasattr(module, "fuse"):
            continue
        dense = module.fuse(dequantize=True)
        # DoRA's lengths are float32 and would make the whole matrix so.
        dense.weight = dense.weight.astype(module.linear.get("scales", module.linear.weight).dtype)
        if not isinstance(module.linear, nn.QuantizedLinear):
            fused.append((name, dense))
            continue
        group_size = max(32, module.linear.group_size)  # the smallest that 8 bits have; nvfp4 has 16
        fused.append((name, nn.QuantizedLinear.from_linear(dense, group_size, FUSED_BITS)))
        for key in ("quantization", "quantization_config"):
            if key in config:
                config[key][name] = {"group_size": group_size, "bits": FUSED_BITS}
    base.model.update_modules(tree_unflatten(fused))
    mx.eval(base.model.parameters())
    return config


def write(folder: Path, base: Base, config: dict) -> None:
    """Fill `folder` with the base's model as an ordinary mlx-lm model.

    Arrays keep the type they compute in here: float32 on the CPU backend, where half precision is 1,000 times slower.
    """
    try:
        save_model(folder, base.model)
    except RuntimeError as error:  # how mlx reports a full disk
        raise MlxEmailError(f"cannot write {folder}: {error}") from error
    save_config(config, config_path=folder / "config.json")
    for pattern in (*TOKENIZER_FILES, "generation_config.json"):
        for path in base.folder.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def agreement(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How alike two sets of action probabilities (N, 5) are: share of equal actions, mean and largest difference."""
    return {
        "messages": len(before),
        "same_action": float(np.mean(before.argmax(axis=1) == after.argmax(axis=1))),
        "mean_difference": float(np.abs(before - after).mean()),
        "largest_difference": float(np.abs(before - after).max()),
    }
