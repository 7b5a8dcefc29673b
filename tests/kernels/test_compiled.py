"""Every loss can be compiled as the training step compiles it: with its gradient, its count and what it reports."""

import typing

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from mlx_email import config
from mlx_email.kernels import losses


def types(kind) -> tuple[str, ...]:
    (field,) = [field for field in msgspec.structs.fields(kind) if field.name == "loss_type"]
    return typing.get_args(field.type)


def of_dpo(kind):
    smoothed = 0.1 if kind in ("robust", "exo_pair") else 0.0
    return lambda x, q, m, a, d: losses.dpo(x, q, q, q + 0.1, m, m, loss_type=kind, label_smoothing=smoothed)


def of_grpo(kind, level, old, reference):
    options = {"loss_type": kind, "importance_sampling_level": level, "max_completion_length": 5}

    def loss(x, q, m, a, d):
        return losses.grpo(x, q if old else None, q if reference else None, m, a, beta=0.1 * reference, **options)

    return loss


LOSSES = {
    "sft": lambda x, q, m, a, d: losses.sft(x, m),
    **{f"dpo {kind}": of_dpo(kind) for kind in types(config.Dpo)},
    "kto": lambda x, q, m, a, d: losses.kto(x, q, m, d, a, a),
    "bradley-terry": lambda x, q, m, a, d: losses.bradley_terry(x[:, 0], q[:, 0], margin=a, mask=d),
    "enumerated": lambda x, q, m, a, d: losses.enumerated(x, None, q, q, d, beta=0.1),
    **{
        f"grpo {kind} {level} {old:d} {reference:d}": of_grpo(kind, level, old, reference)
        for kind in types(config.Grpo)
        for level in ("token", "sequence")
        for old in (False, True)
        for reference in (False, True)
    },
}


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_it_is_the_same(name):
    rng = np.random.default_rng(3)
    x, q = (mx.array(-rng.uniform(0.1, 2, (4, 5)), mx.float32) for _ in range(2))
    mask = mx.array(np.arange(20).reshape(4, 5) % 3 > 0, mx.float32)
    rows, wanted = mx.array([1.0, -1.0, 0.5, -0.5]), mx.array([1.0, 0.0, 1.0, 0.0])

    def step(x, *others):
        return mx.value_and_grad(lambda values: tuple(LOSSES[name](values, *others)))(x)

    plain, compiled = (f(x, q, mask, rows, wanted) for f in (step, mx.compile(step)))
    (total, count, metrics), gradient = compiled
    assert total.item() == pytest.approx(plain[0][0].item(), rel=1e-5, abs=1e-6)
    assert count.item() == plain[0][1].item()
    assert {k: (s.item(), n.item()) for k, (s, n) in metrics.items()} == {
        k: (pytest.approx(s.item(), rel=1e-5, abs=1e-6), n.item()) for k, (s, n) in plain[0][2].items()
    }
    np.testing.assert_allclose(gradient, plain[1], atol=1e-5)
