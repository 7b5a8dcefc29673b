"""KTO: against float64 formulas, hand-worked numbers and TRL's records; what must not matter; what must not break."""

import json
import runpy
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_email.kernels import compiling, losses

REFERENCE = Path(__file__).parents[1] / "reference"
expected_loss = runpy.run_path(str(REFERENCE / "kto.py"))["kto"]
central_differences = runpy.run_path(str(REFERENCE / "gradient.py"))["central_differences"]
VARIANTS = ("kto", "apo_zero_unpaired")


def examples(seed, n=5, width=6, kl=7):
    """Random policy, reference, mask, labels of both classes, and mismatched policy and reference."""
    rng = np.random.default_rng(seed)
    policy, reference = (rng.uniform(-3, 0, (n, width)).astype(np.float32) for _ in range(2))
    mask = (np.arange(width) < rng.integers(1, width + 1, (n, 1))).astype(np.float32)
    mismatched = [rng.uniform(-9, 0, kl).astype(np.float32) for _ in range(2)]
    return policy, reference, mask, (np.arange(n) % 3 > 0).astype(np.float32), *mismatched


def ours(arrays, weights=(1.0, 1.0), **options):
    """The value total / count and its gradient on the policy."""
    policy, *rest = map(mx.array, arrays)

    def value(policy):
        loss = losses.kto(policy, *rest, desirable_weight=weights[0], undesirable_weight=weights[1], **options)
        return loss.total / loss.count

    found, gradient = mx.value_and_grad(value)(policy)
    return found.item(), np.array(gradient)


def agree(arrays, expected=expected_loss, **options):
    value, gradient = ours(arrays, **options)
    policy, *rest = (np.float64(array) for array in arrays)
    np.testing.assert_allclose(value, expected(policy, *rest, **options), rtol=1e-5)
    slope = central_differences(lambda p: expected(p, *rest, **options), policy)
    np.testing.assert_allclose(gradient, slope, atol=1e-5 * max(np.abs(slope).max(), 1e-2))


@pytest.mark.parametrize("loss_type", VARIANTS)
@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9), st.sampled_from([0.05, 0.1, 0.3]))
def test_reference(loss_type, seed, n, kl, beta):
    agree(examples(seed, n, kl=kl), loss_type=loss_type, beta=beta, weights=(1.2, 0.7))


def unclamped(policy, reference, mask, desirable, kl_policy, kl_reference, **options):
    shift = min(0.0, float(np.mean(kl_policy - kl_reference)))  # what the clamp takes away
    return expected_loss(policy, reference + shift / mask.sum(1, keepdims=True), mask, desirable, [0], [0], **options)


def classes_apart(policy, reference, mask, desirable, *rest, **options):
    """A mean of class means, which TRL's loss is not."""
    parts = [
        expected_loss(policy[of], reference[of], mask[of], desirable[of], *rest, **options)
        for of in (desirable > 0, desirable == 0)
    ]
    return sum(parts) / 2


def labels_swapped(policy, reference, mask, desirable, *rest, **options):
    return expected_loss(policy, reference, mask, 1 - desirable, *rest, **options)


def no_reference(policy, reference, *rest, **options):
    return expected_loss(policy, 0 * reference, *rest, **options)


@pytest.mark.parametrize("fault", [unclamped, classes_apart, labels_swapped, no_reference])
def test_reference_sees_a_planted_fault(fault):
    policy, reference, mask, desirable, kl_policy, kl_reference = examples(3)
    arrays = policy, reference, mask, desirable, kl_policy - 5, kl_reference  # a negative KL
    agree(arrays, weights=(1.5, 1.0))
    with pytest.raises(AssertionError):
        agree(arrays, fault, weights=(1.5, 1.0))


def test_known_answers():
    """beta 0.1; desirable log-ratios 0.8, -0.4, undesirable 0.3, -1.0; mismatched -0.2, 0.5, 0.1, 0.4, so KL 0.2.

    By hand: 1 - sigmoid(0.06) = 0.485004, 1 - sigmoid(-0.06) = 0.514996, 1 - sigmoid(-0.01) = 0.5025,
    1 - sigmoid(0.12) = 0.470036; with weights 1 and 1.5 the mean is 0.614701.
    """
    ratios = np.array([[0.8], [-0.4], [0.3], [-1.0]], np.float32)
    arrays = (ratios, 0 * ratios, np.ones((4, 1)), np.array([1, 1, 0, 0]), np.array([-0.2, 0.5, 0.1, 0.4]), np.zeros(4))
    for row, wanted in enumerate((0.485004, 0.514996, 0.5025, 0.470036)):
        one = [array[row : row + 1] for array in arrays[:4]]
        np.testing.assert_allclose(ours((*one, *arrays[4:]))[0], wanted, rtol=2e-6)
    np.testing.assert_allclose(ours(arrays, weights=(1.0, 1.5))[0], 0.614701, rtol=2e-6)
    metrics = losses.kto(*map(mx.array, arrays)).metrics
    found = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert found == pytest.approx({"rewards/desirable": 0.02, "rewards/undesirable": -0.035, "kl": 0.2}, rel=1e-5)


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_at_the_start_it_is_a_half_and_has_a_gradient(loss_type):
    """A loss whose reference is the policy itself would be constant: its gradient is 0, ours is not."""
    policy, _, mask, desirable, mismatched, _ = examples(1)
    value, gradient = ours((policy, policy, mask, desirable, mismatched, mismatched), loss_type=loss_type)
    assert value == 0.5
    assert (np.abs(gradient[mask > 0]) > 1e-3).all() and not gradient[mask == 0].any()


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label):
    policy, reference, mask, desirable, *kl = examples(2)
    agree((policy, reference, mask, np.full_like(desirable, label), *kl))


# --- TRL's records ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(shared):
    path = shared / "oracles" / "trl_losses.json"
    if not path.is_file():
        pytest.skip("needs the recorded losses of TRL")
    return [case for case in json.loads(path.read_text())["cases"] if case["algo"] == "kto"]


def as_recorded(case, beta=1.0, kl=1.0):
    """Compare with a recorded case; the two arguments plant a fault."""
    names = ("logps", "ref_logps", "mask", "labels", "kl_policy_logps", "kl_ref_logps")
    arrays = [np.array(case[name], np.float32) for name in names]
    arrays[4] = arrays[4] + (kl - 1)
    params = case["params"]
    weights = params["desirable_weight"], params["undesirable_weight"]
    value, gradient = ours(arrays, weights, loss_type=case["loss_type"], beta=params["beta"] * beta)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, case["grad"], atol=1e-5 * np.abs(case["grad"]).max())
    if case["loss_type"] == "kto":
        total, count = losses.kto(*map(mx.array, arrays)).metrics["kl"]
        np.testing.assert_allclose((total / count).item(), case["kl"], rtol=1e-5, atol=1e-7)


def test_as_trl_recorded(recorded):
    for case in recorded:
        as_recorded(case)
    assert {case["loss_type"] for case in recorded} == set(VARIANTS)


def test_the_records_see_a_planted_fault(recorded):
    for case in recorded:
        with pytest.raises(AssertionError):
            as_recorded(case, beta=1.01)
        if case["kl"]:
            with pytest.raises(AssertionError):
                as_recorded(case, kl=1.01)


# --- What must not matter ---------------------------------------------------------------------------------------------


def sums(arrays, **options):
    policy, *rest = map(mx.array, arrays)
    loss = losses.kto(policy, *rest, **options)
    gradient = mx.grad(lambda policy: losses.kto(policy, *rest, **options).total)(policy)
    metrics = [part.item() for name in sorted(loss.metrics) for part in loss.metrics[name]]
    return np.array([loss.total.item(), loss.count.item(), *metrics]), np.array(gradient)


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_micro_batches_add_up(loss_type):
    """Where each is given the mismatched completions of the whole step; with their own only they are another loss."""
    arrays = examples(4, n=8, kl=8)
    whole, gradient = sums(arrays, loss_type=loss_type)
    parts = [sums((*(a[i : i + 2] for a in arrays[:4]), *arrays[4:]), loss_type=loss_type) for i in range(0, 8, 2)]
    np.testing.assert_allclose(sum(part[0] for part in parts), whole, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), gradient, rtol=1e-5, atol=1e-8)


def test_a_kl_of_each_micro_batch_s_own_is_seen():
    arrays = examples(6, n=8, kl=8)
    parts = [sums([a[i : i + 2] for a in arrays])[0][0] for i in range(0, 8, 2)]
    assert abs(sum(parts) / sums(arrays)[0][0] - 1) > 1e-4


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_padding_and_padded_rows_do_not_matter(loss_type):
    policy, reference, mask, desirable, *kl = examples(5)

    def padded(array, filler):
        return np.pad(array, ((0, 2), (0, 3)), constant_values=filler)

    labels = np.concatenate([desirable, [1, 0]]).astype(np.float32)
    wide = padded(policy, np.nan), padded(reference, -np.inf), padded(mask, 0), labels, *kl
    more, gradient = sums(wide, loss_type=loss_type)
    whole, inner = sums((policy, reference, mask, desirable, *kl), loss_type=loss_type)
    np.testing.assert_allclose(more, whole, rtol=1e-6)
    np.testing.assert_allclose(gradient[:5, :6], inner, atol=1e-8)
    assert not gradient[5:].any() and not gradient[:, 6:].any()


def test_nothing_but_padding():
    policy, reference, mask, desirable, *kl = examples(5)
    found, gradient = sums((policy * np.nan, reference, 0 * mask, desirable, *kl))
    assert found[:2].tolist() == [0, 0] and not gradient.any()


@pytest.mark.parametrize("loss_type", VARIANTS)
@pytest.mark.parametrize("ratio", [-1e4, 1e4])
def test_extremes_are_finite(loss_type, ratio):
    policy, reference, mask, desirable, *kl = examples(5)
    for arrays in (
        (policy + ratio, reference, mask, desirable, *kl),
        (policy, reference, mask, desirable, kl[0] + ratio, kl[1]),
    ):
        found, gradient = sums(arrays, loss_type=loss_type)
        assert np.isfinite(found).all() and np.isfinite(gradient).all() and np.abs(gradient).max() <= 0.1


def test_neither_the_reference_nor_kl_has_a_gradient():
    arrays = [mx.array(array) for array in examples(5)]
    gradients = mx.grad(lambda *moving: losses.kto(arrays[0], moving[0], *arrays[2:4], *moving[1:]).total, [0, 1, 2])(
        arrays[1], *arrays[4:]
    )
    assert not any(gradient.any().item() for gradient in gradients)


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="nearest: 'kto'"):
        losses.kto(*map(mx.array, examples(0)), loss_type="kta")


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", VARIANTS)
def test_compiled_equals_plain(loss_type, monkeypatch):
    plain = sums(examples(7), loss_type=loss_type)
    monkeypatch.setattr(compiling, "by_default", lambda: True)
    traced = sums(examples(7), loss_type=loss_type)
    np.testing.assert_allclose(traced[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(traced[1], plain[1], rtol=1e-5, atol=1e-7)
