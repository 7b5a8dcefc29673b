"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) in mlx-lm's layers and in mlx-lm's files."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from safetensors import safe_open

from mlx_email import files
from mlx_email.errors import MlxEmailError, ModelError
from mlx_email.model.source import vet_safetensors

ADAPTERS = "adapters.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Lora:
    """What is adapted: W x becomes W x + alpha / rank * B A x."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]  # names of projections, such as q_proj


def apply(model: nn.Module, lora: Lora, seed: int) -> None:
    """Freeze the model and put fresh adapters on every layer's target projections; A random by `seed`, B zero.

    A model that has adapters keeps them: a later stage starts from the one before it.
    Raises ModelError naming the targets that no layer of the model has.
    """
    if any("lora_a" in module for module in model.modules()):
        return
    names = {path for layer in model.layers for path, module in layer.named_modules() if _adaptable(module)}
    keys = sorted(path for path in names if path.rsplit(".", 1)[-1] in lora.targets)
    missing = set(lora.targets) - {key.rsplit(".", 1)[-1] for key in keys}
    if missing:
        known = sorted({path.rsplit(".", 1)[-1] for path in names})
        raise ModelError(f"lora.targets: no projection {', '.join(sorted(missing))}; this model has {', '.join(known)}")
    mx.random.seed(seed)
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), _parameters(lora, keys))


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.QuantizedLinear)


def _parameters(lora: Lora, keys: list[str]) -> dict:
    return {"rank": lora.rank, "scale": lora.alpha / lora.rank, "dropout": lora.dropout, "keys": keys}


def adapter_arrays(model: nn.Module) -> dict[str, mx.array]:
    """The trainable arrays by name: what a checkpoint holds."""
    return dict(tree_flatten(model.trainable_parameters()))


def save(folder: Path, model: nn.Module, lora: Lora, base: str) -> None:
    """Write the adapters as mlx-lm reads them (`mlx_lm.generate --adapter-path`). `folder` exists and is not public
    yet: the file is not written in one step."""
    keys = sorted({name.rsplit(".", 1)[0] for name in adapter_arrays(model)})
    per_layer = sorted({key.split(".", 3)[3] for key in keys})  # model.layers.N.<key>
    config = {
        "fine_tune_type": "lora",
        "num_layers": len(model.layers),
        "lora_parameters": _parameters(lora, per_layer),
        "model": base,
    }
    try:
        mx.save_safetensors(str(folder / ADAPTERS), adapter_arrays(model))
    except RuntimeError as error:  # how mlx reports a full disk
        raise MlxEmailError(f"cannot write {folder / ADAPTERS}: {error}") from error
    files.write_json(folder / ADAPTER_CONFIG, config)


def load(model: nn.Module, folder: Path) -> None:
    """Put the adapters of `folder` on a model, in eval mode.

    Raises ModelError where they are damaged, incomplete, or not LoRA adapters of this model.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        if config["fine_tune_type"] != "lora":
            raise ModelError(f"{folder} holds no LoRA adapters but {config['fine_tune_type']!r}")
        vet_safetensors(folder / ADAPTERS)
        model.freeze()
        load_adapters(model, str(folder))
        arrays = adapter_arrays(model)
        mx.eval(list(arrays.values()))  # mx.load is lazy: read the file now, not after something replaced it
        with safe_open(folder / ADAPTERS, framework="numpy") as held:
            missing = arrays.keys() - set(held.keys())
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{folder}: the adapters cannot be used with this model ({first_line})") from error
    if missing:
        raise ModelError(f"{folder / ADAPTERS} is not complete: it has no {min(missing)}")
    for name, array in arrays.items():
        if not mx.isfinite(array).all().item():
            raise ModelError(f"{folder / ADAPTERS}: {name} holds a number that is not finite")
    model.eval()
