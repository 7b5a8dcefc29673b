"""Merging adapters into their base: several ways, that differ in size and in how much of a small adapter is left.

requantise    the trained layers at the base's own bits: the smallest, but 4 bits round a small adapter away (an update
              of 1% of the weights' size comes back with a cosine of 0.05)
requantise8   the trained layers at 8 bits
bf16          the trained layers unpacked, in bfloat16 or the base's own half type
dense         of a base that is not quantised: its own type
adapter       nothing is merged: the base, and the adapter beside it

Which one is good enough is measured (`mlx_email.exporting`). Arrays are written in the types that the base has on its
disk, and a merged layer computes with what will be written, so that a reloaded folder gives what was measured.
"""

import json
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import save_config, save_model
from safetensors import safe_open

from mlx_email.errors import MlxEmailError
from mlx_email.model.load import Base, QuantizedLinear
from mlx_email.model.source import WEIGHTS

STRATEGIES = ("requantise", "requantise8", "bf16", "dense", "adapter")
FUSED_BITS = 8
FLOATS = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}

Types = defaultdict[str, mx.Dtype | None]  # of arrays on a disk, by name; None: as they compute


def strategies(model: nn.Module) -> tuple[str, ...]:
    """Those that apply to a model with adapters, usually the smallest first."""
    layers = [module.linear for _, module in _adapted(model)]
    packed = [layer for layer in layers if isinstance(layer, nn.QuantizedLinear)]
    if not packed:
        return "dense", "adapter"
    same = all((layer.bits, layer.mode) == (FUSED_BITS, "affine") for layer in packed)
    return "requantise", *(() if same else ("requantise8",)), "bf16", "adapter"


def stored_types(folder: Path) -> Types:
    """The float types of a base's arrays on its disk: on the CPU it computes in wider ones. What mlx-lm gives another
    name when it loads has the type that all have, if they have one."""
    found: dict[str, mx.Dtype | None] = {}
    for path in sorted(folder.glob(WEIGHTS)):
        with safe_open(path, framework="numpy") as held:
            kinds = {name: held.get_slice(name).get_dtype() for name in held.keys()}  # noqa: SIM118 (not a dict)
        found |= {name: FLOATS[kind] for name, kind in kinds.items() if kind in FLOATS}
    common = set(found.values())
    other = common.pop() if len(common) == 1 else None
    return defaultdict(lambda: other, found)


@contextmanager
def merged(base: Base, strategy: str, stored: Types) -> Generator[tuple[dict, Types]]:
    """Let the base's model have its adapters merged into its layers, and give it back its adapters.

    Gives the config.json of the result, and the types in which its arrays are to be written. Nothing but the trained
    layers is there twice.
    """
    config = json.loads(json.dumps(base.config))  # a copy of plain JSON
    types, held, layers = stored.copy(), _adapted(base.model), []
    for name, module in held if strategy != "adapter" else ():
        layer, said = _fused(name, module, strategy, types)
        mx.eval(layer.parameters())  # one dense layer at a time
        layers.append((name, layer))
        for key in ("quantization", "quantization_config") if said is not None else ():
            if key in config:
                config[key][name] = said
    base.model.update_modules(tree_unflatten(layers))
    try:
        yield config, types
    finally:
        base.model.update_modules(tree_unflatten(held if layers else []))


def _adapted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "fuse")]


def _fused(name: str, module: nn.Module, strategy: str, types: Types) -> tuple[nn.Module, dict | bool | None]:
    """A layer with its adapter merged, and what config.json is to say of its quantisation (None: what it says)."""
    linear, dense = module.linear, module.fuse(dequantize=True)
    computes = _computes(module, dense)
    if not isinstance(linear, nn.QuantizedLinear):
        dense.weight = _rounded(dense.weight, types[f"{name}.weight"], computes)
        return dense, None
    on_disk = types[f"{name}.scales"]
    if strategy == "bf16":
        types[f"{name}.weight"] = next((kind for kind in (on_disk, computes) if kind and kind.size == 2), mx.bfloat16)
        dense.weight = _rounded(dense.weight, types[f"{name}.weight"], computes)
        return dense, False
    # DoRA's lengths are float32 and would make the whole matrix so.
    dense.weight = dense.weight.astype(computes)
    if strategy == "requantise":
        layer = nn.QuantizedLinear.from_linear(dense, linear.group_size, linear.bits, mode=linear.mode)
        said = None
    else:
        group_size = max(32, linear.group_size)  # the smallest that 8 bits have; nvfp4 has 16
        layer = nn.QuantizedLinear.from_linear(dense, group_size, FUSED_BITS)
        said = {"group_size": group_size, "bits": FUSED_BITS}
    for key in ("scales", "biases"):
        if key in layer and mx.issubdtype(layer[key].dtype, mx.floating):  # those of nvfp4 are bytes
            layer[key] = _rounded(layer[key], on_disk, computes)
    layer.__class__ = QuantizedLinear  # computes as a loaded one does
    return layer, said


def _computes(module: nn.Module, dense: nn.Linear) -> mx.Dtype:
    """The float type in which a layer with an adapter computes."""
    kind = module.linear.get("scales", module.linear.weight).dtype
    if mx.issubdtype(kind, mx.floating):
        return kind
    # The scales of mxfp4, mxfp8 and nvfp4 are bytes, of which mlx makes bfloat16; the CPU computes in float32.
    return mx.float32 if module.lora_a.dtype == mx.float32 and mx.default_device() == mx.cpu else dense.weight.dtype


def _rounded(array: mx.array, on_disk: mx.Dtype | None, computes: mx.Dtype) -> mx.array:
    """What the array is once it has been written and read."""
    return (array if on_disk is None else array.astype(on_disk)).astype(computes)


def size(model: nn.Module, types: Types) -> int:
    """Bytes of the model's arrays as they will be written."""
    arrays = dict(tree_flatten(model.parameters()))
    return sum(array.size * _type(name, array, types).size for name, array in arrays.items())


def write(folder: Path, model: nn.Module, config: dict, types: Types) -> None:
    """Fill `folder` with weights and config.json of an ordinary mlx-lm model, in the given types."""
    arrays = dict(tree_flatten(model.parameters()))
    narrowed = [(name, array.astype(_type(name, array, types))) for name, array in arrays.items()]
    model.update(tree_unflatten(narrowed))
    try:
        save_model(folder, model)
    except RuntimeError as error:  # how mlx reports a full disk
        raise MlxEmailError(f"cannot write {folder}: {error}") from error
    finally:
        model.update(tree_unflatten(list(arrays.items())))
    save_config(config, config_path=folder / "config.json")


def _type(name: str, array: mx.array, types: Types) -> mx.Dtype:
    wanted = types[name]
    return wanted if wanted is not None and array.dtype in FLOATS.values() else array.dtype
