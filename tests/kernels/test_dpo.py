"""DPO: against float64 formulas, hand-worked numbers and TRL's records; what must not matter; what must not break."""

import ast
import json
import math
import runpy
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlx_email.kernels import compiling, losses

REFERENCE = Path(__file__).parents[1] / "reference"
expected_loss = runpy.run_path(str(REFERENCE / "dpo.py"))["loss"]
central_differences = runpy.run_path(str(REFERENCE / "gradient.py"))["central_differences"]

# Settings under which each variant is tested; sigmoid's label smoothing must have no effect.
VARIANTS = {
    "sigmoid": {"label_smoothing": 0.2},
    "robust": {"label_smoothing": 0.2},
    "hinge": {},
    "ipo": {},
    "exo_pair": {"label_smoothing": 0.05},
    "nca_pair": {},
    "bco_pair": {},
    "sppo_hard": {},
    "aot": {"label_smoothing": 0.2},
    "aot_unpaired": {"label_smoothing": 0.2},
    "apo_zero": {},
    "apo_down": {},
    "discopop": {"discopop_tau": 0.1},
    "sft": {},
    "sigmoid_norm": {},
}
BY_ROW = [name for name in VARIANTS if not name.startswith("aot")]  # aot sorts over the rows it sees


def pairs(seed, n=3, chosen=5, rejected=4):
    """Random log-probabilities (chosen, rejected) of policy and reference, and masks with at least one token a row."""
    rng = np.random.default_rng(seed)
    widths = (chosen, rejected)
    policy, reference = (tuple(rng.uniform(-3, 0, (n, c)).astype(np.float32) for c in widths) for _ in range(2))
    lengths = (rng.integers(1, c + 1, (n, 1)) for c in widths)
    masks = tuple((np.arange(c) < length).astype(np.float32) for c, length in zip(widths, lengths, strict=True))
    return policy, reference, masks


def ours(loss_type, policy, reference, masks, **options):
    arrays = (mx.array(np.asarray(a, dtype=np.float32)) for a in (*policy, *reference, *masks))
    return losses.dpo(*arrays, loss_type=loss_type, **options)


def value_and_gradients(loss_type, policy, reference, masks, **options):
    """total / count and its gradients on the policy's two arrays."""

    def value(*moving):
        loss = losses.dpo(*moving, *map(mx.array, reference), *map(mx.array, masks), loss_type=loss_type, **options)
        return loss.total / loss.count

    return mx.value_and_grad(value, argnums=(0, 1))(*map(mx.array, policy))


def close(actual, expected, rtol=1e-5):
    """Equal to `rtol` of the largest number, or of 0.1: a gradient near 0, at a loss's minimum or among large ones, has
    the rounding of the log-probabilities."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * max(np.abs(expected).max(), 1e-1))


def agree(expected, loss_type, policy, reference, masks, **options):
    """Value and gradients equal those of the float64 function `expected`."""
    value, gradients = value_and_gradients(loss_type, policy, reference, masks, **options)
    policy, reference = (tuple(np.float64(a) for a in both) for both in (policy, reference))
    close(value.item(), expected(loss_type, policy, reference, masks, **options))
    for side in (0, 1):

        def moved(array, side=side):
            both = (array, policy[1]) if side == 0 else (policy[0], array)
            return expected(loss_type, both, reference, masks, **options)

        close(gradients[side], central_differences(moved, policy[side]))


# --- An independent float64 implementation ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.py")), ids=lambda path: path.name)
def test_the_reference_imports_nothing_of_ours(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {"numpy", *sys.stdlib_module_names} - {"importlib", "runpy"}


@pytest.mark.parametrize("loss_type", VARIANTS)
@settings(max_examples=12)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.05, 0.1, 0.3]),
)
def test_reference(loss_type, seed, n, chosen, rejected, beta):
    policy, reference, masks = pairs(seed, n, chosen, rejected)
    if loss_type == "hinge":  # differences across its corner are no slope
        ratios = [((p - f) * m).sum(axis=1) for p, f, m in zip(policy, reference, masks, strict=True)]
        assume(np.abs(1 - beta * (ratios[0] - ratios[1])).min() > 1e-3)
    agree(expected_loss, loss_type, policy, reference, masks, beta=beta, **VARIANTS[loss_type])


def smoothed_sigmoid(loss_type, policy, reference, masks, label_smoothing, **options):
    straight = expected_loss(loss_type, policy, reference, masks, **options)
    flipped = expected_loss(loss_type, policy[::-1], reference[::-1], masks[::-1], **options)
    return (1 - label_smoothing) * straight + label_smoothing * flipped


def summed_ratios(loss_type, policy, reference, masks, beta=0.1):
    ratios = [((p - f) * m).sum(axis=1) for p, f, m in zip(policy, reference, masks, strict=True)]
    return np.mean((ratios[0] - ratios[1] - 1 / (2 * beta)) ** 2)


def rows_unsorted(loss_type, *arrays, **options):
    return np.mean(
        [expected_loss(loss_type, *([a[i : i + 1] for a in two] for two in arrays), **options) for i in range(3)]
    )


def no_reference(loss_type, policy, reference, masks, **options):
    return expected_loss(loss_type, policy, [0 * array for array in reference], masks, **options)


@pytest.mark.parametrize(
    ("loss_type", "fault"),
    [("sigmoid", smoothed_sigmoid), ("ipo", summed_ratios), ("aot", rows_unsorted), ("aot_unpaired", rows_unsorted)]
    + [(name, no_reference) for name in VARIANTS if name != "sft"],
)
def test_reference_sees_a_planted_fault(loss_type, fault):
    agree(expected_loss, loss_type, *pairs(0, n=6), **VARIANTS[loss_type])
    with pytest.raises(AssertionError):
        agree(fault, loss_type, *pairs(0, n=6), **VARIANTS[loss_type])


# --- Known answers ----------------------------------------------------------------------------------------------------

LN2 = math.log(2)
AT_THE_START = {  # log-ratios 0, beta 0.1
    "sigmoid": LN2,
    "robust": LN2,
    "hinge": 1,
    "ipo": 25,  # (1 / (2 * 0.1)) ** 2
    "exo_pair": (math.log(0.5 / 0.95) + math.log(0.5 / 0.05)) / 2,
    "nca_pair": 2 * LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 50,
    "aot": LN2,
    "aot_unpaired": LN2,
    "apo_zero": 1,
    "apo_down": 1,
    "discopop": (LN2 + 1) / 2,
    "sigmoid_norm": LN2,
}


@pytest.mark.parametrize("loss_type", AT_THE_START)
def test_at_the_start(loss_type):
    policy, _, masks = pairs(1)
    loss = ours(loss_type, policy, policy, masks, **VARIANTS[loss_type])
    close(loss.total.item() / loss.count.item(), AT_THE_START[loss_type], rtol=1e-6)
    assert [total.item() for total, _ in loss.metrics.values()] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("loss_type", "options", "per_pair"),
    [
        ("sigmoid", {"label_smoothing": 0.1}, (0.653947, 0.792653)),
        ("robust", {"label_smoothing": 0.1}, (0.643947, 0.816403)),
        ("hinge", {}, (0.92, 1.19)),
        ("ipo", {}, (23.184225, 29.521111)),
        ("exo_pair", {"label_smoothing": 1e-3}, (2.623969, 3.092810)),
        ("nca_pair", {}, (1.366819, 1.436799)),
        ("bco_pair", {}, (1.346719, 1.483706)),
        ("sppo_hard", {}, (42.34, 70.93)),
        ("apo_zero", {}, (0.980003, 1.047457)),
        ("apo_down", {}, (0.992508, 1.017394)),
        ("discopop", {}, (0.877901, 0.801769)),
        ("sigmoid_norm", {}, (0.683940, 0.715049)),
    ],
)
def test_known_answers(loss_type, options, per_pair):
    """Log-ratios 0.5 and -1.2 of the chosen (4 and 6 tokens), -0.3 and 0.7 of the rejected (5 and 3); beta 0.1.

    By hand, sigmoid: 0.1 * (0.5 + 0.3) = 0.08, ln(1 + exp(-0.08)) = 0.653947.
    """
    masks = [np.arange(6) < np.array(lengths)[:, None] for lengths in ((4, 6), (5, 3))]
    ratios = np.array([[0.5], [-1.2]]), np.array([[-0.3], [0.7]])
    policy = [ratio / mask.sum(axis=1, keepdims=True) * mask for ratio, mask in zip(ratios, masks, strict=True)]
    for row in (0, 1):
        one = [[array[row : row + 1] for array in both] for both in (policy, [0 * p for p in policy], masks)]
        np.testing.assert_allclose(ours(loss_type, *one, **options).total.item(), per_pair[row], rtol=2e-6)
    loss = ours(loss_type, policy, [0 * p for p in policy], masks, **options)
    np.testing.assert_allclose(loss.total.item(), sum(per_pair), rtol=2e-6)
    assert loss.count.item() == 2
    reported = {"rewards/chosen": -0.07, "rewards/rejected": 0.04, "rewards/margin": -0.11, "rewards/accuracy": 1}
    assert {name: pytest.approx(total.item(), rel=1e-5) for name, (total, _) in loss.metrics.items()} == reported
    assert all(count.item() == 2 for _, count in loss.metrics.values())


def test_known_answer_of_aot():
    """Policy margins 1, 3 meet reference margins 2, 0: sorted, 1 - 0 and 3 - 2, each ln(1 + exp(-0.1)) = 0.644397."""
    policy, reference = np.array([[1.0], [3.0]]), np.array([[2.0], [0.0]])
    zero, mask = np.zeros((2, 1)), np.ones((2, 1))
    loss = ours("aot", (policy, zero), (reference, zero), (mask, mask))
    np.testing.assert_allclose(loss.total.item(), 2 * 0.644397, rtol=1e-6)


def test_accuracy_counts_pairs_with_the_chosen_above():
    """One pair of three; a tie is no success."""
    policy = np.array([[1.0], [0.0], [0.0]]), np.array([[0.0], [0.0], [1.0]])
    zero, mask = np.zeros((3, 1)), np.ones((3, 1))
    total, count = ours("sigmoid", policy, (zero, zero), (mask, mask)).metrics["rewards/accuracy"]
    assert (total.item(), count.item()) == (1, 3)


# --- TRL's records ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(shared):
    path = shared / "oracles" / "trl_losses.json"
    if not path.is_file():
        pytest.skip("needs the recorded losses of TRL")
    return [case for case in json.loads(path.read_text())["cases"] if case["algo"] == "dpo"]


def as_recorded(case, beta=1.0, ignore_masks=False):
    """Compare with a recorded case; the two arguments plant a fault."""
    policy = [np.array(case[name]) for name in ("chosen_logps", "rejected_logps")]
    reference = [np.array(case[name]) for name in ("ref_chosen_logps", "ref_rejected_logps")]
    masks = [np.array(case[name]) for name in ("chosen_mask", "rejected_mask")]
    if ignore_masks:
        masks = [np.ones_like(mask) for mask in masks]
    options = {**case["params"], "beta": case["params"]["beta"] * beta}
    value, gradients = value_and_gradients(case["loss_type"], policy, reference, masks, **options)
    close(value.item(), case["loss"])
    close(gradients[0], case["grad_chosen"])
    close(gradients[1], case["grad_rejected"])
    metrics = ours(case["loss_type"], policy, reference, masks, **options).metrics
    names = {"chosen": "chosen", "rejected": "rejected", "margin": "margins", "accuracy": "accuracies"}
    for name, theirs in names.items():
        total, count = metrics[f"rewards/{name}"]
        close((total / count).item(), case["metrics"][f"rewards/{theirs}"])


def test_as_trl_recorded(recorded):
    for case in recorded:
        as_recorded(case)
    assert {case["loss_type"] for case in recorded} == set(VARIANTS)


def test_the_records_see_a_planted_fault(recorded):
    for case in recorded:
        for fault in ({"beta": 1.01}, {"ignore_masks": True}):
            with pytest.raises(AssertionError):
                as_recorded(case, **fault)


# --- What must not matter ---------------------------------------------------------------------------------------------


def sums(loss_type, policy, reference, masks):
    """Total, count, metric sums and the gradients of the total."""
    loss = ours(loss_type, policy, reference, masks, **VARIANTS[loss_type])
    gradients = mx.grad(lambda *p: ours_total(loss_type, p, reference, masks), argnums=(0, 1))(*map(mx.array, policy))
    metrics = {f"{name} {part}": v.item() for name, m in loss.metrics.items() for part, v in zip("tn", m, strict=True)}
    return {"total": loss.total.item(), "count": loss.count.item(), **metrics}, [np.array(g) for g in gradients]


def ours_total(loss_type, policy, reference, masks):
    fixed = map(mx.array, (*reference, *masks))
    return losses.dpo(*policy, *fixed, loss_type=loss_type, **VARIANTS[loss_type]).total


def same(one, other):
    for name, number in one[0].items():
        np.testing.assert_allclose(number, other[0][name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(one[1], other[1], strict=True):
        close(a, b)


@pytest.mark.parametrize("loss_type", BY_ROW)
def test_micro_batches_add_up(loss_type):
    """Four micro-batches of two pairs, and eight of one, give what one batch of eight gives."""
    arrays = pairs(2, n=8)
    whole = sums(loss_type, *arrays)
    for size in (1, 2):
        parts = [sums(loss_type, *([a[i : i + size] for a in both] for both in arrays)) for i in range(0, 8, size)]
        added = {name: sum(part[0][name] for part in parts) for name in whole[0]}
        same((added, [np.concatenate([part[1][side] for part in parts]) for side in (0, 1)]), whole)


def test_a_mean_of_means_is_seen():
    """The planted fault: sft counts tokens, so the mean of the rows' means is another number."""
    arrays = pairs(2, n=8)
    rows = [sums("sft", *([a[i : i + 1] for a in both] for both in arrays))[0] for i in range(8)]
    whole = sums("sft", *arrays)[0]
    with pytest.raises(AssertionError):
        close(np.mean([row["total"] / row["count"] for row in rows]), whole["total"] / whole["count"])


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_padding_and_padded_rows_do_not_matter(loss_type):
    policy, reference, masks = pairs(3)

    def padded(array, columns, filler):
        return np.pad(array, ((0, 2), (0, columns)), constant_values=filler)

    more = (
        [padded(array, 3, np.nan) for array in policy],
        [padded(array, 3, -np.inf) for array in reference],
        [padded(array, 3, 0) for array in masks],
    )
    whole, gradients = sums(loss_type, *more)
    for gradient, mask in zip(gradients, more[2], strict=True):
        assert (gradient[mask == 0] == 0).all()
    same((whole, [g[:3, :-3] for g in gradients]), sums(loss_type, policy, reference, masks))


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_masked_is_filtered(loss_type):
    """A masked position in the middle is as if it were not there."""
    policy, reference, _ = pairs(4, n=1, chosen=4, rejected=4)
    masks = np.array([[1.0, 0, 1, 1]]), np.array([[0.0, 1, 0, 1]])
    short = [[a[:, m[0] > 0] for a, m in zip(both, masks, strict=True)] for both in (policy, reference, masks)]
    whole, gradients = sums(loss_type, policy, reference, masks)
    same((whole, [g[:, m[0] > 0] for g, m in zip(gradients, masks, strict=True)]), sums(loss_type, *short))


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_row_order_does_not_matter(loss_type):
    arrays, order = pairs(5, n=4), [2, 0, 3, 1]
    whole, gradients = sums(loss_type, *arrays)
    moved = sums(loss_type, *([array[order] for array in both] for both in arrays))
    same((whole, [gradient[order] for gradient in gradients]), moved)


@pytest.mark.parametrize("loss_type", VARIANTS)
@pytest.mark.parametrize("dtype", [mx.bool_, mx.int32, mx.float16])
def test_mask_types(loss_type, dtype):
    arrays = pairs(6)
    expected = ours(loss_type, *arrays, **VARIANTS[loss_type])
    masks = [mx.array(mask).astype(dtype) for mask in arrays[2]]
    loss = losses.dpo(*map(mx.array, (*arrays[0], *arrays[1])), *masks, loss_type=loss_type, **VARIANTS[loss_type])
    assert loss.total.item() == expected.total.item() and loss.count.item() == expected.count.item()
    assert {a.dtype for a in (loss.total, loss.count, *sum(loss.metrics.values(), ()))} == {mx.float32}


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_a_batch_of_padding_is_nothing(loss_type):
    policy, reference, masks = pairs(7)
    numbers, gradients = sums(loss_type, policy, reference, [0 * mask for mask in masks])
    assert set(numbers.values()) == {0}
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("loss_type", [name for name in VARIANTS if name != "sft"])
def test_half_a_pair_is_no_pair(loss_type):
    policy, reference, masks = pairs(8, n=4)
    half = [masks[0].copy(), masks[1].copy()]
    half[0][1], half[1][2] = 0, 0
    kept = [[array[[0, 3]] for array in both] for both in (policy, reference, masks)]
    assert sums(loss_type, policy, reference, half)[0] == pytest.approx(sums(loss_type, *kept)[0], rel=1e-5, abs=1e-6)


# --- Signs and extremes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", [name for name in VARIANTS if name not in ("sft", "apo_down", "discopop")])
def test_chosen_goes_up_and_rejected_down(loss_type):
    """At the start. apo_down's two slopes on the chosen cancel there, and discopop's hump at 0 points the other way."""
    policy, _, masks = pairs(9)
    _, (chosen, rejected) = value_and_gradients(loss_type, policy, policy, masks, **VARIANTS[loss_type])
    assert (np.array(chosen)[masks[0] > 0] < 0).all()
    assert (np.array(rejected)[masks[1] > 0] >= 0).all()
    assert loss_type == "aot_unpaired" or (np.array(rejected)[masks[1] > 0] > 0).all()


@pytest.mark.parametrize("loss_type", VARIANTS)
@pytest.mark.parametrize("sizes", [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4), (0.0, 0.0)])
def test_extremes_stay_finite(loss_type, sizes):
    """Log-ratios of 10,000 nats a token either way; and chosen equal to rejected."""
    zero, mask = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    policy = tuple(zero + np.float32(size) for size in sizes)
    value, gradients = value_and_gradients(loss_type, policy, (zero, zero), (mask, mask), **VARIANTS[loss_type])
    assert np.isfinite(value.item())
    assert all(np.isfinite(np.array(gradient)).all() for gradient in gradients)


def test_the_exponent_of_discopop_is_bounded():
    """Inside +-20 as the formula says; beyond, exp(-x) is that of the bound. With a wide tau it shows."""
    mask = np.ones((1, 1))
    for ratio, exponent in ((-15.0, 15.0), (-30.0, 20.0)):
        arrays = (np.array([[ratio]]), 0 * mask), (0 * mask, 0 * mask), (mask, mask)
        loss = ours("discopop", *arrays, beta=1.0, discopop_tau=10.0)
        modulation = 1 / (1 + math.exp(-ratio / 10))
        expected = (1 - modulation) * math.log1p(math.exp(-ratio)) + modulation * math.exp(exponent)
        np.testing.assert_allclose(loss.total.item(), expected, rtol=1e-5)


def test_the_reference_is_a_constant():
    policy, reference, masks = pairs(10)
    gradient = mx.grad(lambda r: ours_total("sigmoid", map(mx.array, policy), (r, reference[1]), masks))
    assert not np.array(gradient(mx.array(reference[0]))).any()


def test_metrics_carry_no_gradient():
    policy, *fixed = map(mx.array, sum(map(tuple, pairs(10)), ()))
    gradient = mx.grad(lambda p: sum(total for total, _ in losses.dpo(p, *fixed).metrics.values()))(policy)
    assert not np.array(gradient).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sigmod"}, "loss_type 'sigmod' is not known; nearest: 'sigmoid'"),
        ({"loss_type": "exo_pair"}, "label_smoothing 0.0: exo_pair"),
        ({"loss_type": "exo_pair", "label_smoothing": 1.0}, "label_smoothing 1.0: exo_pair"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing 0.5: robust"),
        ({"loss_type": "ipo", "beta": 0.0}, "beta 0.0: ipo"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        losses.dpo(*(mx.ones((1, 1)) for _ in range(6)), **options)


# --- Compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", VARIANTS)
def test_compiled_equals_plain(monkeypatch, loss_type):
    arrays = pairs(11)
    plain = sums(loss_type, *arrays)
    monkeypatch.setattr(compiling, "by_default", lambda: True)
    same(sums(loss_type, *arrays), plain)


@pytest.mark.slow
def test_a_setting_is_not_traced_anew(monkeypatch):
    """One trace for all values of beta; without the arrays around them it would be one for each."""
    module = sys.modules[losses.dpo.__module__]
    traces, variant = [], module._VARIANTS["hinge"]
    monkeypatch.setitem(module._VARIANTS, "hinge", lambda p: traces.append(1) or variant(p))
    monkeypatch.setattr(compiling, "by_default", lambda: True)
    arrays = pairs(12, n=2, chosen=7, rejected=3)
    totals = {ours("hinge", *arrays, beta=beta).total.item() for beta in (0.1, 0.2, 0.3)}
    assert len(totals) == 3
    assert len(traces) == 1


# --- LD-DPO: the tokens beyond the shorter completion weigh less ------------------------------------------------------


def desensitized(masks, alpha):
    """Masks that hold the weights themselves: what the definition says, written out."""
    shared = [min(int(c.sum()), int(r.sum())) for c, r in zip(*masks, strict=True)]
    return [np.where(np.cumsum(mask, axis=1) > np.array(shared)[:, None], alpha, 1.0) for mask in masks]


@pytest.mark.parametrize("loss_type", [name for name in VARIANTS if name != "sft"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_ld_alpha(loss_type, alpha):
    policy, reference, masks = pairs(8, n=4, chosen=6, rejected=5)
    weights = desensitized(masks, alpha)
    scaled = [[array * weight for array, weight in zip(both, weights, strict=True)] for both in (policy, reference)]
    found = ours(loss_type, policy, reference, masks, ld_alpha=alpha, **VARIANTS[loss_type])
    wanted = ours(loss_type, *scaled, masks, **VARIANTS[loss_type])
    close(found.total.item(), wanted.total.item())


def test_ld_alpha_of_one_is_none_and_less_is_another_loss():
    policy, reference, masks = pairs(8, n=4, chosen=6, rejected=5)
    plain = ours("sigmoid", policy, reference, masks).total.item()
    assert ours("sigmoid", policy, reference, masks, ld_alpha=1.0).total.item() == plain
    assert abs(ours("sigmoid", policy, reference, masks, ld_alpha=0.5).total.item() - plain) > 1e-3
    with pytest.raises(ValueError, match="ld_alpha"):
        ours("sigmoid", policy, reference, masks, ld_alpha=1.5)
