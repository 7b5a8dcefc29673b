"""The memory plan, and that the shipped configurations fit by it into the machine they are for."""

import msgspec
import pytest

from mlx_email import config
from mlx_email.model import lora
from mlx_email.model.load import load
from mlx_email.model.plan import Shape, training_gb

FITS = 90.0  # GB of 128: what a Mac lets its GPU have, about three quarters, with room for everything else
SHAPES = {
    "qwen2.5-0.5b": Shape(0.494e9, 24, 896, 4864, 14, 2),
    "qwen2.5-7b": Shape(7.62e9, 28, 3584, 18944, 28, 4),
    "llama-3.1-8b": Shape(8.03e9, 32, 4096, 14336, 32, 8),
    "qwen2.5-72b": Shape(72.7e9, 80, 8192, 29568, 64, 8),
    "llama-3.1-70b": Shape(70.6e9, 80, 8192, 28672, 64, 8),
}


def most(name: str, chosen: config.Config) -> float:
    return max(training_gb(SHAPES[name], chosen, stage) for stage in chosen.stages)


@pytest.mark.parametrize("name", SHAPES)
def test_every_stage_fits(name):
    assert most(name, config.load(name)) < FITS


@pytest.mark.parametrize("name", ["qwen2.5-72b", "llama-3.1-70b"])
def test_the_largest_need_checkpointing(name):
    """The planted fault."""
    assert most(name, config.load(name, ["gradient_checkpointing=false"])) > 128


def test_every_configuration_of_a_large_model_is_planned():
    others = {"quickstart", "smollm2"}
    assert set(config.shipped()) == SHAPES.keys() | others


def test_adapters_are_counted_as_they_are():
    base = load("tiny")
    about = base.config
    shape = Shape(
        1.3e6,
        about["num_hidden_layers"],
        about["hidden_size"],
        about["intermediate_size"],
        about["num_attention_heads"],
        about["num_key_value_heads"],
    )
    chosen = config.load("quickstart")
    lora.apply(
        base.model, lora.Lora(chosen.lora.rank, 32.0, 0.0, chosen.lora.targets, layers=chosen.lora.layers), seed=0
    )
    counted = sum(array.size for array in lora.adapter_arrays(base.model).values())
    assert shape.adapter_parameters(chosen) == counted


def test_longer_prompts_and_larger_batches_take_more():
    chosen = config.load("qwen2.5-7b")
    shape, sft = SHAPES["qwen2.5-7b"], chosen.stages[0]
    once = training_gb(shape, chosen, sft)
    assert training_gb(shape, chosen, msgspec.structs.replace(sft, batch_size=8)) > 1.5 * once
    assert training_gb(shape, msgspec.structs.replace(chosen, max_prompt_tokens=2048), sft) > 1.5 * once
