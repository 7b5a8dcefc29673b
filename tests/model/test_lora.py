"""Adapters: mlx-lm's layers with our dropout, LoRA and DoRA, written to files that say what is in them."""

import json
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters

from mlx_email.errors import ModelError
from mlx_email.export import fuse
from mlx_email.model import checkpointing, dropout, lora
from mlx_email.model.forward import completion_logps
from mlx_email.model.frozen import Frozen
from mlx_email.model.load import Base

TARGETS = ("q_proj", "v_proj", "down_proj")
PLAIN, DORA = (lora.Lora(4, 8.0, 0.1, TARGETS, dora) for dora in (False, True))
IDS = mx.array([[1, 5, 3, 2, 9, 11]])


def changed(model: nn.Module) -> nn.Module:
    """Adapters that differ from those of `small.build`, as after some training."""
    arrays = lora.adapter_arrays(model).items()
    model.load_weights([(name, array * 1.1 + 0.01) for name, array in arrays], strict=False)
    return model


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["llama", "llama-4bit", "mamba"])
def test_adapters_are_saved_and_come_back(name, dora, small, tmp_path):
    model = changed(small.build(name, dropout=0.1, dora=dora))
    targets = ("in_proj", "x_proj") if name == "mamba" else TARGETS
    lora.save(tmp_path, model, lora.Lora(4, 8.0, 0.1, targets, dora), name)
    config = json.loads((tmp_path / lora.ADAPTER_CONFIG).read_text())
    assert config["fine_tune_type"] == ("dora" if dora else "lora")
    inside = {
        "q_proj": "self_attn.",
        "v_proj": "self_attn.",
        "down_proj": "mlp.",
        "in_proj": "mixer.",
        "x_proj": "mixer.",
    }
    assert config["lora_parameters"]["keys"] == sorted(inside[target] + target for target in targets)

    ours, theirs = small.bare(name), small.bare(name)
    lora.load(ours, tmp_path)
    assert {layer.p for layer in dropout.active(ours)} == {0.1}
    np.testing.assert_allclose(ours(IDS), model.eval()(IDS), atol=1e-6)
    load_adapters(theirs, str(tmp_path))  # as `mlx_lm.generate --adapter-path` does
    np.testing.assert_allclose(theirs.eval()(IDS), model(IDS), atol=1e-6)
    kinds = {name.rsplit(".", 1)[-1] for name in lora.adapter_arrays(ours)}
    assert kinds == ({"lora_a", "lora_b", "m"} if dora else {"lora_a", "lora_b"})


def test_a_dora_file_without_its_lengths_is_not_complete(small, tmp_path):
    model = small.build("llama", dora=True)
    lora.save(tmp_path, model, DORA, "llama")
    arrays = {name: array for name, array in lora.adapter_arrays(model).items() if not name.endswith(".m")}
    (tmp_path / lora.ADAPTERS).unlink()
    mx.save_safetensors(str(tmp_path / lora.ADAPTERS), arrays)
    with pytest.raises(ModelError, match=r"not complete: it has no .*\.m"):
        lora.load(small.bare("llama"), tmp_path)


@pytest.mark.parametrize("settings", [PLAIN, DORA])
def test_fresh_adapters_change_nothing_and_dropout_is_ours(settings, small):
    model = small.bare("llama-4bit")
    before = np.array(model(IDS))
    lora.apply(model, settings, seed=3)
    np.testing.assert_allclose(model(IDS), before, atol=1e-5)
    adapters = [module for module in model.modules() if "lora_a" in module]
    assert len(adapters) == 6 and all(type(module.dropout) is dropout.Dropout for module in adapters)
    assert not [module for module in model.modules() if isinstance(module, nn.Dropout)]
    trained = {name.rsplit(".", 1)[-1] for name, _ in tree_flatten(model.trainable_parameters())}
    assert trained == ({"lora_a", "lora_b", "m"} if settings.dora else {"lora_a", "lora_b"})


@pytest.mark.parametrize("settings", [PLAIN, DORA])
def test_a_later_stage_keeps_the_adapters_and_takes_its_own_dropout(settings, small):
    model = changed(small.build("llama", dropout=0.1, dora=settings.dora))
    before = {name: np.array(array) for name, array in lora.adapter_arrays(model).items()}
    lora.apply(model, lora.Lora(4, 8.0, 0.0, TARGETS, settings.dora), seed=99)
    after = lora.adapter_arrays(model)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert dropout.active(model) == []


@pytest.mark.parametrize(
    "other",
    [lora.Lora(4, 8.0, 0.1, TARGETS, dora=True), lora.Lora(8, 16.0, 0.1, TARGETS), lora.Lora(4, 4.0, 0.1, TARGETS)],
)
def test_adapters_of_another_kind_are_not_taken_for_what_is_asked(other, small):
    with pytest.raises(ModelError, match=r"adapters with rank=4, alpha=8, dora=False; .* rank="):
        lora.apply(small.build("llama"), other, seed=0)


# DoRA


def by_hand(layer, x: mx.array) -> mx.array:
    """Section 4.3 of the paper, from the dense matrix: m * (W + s B A) x / ||W + s B A||, the lengths a constant."""
    linear = layer.linear
    weight = linear.weight
    if isinstance(linear, nn.QuantizedLinear):
        weight = mx.dequantize(weight, linear.scales, linear.biases, group_size=linear.group_size, bits=linear.bits)
    adapted = weight + layer.scale * (layer.lora_a @ layer.lora_b).T
    lengths = mx.stop_gradient(mx.sqrt((adapted * adapted).sum(axis=1)))
    return x @ (adapted * (layer.m / lengths)[:, None]).T


@pytest.mark.parametrize("name", ["llama", "llama-4bit"])
def test_dora_s_gradients_are_the_paper_s(name, small):
    layer = changed(small.build(name, dora=True)).model.layers[0].self_attn.q_proj
    x, weights = (mx.random.normal((5, 32), key=mx.random.key(seed)) for seed in (1, 2))

    def gradients(call):
        def total(arrays, x):
            layer.update(arrays)
            return (call(x) * weights).sum()

        (value, (arrays, slope)) = mx.value_and_grad(total, argnums=(0, 1))(layer.trainable_parameters(), x)
        return value, dict(tree_flatten(arrays)) | {"x": slope}

    value, ours = gradients(layer)
    expected, theirs = gradients(lambda x: by_hand(layer, x))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ours.keys() == {"lora_a", "lora_b", "m", "x"}
    assert small.apart(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", ["llama", "llama-4bit", "mamba"])
def test_dora_through_the_forward(name, small):
    model, inputs = changed(small.build(name, dora=True)).train(), small.batch(2)
    theirs, their_gradients = small.gradients(model, small.own_logps, inputs)
    for switch in (checkpointing.remove, checkpointing.apply):
        switch(model)
        ours, our_gradients = small.gradients(model, completion_logps, inputs)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert small.apart(our_gradients, their_gradients) < 1e-5


@pytest.mark.parametrize("bits", [3, 6])
def test_dora_on_bits_that_mlx_lm_cannot_count_is_refused(bits, small):
    model = small.bare("llama")
    nn.quantize(model, group_size=32, bits=bits)
    with pytest.raises(ModelError, match="3, 5 or 6 bits"):
        lora.apply(model, DORA, seed=0)
    lora.apply(model, PLAIN, seed=0)
    assert mx.isfinite(model(IDS)).all().item()


# Fusing


@contextmanager
def fused(model: nn.Module, config: dict, strategy: str, stored: mx.Dtype | None = None):
    """The model with its adapters merged; gives config.json and the types to write, `stored` being the base's."""
    types = defaultdict(lambda: stored)
    with fuse.merged(Base(model, SimpleNamespace(), config, Path()), strategy, types) as found:
        assert not [module for module in model.modules() if "lora_a" in module]
        yield found


@pytest.mark.parametrize("dora", [False, True])
def test_fused_it_computes_the_same_and_comes_back(dora, small):
    model = changed(small.build("llama", dora=dora))
    before, held = np.array(model(IDS)), lora.adapter_arrays(model)
    with fused(model, {"model_type": "llama"}, "dense") as (config, _):
        assert config == {"model_type": "llama"}
        np.testing.assert_allclose(model(IDS), before, atol=1e-5)
    now = lora.adapter_arrays(model)
    assert now.keys() == held.keys() and all(now[name] is held[name] for name in now)
    np.testing.assert_array_equal(model(IDS), before)


@pytest.mark.parametrize("dora", [False, True])
def test_fused_into_a_quantised_base_it_keeps_8_bits(dora, small):
    model = changed(small.build("llama-4bit", dora=dora))
    plain, before = np.array(small.bare("llama-4bit")(IDS)), np.array(model(IDS))
    effect = np.abs(plain - before).max()
    with fused(model, {"quantization": {"group_size": 32, "bits": 4}}, "requantise8") as (config, _):
        assert config["quantization"]["model.layers.0.self_attn.q_proj"] == {"group_size": 32, "bits": 8}
        assert len(config["quantization"]) == 2 + 6
        assert np.abs(np.array(model(IDS)) - before).max() < 0.1 * effect
    with fused(model, {"quantization": {"group_size": 32, "bits": 4}}, "bf16") as (config, types):
        assert config["quantization"]["model.layers.0.self_attn.q_proj"] is False
        assert types["model.layers.0.self_attn.q_proj.weight"] == mx.bfloat16
        assert np.abs(np.array(model(IDS)) - before).max() < 0.1 * effect
    with fused(model, {"quantization": {"group_size": 32, "bits": 4}}, "requantise") as (config, _):
        assert config == {"quantization": {"group_size": 32, "bits": 4}}
        assert np.abs(np.array(model(IDS)) - before).max() > 0.1 * effect  # rounded away: the fault to be measured


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["llama", "llama-4bit"])
def test_fused_arrays_keep_the_type_of_the_base(name, dora, small):
    """On Metal a base computes in half precision; DoRA's lengths are float32."""
    model = small.build(name, dora=dora)
    floats = [(key, array) for key, array in tree_flatten(model.parameters()) if array.dtype == mx.float32]
    halved = [(key, array.astype(mx.bfloat16)) for key, array in floats if not key.endswith(("lora_a", "lora_b", "m"))]
    model.load_weights(halved, strict=False)
    for strategy in fuse.strategies(model)[:-1]:
        with fused(model, {}, strategy):
            assert {array.dtype for _, array in tree_flatten(model.parameters())} <= {mx.bfloat16, mx.uint32}


@pytest.mark.parametrize("name", ["llama", "llama-4bit"])
def test_a_fused_model_computes_with_what_is_written(name, small, tmp_path):
    """A base in half precision that is computed in a wider type, as on the CPU: the files are in half precision again,
    and hold the very numbers that were measured."""
    model = changed(small.build(name))
    floats = [(key, array) for key, array in tree_flatten(model.parameters()) if array.dtype == mx.float32]
    kept = [(key, array.astype(mx.bfloat16).astype(mx.float32)) for key, array in floats if "lora_" not in key]
    model.load_weights(kept, strict=False)
    for strategy in fuse.strategies(model)[:-1]:
        with fused(model, {}, strategy, mx.bfloat16) as (config, types):
            computed = dict(tree_flatten(model.parameters()))
            fuse.write(tmp_path / strategy, model, config, types)
            assert dict(tree_flatten(model.parameters())).keys() == computed.keys()
            size = fuse.size(model, types)
        written = mx.load(str(tmp_path / strategy / "model.safetensors"))
        assert {array.dtype for array in written.values()} <= {mx.bfloat16, mx.uint32}
        assert size == sum(array.nbytes for array in written.values())
        assert computed.keys() == written.keys()
        for key, array in computed.items():
            assert mx.array_equal(array, written[key].astype(array.dtype)).item(), key


def test_idle_adapters_are_bypassed_and_come_back(small, monkeypatch):
    """As a reference policy fresh adapters are the base itself: the same numbers, without running them."""
    model = small.build("llama")
    prompts, lengths, completions, mask = small.batch(2)
    arrays = dict(prompts=prompts, prompt_lengths=lengths, completions=completions, completion_mask=mask)
    policy = Frozen.of(model)
    fresh = Frozen({n: 0 * a if n.endswith("lora_b") else a for n, a in policy.arrays.items()})
    assert fresh.idle and not policy.idle
    without = fresh.logps(model, arrays)
    monkeypatch.setattr(Frozen, "idle", False)
    np.testing.assert_allclose(without, fresh.logps(model, arrays), atol=1e-6)
    np.testing.assert_allclose(without, completion_logps(small.bare("llama"), *arrays.values()), atol=1e-6)
    now = lora.adapter_arrays(model)
    assert now.keys() == policy.arrays.keys() and all(now[name] is policy.arrays[name] for name in now)
    assert mx.abs(policy.logps(model, arrays) - without).max().item() > 1e-3


def test_dora_s_adapters_are_never_idle(small):
    model = small.build("llama", dora=True)
    arrays = Frozen.of(model).arrays
    assert not Frozen({n: 0 * a if n.endswith("lora_b") else a for n, a in arrays.items()}).idle


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_the_last_layers_only(dora, small, tmp_path):
    """The layers before have none, and the file says so as mlx-lm reads it."""
    last = lora.Lora(4, 8.0, 0.0, TARGETS, dora, layers=1)
    model = small.bare("llama")
    lora.apply(model, last, seed=3)
    assert {name.split(".")[2] for name in lora.adapter_arrays(model)} == {str(len(model.layers) - 1)}
    assert lora.adapter_arrays(changed(model)).keys() == dict(tree_flatten(model.trainable_parameters())).keys()
    lora.save(tmp_path, model, last, "llama")
    assert json.loads((tmp_path / lora.ADAPTER_CONFIG).read_text())["num_layers"] == 1
    ours, theirs = small.bare("llama"), small.bare("llama")
    lora.load(ours, tmp_path)
    load_adapters(theirs, str(tmp_path))
    for loaded in (ours, theirs.eval() or theirs):
        np.testing.assert_allclose(loaded(IDS), model.eval()(IDS), atol=1e-6)


def test_more_layers_than_there_are_is_refused(small):
    with pytest.raises(ModelError, match=r"lora\.layers=99: this model has"):
        lora.apply(small.bare("llama"), lora.Lora(4, 8.0, 0.0, TARGETS, layers=99), seed=0)
