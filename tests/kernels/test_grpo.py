"""GRPO and its relatives: against float64 formulas, hand-worked numbers and TRL's records; what must not matter."""

import inspect
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
expected_loss = runpy.run_path(str(REFERENCE / "grpo.py"))["loss"]
expected_advantages = runpy.run_path(str(REFERENCE / "grpo.py"))["advantages"]
central_differences = runpy.run_path(str(REFERENCE / "gradient.py"))["central_differences"]

CASES = {  # every variant, and every option at least once
    "grpo": {"beta": 0.04},
    "grpo, sequence": {"importance_sampling_level": "sequence", "beta": 0.04},
    "grpo, delta": {"delta": 1.5},
    "bnpo": {"epsilon_low": 0.1},
    "dr_grpo": {"max_completion_length": 7, "beta": 0.1},
    "dapo": {"epsilon_high": 0.28},
    "dapo, total": {"epsilon_high": 0.28, "total_tokens": 40, "beta": 0.1},
    "cispo": {"epsilon_high": 1.3},
    "cispo, total": {"epsilon_high": 1.3, "total_tokens": 40},
    "sapo": {"sapo_temperature_pos": 1.2, "sapo_temperature_neg": 0.8},
    "luspo": {"importance_sampling_level": "sequence", "beta": 0.04},
    "luspo, token": {},
}
CASES = {name: {"loss_type": name.split(",")[0], **options} for name, options in CASES.items()}
SHARED_COUNT = [name for name in CASES if name.endswith("total")]  # the count is handed in


def sampled(seed, n=4, width=5):
    """Random (policy, old, reference, mask, advantages); ratios on both sides of every clip, a token in every row."""
    rng = np.random.default_rng(seed)
    policy = rng.uniform(-2, 0, (n, width))
    old, reference = (policy + rng.normal(0, 0.4, (n, width)) for _ in range(2))
    mask = np.arange(width) < rng.integers(1, width + 1, (n, 1))
    return tuple(array.astype(np.float32) for array in (policy, old, reference, mask, rng.normal(0, 1, n)))


def arrays_of(arrays):
    return [None if array is None else mx.array(np.asarray(array, dtype=np.float32)) for array in arrays]


def ours(arrays, **options):
    return losses.grpo(*arrays_of(arrays), **options)


def value_and_gradient(arrays, **options):
    """total / count and its gradient on the policy."""
    policy, *fixed = arrays_of(arrays)

    def value(policy):
        loss = losses.grpo(policy, *fixed, **options)
        return loss.total / loss.count

    return mx.value_and_grad(value)(policy)


def close(actual, expected, rtol=1e-5):
    """Equal to `rtol` of the largest number: what cancels has the rounding of what it is made of."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * max(np.abs(expected).max(), 1e-1))


def agree(expected, arrays, **options):
    """Value and gradient equal those of the float64 function `expected`."""
    value, gradient = value_and_gradient(arrays, **options)
    policy, *fixed = (np.float64(array) for array in arrays)
    close(value.item(), expected(policy, *fixed, **options))
    slopes = central_differences(lambda moved: expected(moved, *fixed, frozen=policy, **options), policy)
    close(gradient, slopes)


def far_from_corners(policy, old, _, mask, __, **options):
    """Whether no ratio is where a clip sets in: there differences are no slope."""
    difference = (policy.astype(float) - old) * mask
    ratios = np.exp(np.concatenate([difference.ravel(), difference.sum(axis=1) / mask.sum(axis=1)]))
    low, high = options.get("epsilon_low", 0.2), options.get("epsilon_high", 0.2)
    corners = [1 - low, 1 + high, high, options.get("delta", 1 + high)]
    return min(np.abs(ratios - corner).min() for corner in corners) > 1e-4


def test_defaults():
    """The contract: what a caller gets who names nothing."""
    parameters = inspect.signature(losses.grpo).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY
    }
    assert defaults == {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "delta": None,
        "max_completion_length": None,
        "total_tokens": None,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
    }


# --- An independent float64 implementation ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), width=st.integers(1, 5))
def test_reference(case, seed, n, width):
    arrays = sampled(seed, n, width)
    assume(far_from_corners(*arrays, **CASES[case]))
    agree(expected_loss, arrays, **CASES[case])


def all_tokens(policy, old, reference, mask, advantages, **options):
    return expected_loss(policy, old, reference, np.ones_like(mask), advantages, **options)


def other(**changed):
    return lambda *arrays, **options: expected_loss(*arrays, **{**options, **changed})


def mean_of_means(*arrays, frozen=None, **options):
    frozen = arrays[0] if frozen is None else frozen
    rows = range(len(arrays[0]))
    pick = lambda array, i: array[i : i + 1]  # noqa: E731
    return np.mean([expected_loss(*(pick(a, i) for a in arrays), frozen=pick(frozen, i), **options) for i in rows])


@pytest.mark.parametrize(
    ("case", "fault"),
    [(case, all_tokens) for case in CASES]
    + [(case, mean_of_means) for case in ("bnpo", "dapo", "cispo")]
    + [
        ("grpo", other(beta=0.0)),
        ("grpo, sequence", other(importance_sampling_level="token")),
        ("grpo, delta", other(delta=None)),
        ("bnpo", other(epsilon_low=0.2)),
        ("dr_grpo", other(max_completion_length=5)),
        ("dapo", other(epsilon_high=0.2)),
        ("dapo, total", other(total_tokens=None)),
        ("cispo", other(epsilon_high=2.3)),  # as if the bound were 1 + epsilon_high
        ("cispo, total", other(total_tokens=41)),
        ("sapo", other(sapo_temperature_pos=1.0)),
        ("sapo", other(sapo_temperature_neg=1.05)),
        ("luspo", other(loss_type="grpo")),
    ],
)
def test_reference_sees_a_planted_fault(case, fault):
    arrays = sampled(0, n=6)
    assert far_from_corners(*arrays, **CASES[case])
    agree(expected_loss, arrays, **CASES[case])
    with pytest.raises(AssertionError):
        agree(fault, arrays, **CASES[case])


# --- Known answers ----------------------------------------------------------------------------------------------------

POLICY = np.log([[0.5, 0.2, 0.1], [0.3, 0.6, 0.9]])
OLD = np.log([[0.4, 0.25, 0.1], [0.45, 0.6, 0.5]])
REF = np.log([[0.45, 0.2, 0.2], [0.3, 0.5, 0.9]])
WORKED = POLICY, OLD, REF, np.array([[1, 1, 1], [1, 1, 0]]), np.array([1, -0.5])


@pytest.mark.parametrize(
    ("options", "grpo", "dapo", "dr_grpo"),
    [
        ({}, -0.272762, -0.417377, -0.347814),
        ({"epsilon_high": 0.28}, -0.281095, -0.427377, -0.356148),
        ({"importance_sampling_level": "sequence"}, -0.293638, -0.434078, -0.361731),
    ],
)
def test_known_answers(options, grpo, dapo, dr_grpo):
    """Ratios 1.25 0.8 1 | 2/3 1, advantages 1 and -0.5, beta 0.04.

    By hand, without KL: the clip makes of them 1.2 0.8 1 (sum 3) and 0.8 1 (sum 1.8, times -0.5), so grpo is
    -(3 / 3 - 0.9 / 2) / 2 = -0.275 and dapo -(3 - 0.9) / 5 = -0.42. KL adds 0.04 * (mean of k3).
    """
    options = {"beta": 0.04, **options}
    expected = {"grpo": grpo, "bnpo": dapo, "dapo": dapo, "dr_grpo": dr_grpo}
    for loss_type, value in expected.items():
        loss = ours(WORKED, loss_type=loss_type, max_completion_length=3, **options)
        np.testing.assert_allclose(loss.total.item() / loss.count.item(), value, atol=1e-6)
        assert loss.count.item() == {"grpo": 2, "dr_grpo": 6}.get(loss_type, 5)
    kl, tokens = loss.metrics["kl/ref"]
    np.testing.assert_allclose((kl / tokens).item(), 0.065574, atol=1e-6)


def test_clip_fraction_and_kl():
    """Of five tokens, 1.25 at a positive and 2/3 at a negative advantage are clipped."""
    metrics = ours(WORKED).metrics
    assert [number.item() for number in metrics["clip_fraction"]] == [2, 5]
    back = np.exp(OLD - POLICY) - (OLD - POLICY) - 1
    np.testing.assert_allclose(metrics["kl/old"][0].item(), back[WORKED[3] > 0].sum(), rtol=1e-5)
    swapped = (*WORKED[:4], -WORKED[4])
    assert [number.item() for number in ours(swapped).metrics["clip_fraction"]] == [0, 5]
    assert ours(WORKED, loss_type="cispo", epsilon_high=1.1).metrics["clip_fraction"][0].item() == 1
    assert ours(WORKED, loss_type="sapo").metrics["clip_fraction"][0].item() == 0


@pytest.mark.parametrize("case", [case for case in CASES if "luspo" not in case])
@pytest.mark.parametrize("with_old", [True, False])
def test_at_the_start_it_is_the_plain_policy_gradient(case, with_old):
    """Ratio 1, KL 0, nothing clipped; the slope is -A times what a token weighs. Without `old` the same."""
    policy, _, _, mask, advantages = sampled(1)
    options = {**CASES[case], "epsilon_high": 5.0}
    old = policy if with_old else None
    _, gradient = value_and_gradient((policy, old, policy, mask, advantages), **options)
    loss = ours((policy, old, policy, mask, advantages), **options)
    by_row = loss.count.item() == len(policy)
    weight = mask / (mask.sum(axis=1, keepdims=True) if by_row else 1) / loss.count.item()
    close(gradient, -advantages[:, None] * weight)
    assert [total.item() for total, _ in loss.metrics.values()] == [0, 0, 0]


# --- TRL's records ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(shared):
    path = shared / "oracles" / "trl_losses.json"
    if not path.is_file():
        pytest.skip("needs the recorded losses of TRL")
    return [case for case in json.loads(path.read_text())["cases"] if case["algo"] == "grpo"]


def as_recorded(case, ignore_mask=False, **changed):
    """Compare with a recorded case; the further arguments plant a fault."""
    arrays = [np.array(case[name]) for name in ("logps", "old_logps", "ref_logps", "mask", "advantages")]
    if ignore_mask:
        arrays[3] = np.ones_like(arrays[3])
    value, gradient = value_and_gradient(arrays, loss_type=case["loss_type"], **{**case["params"], **changed})
    close(value.item(), case["loss"])
    close(gradient, case["grad"])


def test_as_trl_recorded(recorded):
    for case in recorded:
        as_recorded(case)
    assert {case["loss_type"] for case in recorded} == {options["loss_type"] for options in CASES.values()}


def test_the_records_see_a_planted_fault(recorded):
    for case in recorded:
        for fault in ({"ignore_mask": True}, {"beta": case["params"]["beta"] + 0.01}):
            with pytest.raises(AssertionError):
                as_recorded(case, **fault)


# --- What must not matter ---------------------------------------------------------------------------------------------


def sums(arrays, **options):
    """Total, count, metric sums; and the gradient of the total."""
    policy, *fixed = arrays_of(arrays)
    loss = losses.grpo(policy, *fixed, **options)
    gradient = mx.grad(lambda policy: losses.grpo(policy, *fixed, **options).total)(policy)
    metrics = {f"{name} {part}": v.item() for name, m in loss.metrics.items() for part, v in zip("tn", m, strict=True)}
    return {"total": loss.total.item(), "count": loss.count.item(), **metrics}, np.array(gradient)


def same(one, other):
    for name, number in one[0].items():
        np.testing.assert_allclose(number, other[0][name], rtol=1e-5, atol=1e-5, err_msg=name)
    close(one[1], other[1])


def split(arrays, size):
    return [[array[i : i + size] for array in arrays] for i in range(0, len(arrays[0]), size)]


@pytest.mark.parametrize("case", [case for case in CASES if case not in SHARED_COUNT])
@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_add_up(case, size):
    """Four micro-batches of two, and eight of one, give what one batch of eight gives."""
    arrays = sampled(2, n=8)
    parts = [sums(part, **CASES[case]) for part in split(arrays, size)]
    whole = sums(arrays, **CASES[case])
    added = {name: sum(part[0][name] for part in parts) for name in whole[0]}
    same((added, np.concatenate([part[1] for part in parts])), whole)


@pytest.mark.parametrize("case", SHARED_COUNT)
def test_a_count_handed_in_is_shared_out_or_the_values_added(case):
    """Shares of total_tokens add up like any count; the whole of it in every micro-batch makes the values add up."""
    arrays = sampled(2, n=8)
    whole, gradient = sums(arrays, **CASES[case])
    share = {**CASES[case], "total_tokens": CASES[case]["total_tokens"] / 4}
    parts = [sums(part, **share) for part in split(arrays, 2)]
    added = {name: sum(part[0][name] for part in parts) for name in whole}
    same((added, np.concatenate([part[1] for part in parts])), (whole, gradient))
    values = [part["total"] / part["count"] for part, _ in (sums(part, **CASES[case]) for part in split(arrays, 2))]
    close(sum(values), whole["total"] / whole["count"])


@pytest.mark.parametrize("case", ["bnpo", "dapo", "cispo"])
def test_a_mean_of_means_is_seen(case):
    """The planted fault: completions differ in length, so the mean of their means is another number."""
    arrays = sampled(2, n=8)
    whole, _ = sums(arrays, **CASES[case])
    rows = [sums(row, **CASES[case])[0] for row in split(arrays, 1)]
    with pytest.raises(AssertionError):
        close(np.mean([row["total"] / row["count"] for row in rows]), whole["total"] / whole["count"])


@pytest.mark.parametrize("case", CASES)
def test_padding_and_padded_rows_do_not_matter(case):
    arrays = sampled(3)
    fillers = np.nan, -np.inf, np.inf, 0
    more = [np.pad(a, ((0, 2), (0, 3)), constant_values=f) for a, f in zip(arrays[:4], fillers, strict=True)]
    whole, gradient = sums([*more, np.pad(arrays[4], (0, 2), constant_values=np.nan)], **CASES[case])
    assert (gradient[more[3] == 0] == 0).all()
    same((whole, gradient[:4, :-3]), sums(arrays, **CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_masked_is_filtered(case):
    """A masked position in the middle is as if it were not there."""
    *arrays, _, advantages = sampled(4, n=1)
    mask = np.array([[1, 0, 0, 1, 1]])
    kept = mask[0] > 0
    whole, gradient = sums((*arrays, mask, advantages), **CASES[case])
    short = (*(array[:, kept] for array in (*arrays, mask)), advantages)
    same((whole, gradient[:, kept]), sums(short, **CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_row_order_does_not_matter(case):
    arrays, order = sampled(5), [2, 0, 3, 1]
    whole, gradient = sums(arrays, **CASES[case])
    same((whole, gradient[order]), sums([array[order] for array in arrays], **CASES[case]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [mx.bool_, mx.int32, mx.float16])
def test_mask_types(case, dtype):
    policy, old, reference, mask, advantages = arrays_of(sampled(6))
    expected = losses.grpo(policy, old, reference, mask, advantages, **CASES[case])
    loss = losses.grpo(policy, old, reference, mask.astype(dtype), advantages, **CASES[case])
    assert loss.total.item() == expected.total.item() and loss.count.item() == expected.count.item()
    assert {a.dtype for a in (loss.total, loss.count, *sum(loss.metrics.values(), ()))} == {mx.float32}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_padding_is_nothing(case):
    policy, old, reference, mask, advantages = sampled(7)
    numbers, gradient = sums((policy, old, reference, 0 * mask, advantages), **CASES[case])
    assert numbers.pop("count") == CASES[case].get("total_tokens", 0)
    assert set(numbers.values()) == {0}
    assert not gradient.any()


def test_a_reference_without_beta_is_only_reported():
    arrays = sampled(8)
    without = (*arrays[:2], None, *arrays[3:])
    assert "kl/ref" not in ours(without).metrics
    assert ours(arrays).metrics["kl/ref"][0].item() > 0
    np.testing.assert_array_equal(value_and_gradient(arrays)[1], value_and_gradient(without)[1])


def test_old_and_reference_are_constants():
    policy, old, reference, mask, advantages = arrays_of(sampled(9))
    for gradient in mx.grad(
        lambda old, reference: losses.grpo(policy, old, reference, mask, advantages, beta=0.1).total, argnums=(0, 1)
    )(old, reference):
        assert not np.array(gradient).any()


def test_metrics_carry_no_gradient():
    policy, *fixed = arrays_of(sampled(9))
    gradient = mx.grad(lambda p: sum(total for total, _ in losses.grpo(p, *fixed).metrics.values()))(policy)
    assert not np.array(gradient).any()


# --- Signs and extremes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_better_goes_up_and_worse_down(case):
    policy, _, _, _, _ = sampled(10)
    advantages = np.array([1.0, -1.0, 0.5, -0.5])
    _, gradient = value_and_gradient((policy, policy, policy, np.ones_like(policy), advantages), **CASES[case])
    assert (np.sign(gradient) == -np.sign(advantages)[:, None]).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extremes_stay_finite(case, size):
    """Log-ratios of 10,000 nats a token, to the old policy and to the reference."""
    policy, _, _, mask, advantages = sampled(11)
    arrays = policy, policy - size, policy - size, mask, advantages
    value, gradient = value_and_gradient(arrays, **CASES[case])
    assert np.isfinite(value.item())
    assert np.isfinite(np.array(gradient)).all()
    assert all(np.isfinite(total.item()) for total, _ in ours(arrays, **CASES[case]).metrics.values())


def test_exponents_are_bounded_at_20():
    """Worse, and 30 nats likelier than before: the ratio is exp(20) and has no slope; 15 nats: exp(15) and its own."""
    for nats, ratio, slope in ((15.0, math.exp(15), math.exp(15)), (30.0, math.exp(20), 0.0)):
        arrays = [[0.0]], [[-nats]], None, [[1]], [-1.0]
        value, gradient = value_and_gradient(arrays)
        np.testing.assert_allclose((value.item(), gradient.item()), (ratio, slope), rtol=1e-5)
        kl = ours(([[-nats]], [[-nats]], [[0.0]], [[1]], [0.0]), beta=1.0).total.item()
        np.testing.assert_allclose(kl, ratio - math.log(ratio) - 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "drgrpo"}, "loss_type 'drgrpo' is not known; nearest: 'dr_grpo'"),
        ({"importance_sampling_level": "tokens"}, "importance_sampling_level 'tokens' is not known; nearest: 'token'"),
        ({"loss_type": "dr_grpo"}, "max_completion_length: dr_grpo"),
        ({"beta": 0.1}, "beta 0.1: .* reference is None"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        losses.grpo(mx.ones((1, 1)), None, None, mx.ones((1, 1)), mx.ones(1), **options)


def test_advantages_of_another_shape_are_not_stretched():
    policy, old, _, mask, advantages = sampled(14)
    for wrong in (advantages[:, None], advantages[:1]):
        with pytest.raises(ValueError, match="advantages of shape"):
            ours((policy, old, None, mask, wrong))


# --- Advantages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 4), group_size=st.integers(1, 6))
def test_advantages_reference(scale, seed, groups, group_size):
    rewards = np.random.default_rng(seed).uniform(-1, 1, groups * group_size).astype(np.float32)
    advantages = losses.group_advantages(mx.array(rewards), group_size, scale=scale)
    close(advantages, expected_advantages(rewards.astype(float), group_size, scale))


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_the_deviation_without_bessels_correction_is_seen(scale):
    rewards = np.random.default_rng(0).uniform(-1, 1, 8).astype(np.float32)
    with pytest.raises(AssertionError):
        close(
            losses.group_advantages(mx.array(rewards), 4, scale=scale),
            expected_advantages(rewards, 4, scale, correction=0),
        )


def test_advantages_by_hand():
    """Rewards 1 0 0 0.5: mean 0.375, squares' sum 0.6875, deviation sqrt(0.6875 / 3) = 0.478714; 0.625 / 0.478814."""
    advantages = losses.group_advantages(mx.array([1, 0, 0, 0.5]), 4)
    np.testing.assert_allclose(advantages, [1.305310, -0.783186, -0.783186, 0.261062], atol=1e-6)
    centred = losses.group_advantages(mx.array([1, 0, 0, 0.5]), 4, scale="none")
    np.testing.assert_allclose(centred, [0.625, -0.375, -0.375, 0.125])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 1e6, -0.7])
def test_equal_rewards_give_exactly_nothing(scale, reward):
    """Also where the mean of equal float32 numbers is another number: 7e-9 / 1e-4 would be a gradient of noise."""
    for group_size in (1, 3, 7):
        advantages = losses.group_advantages(mx.array([reward] * 2 * group_size), group_size, scale=scale)
        assert advantages.tolist() == [0.0] * 2 * group_size


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_constant_added_to_all_rewards_does_not_matter(scale):
    rewards = mx.array([1, 0, 0, 0.5, 0.25, 0.75, 0.75, 0])
    expected = losses.group_advantages(rewards, 4, scale=scale)
    np.testing.assert_allclose(losses.group_advantages(rewards + 8, 4, scale=scale), expected, rtol=1e-5)


def test_groups_do_not_see_each_other():
    one, two = mx.array([1, 0, 0, 0.5]), mx.array([5.0, 9, 9, 7])
    both = losses.group_advantages(mx.concatenate([one, two]), 4)
    alone = [losses.group_advantages(group, 4) for group in (one, two)]
    np.testing.assert_array_equal(both, mx.concatenate(alone))


def test_advantages_are_constants():
    gradient = mx.grad(lambda rewards: losses.group_advantages(rewards, 2)[0])(mx.array([1.0, 0.0]))
    assert gradient.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("group_size", "scale", "message"),
    [(3, "group", "group_size 3 does not divide .* 4"), (0, "group", "group_size 0"), (2, "groups", "scale 'groups'")],
)
def test_advantages_that_cannot_be(group_size, scale, message):
    with pytest.raises(ValueError, match=message):
        losses.group_advantages(mx.zeros(4), group_size, scale=scale)


# --- Compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_equals_plain(monkeypatch, case):
    arrays = sampled(12)
    plain = [sums(given, **CASES[case]) for given in (arrays, (arrays[0], None, *arrays[2:]))]
    monkeypatch.setattr(compiling, "by_default", lambda: True)
    same(sums(arrays, **CASES[case]), plain[0])
    same(sums((arrays[0], None, *arrays[2:]), **CASES[case]), plain[1])


@pytest.mark.slow
def test_a_setting_is_not_traced_anew(monkeypatch):
    module = sys.modules[losses.grpo.__module__]
    traces, variant = [], module._VARIANTS["dapo"]
    counting = variant._replace(loss=lambda s: traces.append(1) or variant.loss(s))
    monkeypatch.setitem(module._VARIANTS, "dapo", counting)
    monkeypatch.setattr(compiling, "by_default", lambda: True)
    arrays = sampled(13, n=3, width=7)
    values = [{"delta": 1.3}, {"epsilon_high": 0.5}, {"beta": 0.1}, {"max_completion_length": 9}]
    assert len({ours(arrays, loss_type="dapo", **value).total.item() for value in values}) >= 3
    assert len(traces) == 1
