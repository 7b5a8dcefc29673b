"""Kahneman-Tversky optimisation: single completions that are wanted or not, weighed against a point of reference."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_email.kernels.compiling import compiled
from mlx_email.kernels.losses.common import Loss, named, number, real_values

# loss_type -> (beta * log-ratio, beta * KL, desirable) -> (N,) losses between 0 and 1
_VARIANTS: dict[str, Callable[[mx.array, mx.array, mx.array], mx.array]] = {
    # 1 - sigmoid(x) is sigmoid(-x), which keeps its digits where it is small.
    "kto": lambda reward, kl, desirable: mx.sigmoid(mx.where(desirable, kl - reward, reward - kl)),
    "apo_zero_unpaired": lambda reward, kl, desirable: mx.sigmoid(mx.where(desirable, -reward, reward)),  # noqa: ARG005
}


def _sums(
    loss_type: str,
    policy: mx.array,
    reference: mx.array,
    mask: mx.array,
    desirable: mx.array,
    kl: tuple[mx.array, mx.array],
    settings: tuple[mx.array, mx.array, mx.array],
) -> Loss:
    beta, desirable_weight, undesirable_weight = settings
    real = mask > 0
    counted = real.any(axis=-1)
    wanted = desirable.astype(mx.float32) > 0
    log_ratio = (real_values(policy, real) - mx.stop_gradient(real_values(reference, real))).sum(axis=-1)
    divergence = mx.stop_gradient(mx.maximum((kl[0].astype(mx.float32) - kl[1].astype(mx.float32)).mean(), 0.0))
    losses = _VARIANTS[loss_type](beta * log_ratio, beta * divergence, wanted)
    weights = mx.where(wanted, desirable_weight, undesirable_weight)
    rewards = mx.stop_gradient(beta * log_ratio)
    count = counted.sum().astype(mx.float32)

    def among(rows: mx.array) -> tuple[mx.array, mx.array]:
        return mx.where(rows, rewards, 0.0).sum(), rows.sum().astype(mx.float32)

    metrics = {
        "rewards/desirable": among(counted & wanted),
        "rewards/undesirable": among(counted & ~wanted),
        "kl": (divergence * count, count),
    }
    return Loss(mx.where(counted, weights * losses, 0.0).sum(), count, metrics)


_COMPILED = {loss_type: compiled(partial(_sums, loss_type)) for loss_type in _VARIANTS}


def kto(
    policy: mx.array,
    reference: mx.array,
    mask: mx.array,
    desirable: mx.array,
    kl_policy: mx.array,
    kl_reference: mx.array,
    *,
    loss_type: str = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Loss:
    """weight * (1 - sigmoid(beta * (log-ratio - KL))) where desirable, else weight * (1 - sigmoid(beta * (KL -
    log-ratio))), counted in completions.

    Source: Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8, as in TRL: KL is one number for the batch, the mean
    log-ratio of completions that belong to other prompts, at least 0 and without gradient. `apo_zero_unpaired`
    (D'Oosterlinck et al. 2024, arXiv 2408.06266) has no KL.

    Shapes: log-probabilities (N, C) in nats; mask (N, C), float or bool, 1 on completion tokens; desirable (N,), bool
    or 0 and 1; kl_policy and kl_reference (M,): log-probabilities of the mismatched completions, summed over their
    tokens, of the whole optimiser batch where it has several micro-batches. The reference is a constant. A row without
    a token counts nothing.
    Metrics: rewards/desirable and /undesirable (beta * log-ratio, over their own rows), kl.

    Raises ValueError for an unknown loss_type.

    At the start policy and reference agree, and the loss is a half, whichever class a completion has:

    >>> half = mx.log(mx.array([[0.5, 0.5], [0.5, 0.5]]))
    >>> loss = kto(half, half, mx.ones((2, 2)), mx.array([1, 0]), mx.array([-3.0]), mx.array([-3.0]))
    >>> loss.total.item() / loss.count.item()
    0.5
    >>> up = kto(half + 1, half, mx.ones((2, 2)), mx.array([1, 0]), mx.array([-2.5]), mx.array([-3.0]), beta=1.0)
    >>> [round(value.item(), 4) for value in (up.total, up.metrics["kl"][0] / 2, up.metrics["rewards/desirable"][0])]
    [1.0, 0.5, 2.0]
    """
    sums = named(_COMPILED, loss_type, "loss_type")
    settings = number(beta), number(desirable_weight), number(undesirable_weight)
    return sums(policy, reference, mask, desirable, (kl_policy, kl_reference), settings)
