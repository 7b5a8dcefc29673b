"""Low-rank adapters in mlx-lm's layers and in mlx-lm's files: LoRA (Hu et al. 2021, arXiv 2106.09685) and DoRA (Liu et
al. 2024, arXiv 2402.09353)."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from safetensors import safe_open

from mlx_email import files
from mlx_email.errors import MlxEmailError, ModelError
from mlx_email.model.dropout import Dropout
from mlx_email.model.source import vet_safetensors

ADAPTERS = "adapters.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
KINDS = ("lora", "dora")  # what mlx-lm's files call them
ARRAYS = ("lora_a", "lora_b", "m")  # of an adapter; m is DoRA's


@dataclass(frozen=True)
class Lora:
    """What is adapted: W x becomes W' x with W' = W + alpha / rank * B A.

    With `dora` the rows of W' are brought to trained lengths m, at first those of W: W' x becomes m * (W' x) / ||W'||,
    where the gradient takes the lengths ||W'|| for constants (section 4.3 of the paper). On a quantised base mlx-lm's
    DoRA layer unpacks W and keeps it until the backward pass, so it wants `checkpointing`.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]  # names of projections, such as q_proj
    dora: bool = False
    layers: int | None = None  # that have adapters, the last ones; None: all


def apply(model: nn.Module, lora: Lora, seed: int) -> None:
    """Freeze the model and put fresh adapters on its layers' target projections; A random by `seed`, B zero.

    Layers before the first that has some need no backward pass.

    A model that has adapters keeps them, with this `lora`'s dropout: a later stage starts from the one before it.
    Raises ModelError naming the targets that no layer of the model has, or in what the adapters it has differ.
    """
    if present := _adapters(model):
        _same_kind(present[0][1], lora.rank, lora.alpha / lora.rank, lora.dora)
        _set_dropout(model, lora.dropout)
        return
    projections = [found for layer in model.layers for found in layer.named_modules() if _adaptable(found[1])]
    names = {path for path, _ in projections}
    keys = sorted(path for path in names if path.rsplit(".", 1)[-1] in lora.targets)
    if (lora.layers or 0) > len(model.layers):
        raise ModelError(f"lora.layers={lora.layers}: this model has {len(model.layers)} layers")
    missing = set(lora.targets) - {key.rsplit(".", 1)[-1] for key in keys}
    if missing:
        known = sorted({path.rsplit(".", 1)[-1] for path in names})
        raise ModelError(f"lora.targets: no projection {', '.join(sorted(missing))}; this model has {', '.join(known)}")
    bits = {module.bits for path, module in projections if path in keys and isinstance(module, nn.QuantizedLinear)}
    if lora.dora and any(32 % width for width in bits):
        # mlx-lm reckons with 32 // bits packed numbers a word, and makes A of a wrong shape.
        raise ModelError("lora.dora: not on a base of 3, 5 or 6 bits; take one of 4 or 8 bits, or dora=false")
    mx.random.seed(seed)
    model.freeze()
    linear_to_lora_layers(model, lora.layers or len(model.layers), _parameters(lora, keys), use_dora=lora.dora)
    _set_dropout(model, lora.dropout)


def _adapters(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The adapter modules of a model, each with its path inside its layer."""
    return [found for layer in model.layers for found in layer.named_modules() if "lora_a" in found[1]]


def same_kind(model: nn.Module, config: dict[str, Any]) -> None:
    """ModelError where a model's adapters are not what an adapter_config.json says: the same arrays mean something else
    under another scale."""
    said = config["lora_parameters"]
    _same_kind(_adapters(model)[0][1], said["rank"], said["scale"], config["fine_tune_type"] == KINDS[True])


def _same_kind(adapter: nn.Module, rank: int, scale: float, dora: bool) -> None:
    """Refuse to go on with adapters that are something else: they would be saved under a false description."""
    has = adapter.lora_a.shape[1], adapter.scale, isinstance(adapter, DoRALinear)
    if has != (rank, scale, dora):
        raise ModelError(
            f"lora: this model has adapters with rank={has[0]}, alpha={has[1] * has[0]:g}, dora={has[2]}; "
            f"they cannot go on with rank={rank}, alpha={scale * rank:g}, dora={dora}"
        )


def _set_dropout(model: nn.Module, p: float) -> None:
    for _, module in _adapters(model):
        module.dropout = Dropout(p).train(module.training)


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.QuantizedLinear)


def _parameters(lora: Lora, keys: list[str]) -> dict:
    return {"rank": lora.rank, "scale": lora.alpha / lora.rank, "dropout": lora.dropout, "keys": keys}


def adapter_arrays(model: nn.Module) -> dict[str, mx.array]:
    """The adapters' arrays by name, whether or not they are being trained: what a checkpoint holds."""
    names = {f"{path}.{key}" for path, module in _all_adapters(model) for key in ARRAYS if key in module}
    return {name: array for name, array in dict(tree_flatten(model.parameters())).items() if name in names}


def train_last_layers(model: nn.Module, count: int | None) -> None:
    """Train the adapters of the last `count` layers only; None: of all."""
    layers = len(model.layers)
    for number, layer in enumerate(model.layers):
        for _, module in layer.named_modules():
            if "lora_a" in module:
                train = count is None or number >= layers - count
                keys = [key for key in ARRAYS if key in module]
                (module.unfreeze if train else module.freeze)(keys=keys, recurse=False)


@contextmanager
def bypassed(model: nn.Module) -> Generator[None]:
    """Let the model run as the base alone, without its adapters."""
    held = _all_adapters(model)
    model.update_modules(tree_unflatten([(path, module.linear) for path, module in held]))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(held))


def remove(model: nn.Module) -> None:
    """Take the adapters off a model: it is the base alone again, whose arrays nothing has changed."""
    model.update_modules(tree_unflatten([(path, module.linear) for path, module in _all_adapters(model)]))


def _all_adapters(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The adapter modules of a model, each with its path in the model."""
    return [found for found in model.named_modules() if "lora_a" in found[1]]


def save(folder: Path, model: nn.Module, lora: Lora, base: str) -> None:
    """Write the adapters as mlx-lm reads them (`mlx_lm.generate --adapter-path`). `folder` exists and is not public
    yet: the file is not written in one step."""
    config = {
        "fine_tune_type": KINDS[lora.dora],
        "num_layers": lora.layers or len(model.layers),
        "lora_parameters": _parameters(lora, sorted({path for path, _ in _adapters(model)})),
        "model": base,
    }
    try:
        mx.save_safetensors(str(folder / ADAPTERS), adapter_arrays(model))
    except RuntimeError as error:  # how mlx reports a full disk
        raise MlxEmailError(f"cannot write {folder / ADAPTERS}: {error}") from error
    files.write_json(folder / ADAPTER_CONFIG, config)


def load(model: nn.Module, folder: Path) -> None:
    """Put the adapters of `folder` on a model, in eval mode.

    Raises ModelError where they are damaged, incomplete, or not LoRA or DoRA adapters of this model.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        if config["fine_tune_type"] not in KINDS:
            raise ModelError(f"{folder} holds no LoRA adapters but {config['fine_tune_type']!r}")
        vet_safetensors(folder / ADAPTERS)
        model.freeze()
        load_adapters(model, str(folder))
        _set_dropout(model, float(config["lora_parameters"]["dropout"]))
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
