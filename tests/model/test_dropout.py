"""Dropout is a pure function of its key: the same eagerly, compiled and computed again; other passes draw otherwise."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_email.model import dropout
from mlx_email.model.dropout import Dropout
from mlx_email.model.forward import completion_logps

X = mx.random.normal((64, 32), key=mx.random.key(1))


def net(p: float = 0.25) -> nn.Module:
    return nn.Sequential(Dropout(p), nn.Identity(), Dropout(p)).train()


def drawn(model: nn.Module, key: mx.array | None = None) -> np.ndarray:
    dropout.rekey(model, key)
    return np.array(model(X))


def test_the_key_decides():
    model = net()
    first, second, other = (drawn(model, mx.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    mx.random.seed(0)
    np.testing.assert_array_equal(drawn(model, mx.random.key(3)), first)  # whatever the global state is


def test_each_dropout_and_each_pass_draws_for_itself():
    model = nn.Sequential(Dropout(0.5), Dropout(0.5)).train()
    dropout.rekey(model, mx.random.key(0))
    masks = []
    for _ in range(3):
        masks += [np.array(layer(X)) != 0 for layer in model.layers]
        dropout.advance(model)
    alike = [np.mean(masks[a] == masks[b]) for a in range(6) for b in range(a)]
    np.testing.assert_allclose(alike, 0.5, atol=0.05)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_share_and_the_scale(p):
    layer = Dropout(p).train()
    dropout.rekey(layer, mx.random.key(2))
    ours = np.array(layer(mx.ones((400, 400))))
    np.testing.assert_allclose(np.unique(ours), [0.0, 1 / (1 - p)], rtol=1e-6)
    assert np.mean(ours == 0) == pytest.approx(p, abs=0.01)
    assert layer(X.astype(mx.bfloat16)).dtype == mx.bfloat16


def test_it_equals_mlx_s_own_without_a_key():
    mx.random.seed(9)
    ours = np.array(Dropout(0.3).train()(X))
    mx.random.seed(9)
    np.testing.assert_allclose(ours, nn.Dropout(0.3).train()(X), rtol=1e-6)


def test_nothing_is_dropped_in_eval_mode_or_at_zero():
    assert net().eval()(X) is X
    assert net(0.0)(X) is X
    dropout.rekey(net(0.0), mx.random.key(0))
    with pytest.raises(ValueError, match=r"1\.0"):
        Dropout(1.0)


def test_the_key_is_no_part_of_the_model():
    model = net()
    before = model.state.copy()
    dropout.rekey(model, mx.random.key(0))
    assert model.parameters() == {"layers": [{}, {}, {}]} and model.state == before


def test_compiled_it_is_the_same_and_leaves_nothing_that_matters():
    model = net()

    def call(x, key):
        dropout.rekey(model, key)
        y = model(x)
        dropout.advance(model)
        return y + model(x)

    traced = mx.compile(call, inputs=[model.state], outputs=[model.state])
    key = mx.random.key(5)
    for _ in range(2):
        np.testing.assert_allclose(traced(X, key), call(X, key), rtol=1e-6)
    assert not np.array_equal(traced(X, key), traced(X, mx.random.key(6)))
    fresh = mx.compile(lambda x, key: call(x, key))
    fresh(X, key)  # its placeholders stay in the layers until the next key, and say so
    with pytest.raises(RuntimeError):
        mx.eval(model(X))
    np.testing.assert_array_equal(drawn(model, key), drawn(model, key))
    fresh(X, mx.random.key(8))
    assert np.isfinite(drawn(model, None)).all()
    assert model.eval()(X) is X


def test_the_keys_of_a_computation_that_is_run_again():
    layer = Dropout(0.5).train()
    dropout.rekey(layer, mx.random.key(0))
    (key,) = [found.mask_key() for found in dropout.active(layer)]
    first = np.array(layer(X))
    dropout.rekey(layer, None)
    with dropout.drawing([layer], [key]):
        np.testing.assert_array_equal(layer(X), first)
    assert not np.array_equal(layer(X), first)
    mx.random.seed(0)
    assert not mx.array_equal(layer.mask_key(), layer.mask_key()).item()


def test_the_two_passes_of_the_forward_draw_otherwise(small, monkeypatch):
    """A prompt of two tokens, whose last begins the branch: two passes of one token, without `advance` the same."""
    model = small.build("llama", dropout=0.5).train()
    inputs = mx.full((1, 2), 7), mx.array([2]), mx.full((1, 1, 1), 7), mx.ones((1, 1, 1))
    seen = []
    honest = Dropout.__call__

    def watched(self, x):
        seen.append(honest(self, mx.ones(x.shape)))
        return honest(self, x)

    monkeypatch.setattr(Dropout, "__call__", watched)

    def alike() -> int:
        seen.clear()
        dropout.rekey(model, mx.random.key(1))
        completion_logps(model, *inputs)
        half = len(seen) // 2
        assert half == len(dropout.active(model))
        return sum(mx.array_equal(a, b).item() for a, b in zip(seen[:half], seen[half:], strict=True))

    assert alike() == 0
    monkeypatch.setattr(dropout, "advance", lambda model: None)
    assert alike() == len(dropout.active(model))


def test_gradients_are_those_of_the_masks_that_were_drawn():
    layer = Dropout(0.3).train()
    dropout.rekey(layer, mx.random.key(0))
    slope = mx.grad(lambda x: (layer(x) * X).sum())(X)
    np.testing.assert_allclose(slope, np.array(layer(mx.ones(X.shape)) * X), rtol=1e-6)
