"""Policy optimisation over a closed set of actions: the expectation itself, where sampling only estimates it."""

from functools import partial

import mlx.core as mx

from mlx_email.kernels.compiling import compiled
from mlx_email.kernels.losses.advantages import FLOOR
from mlx_email.kernels.losses.common import Loss, bounded, named, number, real_values


def _exact(policy: mx.array, old: mx.array, log_ratio: mx.array) -> mx.array:  # noqa: ARG001
    return (mx.exp(policy) * log_ratio).sum(axis=-1)


def _k3(policy: mx.array, old: mx.array, log_ratio: mx.array) -> mx.array:  # noqa: ARG001
    back = bounded(-log_ratio)
    return (mx.exp(old) * (mx.exp(back) - back - 1)).sum(axis=-1)


_KL = {"exact": _exact, "k3": _k3}


def _log_softmax(values: mx.array) -> mx.array:
    return values - mx.logsumexp(values, axis=-1, keepdims=True)


def _sums(
    kl: str,
    policy: mx.array,
    old: mx.array | None,
    reference: mx.array | None,
    rewards: mx.array,
    mask: mx.array,
    beta: mx.array,
    low: mx.array,
    high: mx.array,
    scaled: mx.array,
) -> Loss:
    real = mask > 0
    rows = real[:, None]
    policy = _log_softmax(real_values(policy, rows))
    old = mx.stop_gradient(policy if old is None else _log_softmax(real_values(old, rows)))
    rewards = mx.stop_gradient(real_values(rewards, rows))
    weights = mx.exp(old)
    mean = (weights * rewards).sum(axis=-1, keepdims=True)
    advantages = rewards - mean
    deviation = mx.sqrt((weights * mx.square(advantages)).sum(axis=-1, keepdims=True))
    advantages = mx.where(scaled > 0, advantages / (deviation + FLOOR), advantages)

    ratio = mx.exp(bounded(policy - old))
    inside = mx.clip(ratio, 1 - low, 1 + high)
    losses = -(weights * mx.minimum(ratio * advantages, inside * advantages)).sum(axis=-1)
    outside = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    reported = {
        "clip_fraction": (weights * outside).sum(axis=-1),
        "kl/old": (weights * (old - policy)).sum(axis=-1),
        "entropy": -(mx.exp(policy) * policy).sum(axis=-1),
        "reward": mean[:, 0],
        "reward/std": deviation[:, 0],
    }
    if reference is not None:
        log_ratio = policy - _log_softmax(mx.stop_gradient(real_values(reference, rows)))
        reported["kl/ref"] = _KL[kl](policy, old, log_ratio)
        losses = losses + beta * reported["kl/ref"]
    count = real.astype(mx.float32).sum()
    sums = {name: mx.stop_gradient(mx.where(real, values, 0.0)).sum() for name, values in reported.items()}
    return Loss(mx.where(real, losses, 0.0).sum(), count, {name: (total, count) for name, total in sums.items()})


_COMPILED = {kl: compiled(partial(_sums, kl)) for kl in _KL}


def enumerated(
    policy: mx.array,
    old: mx.array | None,
    reference: mx.array | None,
    rewards: mx.array,
    mask: mx.array,
    *,
    beta: float = 0.0,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    scale: bool = False,
    kl: str = "exact",
) -> Loss:
    """E_a~old[-min(ratio * A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) * A)] + beta * KL(policy || reference).

    The clipped objective of PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7) and GRPO (Shao et al. 2024, arXiv
    2402.03300, eq. 3), summed over all K actions by their probabilities instead of sampled. Ratio is policy / old of an
    action; A is its reward less the mean reward under `old`, with `scale` over (the deviation under `old` + 1e-4). So
    at policy = old the gradient is that of the expected reward, exactly.

    KL is "exact", sum of policy * log(policy / reference), or "k3", what the estimate of `losses.grpo` is on average
    over actions drawn from `old`; their gradients differ, as k3's leaves out how the draw depends on the policy.

    Shapes: log-probabilities (N, K), nats, of the K actions; they need not sum to one, they are normalised here, and
    with them their gradient. rewards (N, K). mask (N,), float or bool. `old` and `reference` are constants; without
    `old` it is the policy itself. Count: the rows that the mask has. Metrics, over those: clip_fraction, kl/old,
    entropy (nats), reward and reward/std under `old`, and with a reference kl/ref.

    Raises ValueError for an unknown kl, and beta without reference.

    Two actions as likely as each other, rewards 1 and 0: moving towards the first gains a quarter a nat.

    >>> def value(policy):
    ...     loss = enumerated(policy, None, None, mx.array([[1.0, 0.0]]), mx.ones(1))
    ...     return loss.total / loss.count
    >>> mx.grad(value)(mx.log(mx.array([[0.5, 0.5]]))).tolist()
    [[-0.25, 0.25]]
    """
    sums = named(_COMPILED, kl, "kl")
    if beta != 0 and reference is None:
        raise ValueError(f"beta {beta}: the KL term needs the reference's log-probabilities, reference is None")
    numbers = (number(value) for value in (beta, epsilon_low, epsilon_high, float(scale)))
    return sums(policy, old, reference, rewards, mask, *numbers)
