"""Attention of the CPU path, of a sequence and of branches, against float64: values and gradients."""

import runpy
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_email.kernels import attention as kernel
from mlx_email.kernels import exponential
from mlx_email.kernels.attention import Part, attend, attention, branched, merge

reference = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "attention.py"))
SCALE = 0.3


def arrays(*shapes, spread=1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [spread * rng.standard_normal(shape) for shape in shapes]


def causal(n: int, m: int) -> np.ndarray:
    return np.arange(m)[None] <= np.arange(m - n, m)[:, None]


def exact(queries, keys, values, seen) -> list[np.ndarray]:
    """The output and the gradients of its sum weighted by `weights_of`, by the reference."""
    seen = np.broadcast_to(seen, (len(queries), 1, *seen.shape[-2:]))
    output, _ = reference["attention"](queries, keys, values, SCALE, seen)
    return [output, *reference["gradients"](queries, keys, values, SCALE, seen, weights_of(output.shape))]


def weights_of(shape) -> np.ndarray:
    return np.random.default_rng(9).standard_normal(shape)


def distance(function, inputs: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Of a function's output and its gradients, each relative to the largest number in it."""
    given = [mx.array(array, mx.float32) for array in inputs]

    def total(*given):
        output = function(*given)
        return (output * mx.array(weights_of(output.shape), mx.float32)).sum()

    found = [function(*given), *mx.grad(total, argnums=list(range(len(given))))(*given)]
    assert [a.shape for a in found] == [b.shape for b in wanted]
    return max(np.abs(np.array(a) - b).max() / np.abs(b).max() for a, b in zip(found, wanted, strict=True))


def of_sequence(n, m, heads=(4, 2), mask="causal", seen=None) -> float:
    inputs = arrays((2, heads[0], n, 8), (2, heads[1], m, 8), (2, heads[1], m, 6))
    seen = causal(n, m) if seen is None else seen
    return distance(lambda *qkv: attention(*qkv, scale=SCALE, mask=mask), inputs, exact(*inputs, seen))


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (6, 1)])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (4, 4), (5, 5), (12, 12), (3, 11), (1, 4)])
def test_a_sequence_equals_float64(n, m, heads, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 4)
    assert of_sequence(n, m, heads) < 3e-6


def test_a_sequence_of_several_blocks():
    assert of_sequence(2 * kernel.BLOCK + 5, 2 * kernel.BLOCK + 5) < 3e-6


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_any_mask_and_none(heads):
    seen = np.random.default_rng(1).random((2, 1, 5, 9)) < 0.5
    seen[..., 0] = True
    assert of_sequence(5, 9, heads, mx.array(seen), seen) < 3e-6
    assert of_sequence(5, 9, heads, None, np.ones((5, 9), bool)) < 3e-6


def test_scores_of_thousands():
    """Weights of 0 and 1, and no overflow on the way."""
    queries, keys, values = arrays((1, 1, 6, 8), (1, 1, 6, 8), (1, 1, 6, 8), spread=60)
    wanted, _ = reference["attention"](queries, keys, values, SCALE, causal(6, 6))
    given = [mx.array(array, mx.float32) for array in (queries, keys, values)]
    found, gradients = mx.value_and_grad(lambda *qkv: attention(*qkv, scale=SCALE, mask="causal").sum())(*given)
    np.testing.assert_allclose(found, wanted.sum(), rtol=1e-5)
    assert np.isfinite(gradients).all()


BATCH, GROUP, N, LENGTHS = 2, 3, 4, (5, 2)  # two prompts, the second with three columns of padding
WIDTH = max(LENGTHS)


def of_branches(heads=(4, 2), fault=None) -> float:
    rows = BATCH * GROUP
    inputs = arrays(
        (rows, heads[0], N, 8),
        *((BATCH, heads[1], WIDTH, size) for size in (8, 6)),
        *((rows, heads[1], N, size) for size in (8, 6)),
    )
    real = np.repeat(np.arange(WIDTH)[None] < np.array(LENGTHS)[:, None], GROUP, axis=0)[:, None, None]
    own = np.broadcast_to(causal(N, N), (rows, 1, N, N))
    seen = np.concatenate([np.broadcast_to(real, (rows, 1, N, WIDTH)), own], axis=-1)
    mask = mx.array(seen if fault is None else fault(seen))

    def each_with_its_prompt(prompt, own):
        return np.concatenate([np.repeat(prompt, GROUP, axis=0), own], axis=2)

    queries, prompt_keys, prompt_values, keys, values = inputs
    joined = each_with_its_prompt(prompt_keys, keys), each_with_its_prompt(prompt_values, values)
    output, by_queries, *by_joined = exact(queries, *joined, seen)
    by_prompt = [part[:, :, :WIDTH].reshape(BATCH, GROUP, *part[:, :, :WIDTH].shape[1:]).sum(1) for part in by_joined]
    wanted = [output, by_queries, *by_prompt, *(part[:, :, WIDTH:] for part in by_joined)]
    return distance(lambda q, pk, pv, k, v: branched(q, (pk, pv), (k, v), scale=SCALE, mask=mask), inputs, wanted)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (6, 1)])
def test_branches_equal_float64(heads):
    assert of_branches(heads) < 3e-6


def padding_seen(seen):
    return np.concatenate([np.ones_like(seen[..., :WIDTH]), seen[..., WIDTH:]], axis=-1)


def future_seen(seen):
    return np.concatenate([seen[..., :WIDTH], np.ones_like(seen[..., WIDTH:])], axis=-1)


@pytest.mark.parametrize("fault", [padding_seen, future_seen])
def test_planted_faults_of_branches_are_seen(fault):
    assert of_branches(fault=fault) > 1e-2


def test_planted_faults_are_seen(monkeypatch):
    honest = kernel.merge
    monkeypatch.setattr(kernel, "merge", lambda parts: honest([parts[0]._replace(lse=parts[0].lse + 0.1), parts[1]]))
    assert of_branches() > 1e-3
    monkeypatch.undo()
    monkeypatch.setattr(exponential, "TAYLOR", exponential.TAYLOR[:-2])
    assert of_sequence(7, 7) > 1e-5


def test_a_part_that_sees_nothing_changes_nothing():
    """As a prompt of one token has it: all of it begins the branches."""
    queries, keys, values = (mx.array(array, mx.float32) for array in arrays((1, 1, 3, 4), (1, 1, 5, 4), (1, 1, 5, 4)))
    nothing, all_of_it = mx.zeros((3, 5), dtype=mx.bool_), mx.ones((3, 5), dtype=mx.bool_)

    def both(queries, keys, values, other):
        return merge([attend(queries, other, other, nothing), attend(queries, keys, values, all_of_it)]).sum()

    def alone(queries, keys, values):
        return attend(queries, keys, values).output.sum()

    found = mx.value_and_grad(both, argnums=[0, 1, 2, 3])(queries, keys, values, keys)
    wanted = mx.value_and_grad(alone, argnums=[0, 1, 2])(queries, keys, values)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    for a, b in zip(found[1], [*wanted[1], mx.zeros(keys.shape)], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_merging_parts_is_attention_over_all_keys():
    queries, keys, values = (mx.array(array, mx.float32) for array in arrays((2, 3, 4), (2, 9, 4), (2, 9, 5)))
    cuts = [(0, 2), (2, 3), (3, 9)]
    parts = [attend(queries, keys[:, a:b], values[:, a:b]) for a, b in cuts]
    whole = attend(queries, keys, values)
    np.testing.assert_allclose(merge(parts), whole.output, atol=1e-6)
    assert isinstance(whole, Part)
    np.testing.assert_allclose(mx.logsumexp(mx.stack([part.lse for part in parts]), axis=0), whole.lse, atol=1e-6)


@pytest.mark.parametrize("mask", ["causal", None])
def test_equals_mlx_s_own(mask):
    queries, keys, values = (mx.array(a, mx.float32) for a in arrays((2, 4, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8)))
    theirs = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=SCALE, mask=mask)
    np.testing.assert_allclose(attention(queries, keys, values, scale=SCALE, mask=mask), theirs, atol=2e-6)


def test_not_finite_stays_so():
    queries = mx.array(arrays((1, 2, 5, 4))[0], mx.float32)
    queries[0, 0, 3, 0] = mx.nan
    given = mx.stack([queries, mx.ones_like(queries)])
    output = np.array(attention(given[0], given[1], given[1], scale=SCALE, mask="causal"))
    assert np.isnan(output[0, 0, 3]).all() and np.isfinite(np.delete(output[0, 0], 3, axis=0)).all()
