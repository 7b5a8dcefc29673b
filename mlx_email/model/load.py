"""Weights from disk to a model that is ready to compute here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model, load_tokenizer

from mlx_email.errors import ModelError
from mlx_email.kernels import quantized
from mlx_email.model import forward, source, substitutes


@dataclass(frozen=True)
class Base:
    """A base model: loaded once a process, shared by everything that needs it."""

    model: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]  # config.json
    folder: Path


class QuantizedLinear(nn.QuantizedLinear):
    """mlx's layer, its product run the way that is fastest here (`kernels.quantized`). Same arrays, same files."""

    def __call__(self, x: mx.array) -> mx.array:
        y = quantized.matmul(x, quantized.packed(self))
        return y + self.bias if "bias" in self else y


def load(name: str, *, offline: bool = False) -> Base:
    """Load a model by name (`tiny`, `smollm2`, a folder, a Hugging Face id), frozen and in eval mode.

    Weights are memory-mapped and read when first used. Raises ModelError where it cannot be found or used.
    """
    folder = source.resolve(name, offline=offline)
    try:
        model, config = load_model(folder, lazy=True)
        tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
        prepare(model)
        agrees = forward.agrees_with_model(model)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except Exception as error:  # a config.json can be wrong in as many ways as there are model classes
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(f"{folder} cannot be loaded as a model: {type(error).__name__} {first_line}") from error
    if not agrees:
        raise ModelError(f"{folder}: {config['model_type']} models do more after their head than is supported here")
    return Base(model, tokenizer, config, folder)


def prepare(model: nn.Module) -> None:
    """Make a freshly loaded model compute well on this device, in place, without unpacking it."""
    model.freeze()
    model.eval()
    if mx.default_device() == mx.Device(mx.cpu):
        # Half precision is about 1,000 times slower than float32 there.
        model.update(tree_map(_widened, model.parameters()))
        substitutes.install(model)
    for module in model.modules():
        if type(module) is nn.QuantizedLinear:
            module.__class__ = QuantizedLinear  # the arrays stay where they are; only the product changes


def _widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if array.dtype in (mx.float16, mx.bfloat16) else array
