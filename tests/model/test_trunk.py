"""Layers without adapters are computed once for several policies, and each policy gives what it gives alone."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_email.model import lora, trunk
from mlx_email.model.forward import completion_logps
from mlx_email.model.frozen import Frozen

NAMES = ["llama", "llama-sliding", "llama-4bit", "qwen2", "qwen3", "mamba"]


def policies(model, name, layers):
    """Three policies with adapters on the last `layers` layers only."""
    targets = ("in_proj", "x_proj") if name == "mamba" else ("q_proj", "v_proj", "down_proj")
    lora.apply(model, lora.Lora(4, 8.0, 0.0, targets, layers=layers), seed=1)
    found = []
    for number in range(3):
        mx.random.seed(number)
        found.append(Frozen({key: mx.random.normal(array.shape) for key, array in lora.adapter_arrays(model).items()}))
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", [1, 2])
def test_each_policy_gives_what_it_gives_alone(name, layers, small):
    model = small.bare(name)
    each = policies(model, name, layers)
    batch = small.batch(3)
    alone = []
    for policy in each:
        policy.put_on(model)
        alone.append(np.array(completion_logps(model, *batch, gradient=False)))
    kinds = [type(layer) for layer in model.layers]
    together = trunk.under_each(model, each, lambda: completion_logps(model, *batch, gradient=False))
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, np.array(other))
    assert [type(layer) for layer in model.layers] == kinds
    again = completion_logps(model, *batch, gradient=False)
    np.testing.assert_array_equal(alone[-1], np.array(again))


def test_what_they_share_is_computed_once(small, monkeypatch):
    model = small.bare("llama")
    each = policies(model, "llama", 1)
    computed, kind = [], type(model.layers[0])
    honest = kind.__call__

    def counted(layer, *given, **named):
        computed.append(next(number for number, one in enumerate(model.layers) if one is layer))
        return honest(layer, *given, **named)

    monkeypatch.setattr(kind, "__call__", counted)
    trunk.under_each(model, each, lambda: completion_logps(model, *small.batch(2), gradient=False))
    assert computed.count(0) == 2 and computed.count(1) == 6  # a prompt pass and a branch pass


def test_a_policy_with_adapters_on_all_layers_shares_nothing(small, monkeypatch):
    """The planted fault: taking the first layer for shared, whose adapters differ, gives the first policy's."""
    model = small.bare("llama")
    each = policies(model, "llama", None)
    batch = small.batch(2)

    def compute():
        return completion_logps(model, *batch, gradient=False)

    honest = [np.array(found) for found in trunk.under_each(model, each, compute)]
    monkeypatch.setattr(trunk, "_trunk", lambda model: model.layers[:1])
    wrong = [np.array(found) for found in trunk.under_each(model, each, compute)]
    np.testing.assert_array_equal(honest[0], wrong[0])
    assert np.abs(honest[1] - wrong[1]).max() > 1e-3


def test_layers_are_as_before_where_computing_fails(small):
    model = small.bare("qwen2")
    each = policies(model, "qwen2", 1)
    kinds = [type(layer) for layer in model.layers]
    with pytest.raises(ZeroDivisionError):
        trunk.under_each(model, each, lambda: 1 / 0)
    assert [type(layer) for layer in model.layers] == kinds
