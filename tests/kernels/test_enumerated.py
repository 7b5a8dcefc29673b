"""The closed-set objective: against a float64 formula, against its own sampled estimate, at its known answers."""

import runpy
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_email.kernels import losses

REFERENCE = Path(__file__).parents[1] / "reference"
expected = runpy.run_path(str(REFERENCE / "enumerated.py"))["loss"]
log_softmax = runpy.run_path(str(REFERENCE / "enumerated.py"))["log_softmax"]
central_differences = runpy.run_path(str(REFERENCE / "gradient.py"))["central_differences"]

CASES = {
    "plain": {},
    "kl": {"beta": 0.3},
    "k3": {"beta": 0.3, "kl": "k3"},
    "narrow": {"epsilon_low": 0.05, "epsilon_high": 0.3},
    "scaled": {"scale": True, "beta": 0.1},
}


def inputs(seed: int, moved: float = 0.3, rows: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    policy = rng.normal(0, 1.5, (rows, 5)) - 2
    return {
        "policy": policy,
        "old": policy + rng.normal(0, moved, policy.shape),
        "reference": policy + rng.normal(0, 0.5, policy.shape),
        "rewards": rng.uniform(0, 1, policy.shape).round(1),
        "mask": (np.arange(rows) % 3 > 0).astype(float),
    }


def found(given, **options):
    arrays = {name: None if value is None else mx.array(value, mx.float32) for name, value in given.items()}

    def value(policy):
        return losses.enumerated(policy, *(arrays[n] for n in ("old", "reference", "rewards", "mask")), **options).total

    return mx.value_and_grad(value)(arrays["policy"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_old", [True, False])
def test_against_float64(name, with_old):
    given, options = inputs(3), CASES[name]
    if not with_old:
        given["old"] = None
    frozen = given["old"] if with_old else given["policy"].copy()
    rest = (frozen, given["reference"], given["rewards"], given["mask"])
    total, gradient = found(given, **options)
    assert total.item() == pytest.approx(expected(given["policy"], *rest, **options)[0], abs=1e-5)
    slope = central_differences(lambda policy: expected(policy, *rest, **options)[0], given["policy"])
    np.testing.assert_allclose(np.array(gradient), slope, atol=1e-5)


@pytest.mark.parametrize("fault", [{"epsilon_low": 0.5}, {"beta": 0.31}, {"kl": "k3"}, {"scale": True}])
def test_another_setting_would_be_seen(fault):
    given = inputs(3)
    rest = (given["old"], given["reference"], given["rewards"], given["mask"])
    _, gradient = found(given, **{"beta": 0.3, **fault})
    slope = central_differences(lambda policy: expected(policy, *rest, beta=0.3)[0], given["policy"])
    assert np.abs(np.array(gradient) - slope).max() > 1e-4


def sampled_gradients(given, **options) -> np.ndarray:
    """For each row and each action that might be drawn: the gradient of GRPO's loss of that one draw, (N, 5, 5)."""
    rewards, old = given["rewards"], np.exp(log_softmax(given["old"]))
    advantages = rewards - (old * rewards).sum(axis=1, keepdims=True)

    def of(policy, row, action):
        def drawn(values):
            return (values - mx.logsumexp(values))[action][None, None]

        others = (mx.array(given[name][row], mx.float32) for name in ("old", "reference"))
        return losses.grpo(
            drawn(policy),
            *(drawn(each) for each in others),
            mx.ones((1, 1)),
            mx.array(advantages[row, action : action + 1], mx.float32),
            **options,
        ).total

    return np.array(
        [
            [np.array(mx.grad(lambda p: of(p, row, a))(mx.array(policy, mx.float32))) for a in range(5)]  # noqa: B023
            for row, policy in enumerate(given["policy"])
        ]
    )


def z_scores(given, exact: np.ndarray, draws: int, **options) -> np.ndarray:
    """How many standard errors the mean gradient of many draws from the old policy is from `exact`, along random
    directions."""
    rng = np.random.default_rng(5)
    gradients = sampled_gradients(given, **options)
    scores = []
    for row, old in enumerate(np.exp(log_softmax(given["old"]))):
        directions = rng.normal(size=(8, 5))
        along = gradients[row] @ directions.T  # (5 actions, 8)
        counts = rng.multinomial(draws, old / old.sum())
        mean = counts @ along / draws
        error = np.sqrt((counts @ (along - mean) ** 2 / draws) / draws)
        scores.append((mean - exact[row] @ directions.T) / error)
    return np.abs(np.array(scores))


@pytest.mark.parametrize("moved", [0.0, 0.3])  # at the old policy, and past some of the clip's borders
def test_it_is_the_mean_of_many_sampled_gradients(moved):
    given = inputs(7, moved, rows=4)
    given["mask"][:] = 1
    options = {"beta": 0.2, "epsilon_low": 0.2, "epsilon_high": 0.2}
    _, gradient = found(given, kl="k3", **options)
    assert z_scores(given, np.array(gradient), 100_000, **options).max() < 4


@pytest.mark.parametrize("fault", [{"kl": "exact"}, {"epsilon_high": 2.0}, {"epsilon_low": 0.6}, {"scale": True}])
def test_the_mean_of_another_objective_would_be_seen(fault):
    given = inputs(7, 0.3, rows=4)
    given["mask"][:] = 1
    options = {"beta": 0.2, "epsilon_low": 0.2, "epsilon_high": 0.2}
    _, gradient = found(given, **{"kl": "k3", **options, **fault})
    assert z_scores(given, np.array(gradient), 100_000, **options).max() > 6


def test_at_the_old_policy_it_is_the_gradient_of_the_expected_reward():
    given = {**inputs(1), "old": None}
    _, gradient = found(given)

    def value(policy):
        real = mx.array(given["mask"], mx.float32)[:, None]
        return -(mx.softmax(policy, axis=-1) * mx.array(given["rewards"], mx.float32) * real).sum()

    wanted = mx.grad(value)(mx.array(given["policy"], mx.float32))
    np.testing.assert_allclose(np.array(gradient), np.array(wanted), atol=1e-6)


def test_masked_rows_and_equal_rewards_teach_nothing():
    given = {**inputs(2), "old": None}
    given["rewards"][1] = 0.7
    given["policy"][0] = np.nan
    _, gradient = found(given)
    assert np.abs(np.array(gradient)[given["mask"] == 0]).max() == 0
    assert np.abs(np.array(gradient)[1]).max() < 1e-7
    given["mask"][:] = 0
    loss = losses.enumerated(
        *(mx.array(given[n], mx.float32) for n in ("policy", "policy", "policy", "rewards", "mask"))
    )
    assert (loss.total.item(), loss.count.item()) == (0, 0)


def test_what_it_reports():
    given = inputs(4, rows=2)
    given["mask"][:] = 1
    arrays = [mx.array(given[name], mx.float32) for name in ("policy", "old", "reference", "rewards", "mask")]
    said = {name: (value / n).item() for name, (value, n) in losses.enumerated(*arrays, beta=0.1).metrics.items()}
    p, q, r = (np.exp(log_softmax(given[name])) for name in ("policy", "old", "reference"))
    assert said["reward"] == pytest.approx((q * given["rewards"]).sum() / 2, rel=1e-5)
    assert said["entropy"] == pytest.approx(-(p * np.log(p)).sum() / 2, rel=1e-5)
    assert said["kl/ref"] == pytest.approx((p * np.log(p / r)).sum() / 2, rel=1e-4)
    assert said["kl/old"] == pytest.approx((q * np.log(q / p)).sum() / 2, rel=1e-4)


def test_refusals():
    arrays = [mx.array(inputs(0)[name], mx.float32) for name in ("policy", "old", "reference", "rewards", "mask")]
    with pytest.raises(ValueError, match="kl 'k2' is not known"):
        losses.enumerated(*arrays, kl="k2")
    with pytest.raises(ValueError, match="reference is None"):
        losses.enumerated(arrays[0], None, None, *arrays[3:], beta=0.1)
