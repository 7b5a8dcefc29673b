"""linear_logprob equals the plain log-softmax, values and gradients, for every kind of head."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_email.kernels import logprob
from mlx_email.kernels.logprob import linear_logprob

HEADS = {
    "linear": lambda: nn.Linear(64, 300, bias=False),
    "linear with bias": lambda: nn.Linear(64, 300),
    "embedding": lambda: nn.Embedding(300, 64),
    "4-bit linear": lambda: nn.Linear(64, 300, bias=False).to_quantized(32, 4),
    "8-bit embedding": lambda: nn.Embedding(300, 64).to_quantized(64, 8),
}


def plain(hidden: mx.array, head: nn.Module, targets: mx.array) -> mx.array:
    logits = head.as_linear(hidden) if hasattr(head, "as_linear") else head(hidden)
    logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.take_along_axis(logps, targets[:, None], axis=-1)[:, 0]


def inputs(rows: int) -> tuple[mx.array, mx.array, mx.array]:
    mx.random.seed(rows)
    return mx.random.normal((rows, 64)), mx.random.randint(0, 300, (rows,)), mx.random.normal((rows,))


def gradients(function, hidden, head, targets, weights) -> tuple[mx.array, mx.array]:
    return mx.value_and_grad(lambda h: (function(h, head, targets) * weights).sum())(hidden)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_equals_log_softmax(kind, rows, monkeypatch):
    monkeypatch.setattr(logprob, "CHUNK_ELEMENTS", 300 * 16)  # so that 50 rows are several chunks and a rest
    head = HEADS[kind]()
    hidden, targets, weights = inputs(rows)
    np.testing.assert_allclose(linear_logprob(hidden, head, targets), plain(hidden, head, targets), rtol=1e-5)
    _, ours = gradients(linear_logprob, hidden, head, targets, weights)
    _, theirs = gradients(plain, hidden, head, targets, weights)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_planted_fault_is_seen(monkeypatch):
    """Without the product of the error with the head there is no gradient."""
    honest = logprob._projection
    monkeypatch.setattr(logprob, "_projection", lambda *a: honest(*a)._replace(back=lambda p: mx.zeros((len(p), 64))))
    head = HEADS["linear"]()
    hidden, targets, weights = inputs(8)
    _, ours = gradients(linear_logprob, hidden, head, targets, weights)
    _, theirs = gradients(plain, hidden, head, targets, weights)
    assert not np.allclose(ours, theirs, rtol=1e-2)


def test_values_only_are_the_same_values():
    hidden, targets, _ = inputs(9)
    head = HEADS["embedding"]()
    np.testing.assert_array_equal(
        linear_logprob(hidden, head, targets, gradient=False), linear_logprob(hidden, head, targets)
    )


def test_large_logits_stay_finite():
    head = nn.Linear(1, 2, bias=False)
    head.weight = mx.array([[1e4], [-1e4]])
    logps = linear_logprob(mx.array([[1.0], [1.0]]), head, mx.array([0, 1]))
    np.testing.assert_allclose(logps, [0.0, -2e4])


def test_no_rows():
    assert linear_logprob(mx.zeros((0, 64)), HEADS["linear"](), mx.zeros((0,), mx.int32)).shape == (0,)


def test_a_confident_token_keeps_its_gradient_in_half_precision():
    """At p = 0.9988 the error 1 - p is far below the spacing of bfloat16 near 1: it must not be formed there."""
    mx.random.seed(1)
    head = nn.Linear(64, 300, bias=False)
    hidden = mx.random.normal((20, 64))
    targets = mx.argmax(head(hidden), axis=-1)
    strength = mx.array(np.linspace(8, 14, 20).astype(np.float32))[:, None]
    hidden = hidden * strength
    exact = mx.grad(lambda h: linear_logprob(h, head, targets).sum())(hidden)
    assert mx.exp(linear_logprob(hidden, head, targets)).max().item() > 0.99
    head.weight = head.weight.astype(mx.bfloat16)
    half = mx.grad(lambda h: linear_logprob(h, head, targets).sum())(hidden.astype(mx.bfloat16)).astype(mx.float32)
    error = mx.linalg.norm(half - exact, axis=-1) / mx.linalg.norm(exact, axis=-1)
    assert np.median(np.array(error)) < 0.2


@pytest.mark.parametrize("gradient", [True, False])
def test_memory_is_that_of_some_chunks_not_of_all_logits(gradient, monkeypatch):
    monkeypatch.setattr(logprob, "CHUNK_ELEMENTS", 1 << 18)
    head = nn.Linear(8, 512, bias=False)
    hidden, targets = mx.random.normal((32_768, 8)), mx.zeros((32_768,), mx.int32)
    mx.eval(head.weight, hidden, targets)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(linear_logprob(hidden, head, targets, gradient=gradient))
    logits = 32_768 * 512 * 4
    assert mx.get_peak_memory() - before < logits / 2
