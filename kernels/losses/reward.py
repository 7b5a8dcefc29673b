"""The reward model's loss: of two completions the preferred one gets the higher reward."""

import mlx.core as mx

from mlx_email.kernels.compiling import compiled
from mlx_email.kernels.losses.common import Loss, log_sigmoid, number, real_values


@compiled
def _sums(chosen: mx.array, rejected: mx.array, margin: mx.array, mask: mx.array, centring: mx.array) -> Loss:
    counted = mask > 0
    chosen, rejected = real_values(chosen, counted), real_values(rejected, counted)
    difference = chosen - rejected
    losses = -log_sigmoid(difference - real_values(margin, counted)) + centring * mx.square(chosen + rejected)
    count = counted.sum().astype(mx.float32)
    reported = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margin": difference,
        "rewards/accuracy": (chosen > rejected).astype(mx.float32),
    }
    return Loss(
        mx.where(counted, losses, 0.0).sum(),
        count,
        {name: (mx.stop_gradient(values).sum(), count) for name, values in reported.items()},
    )


def bradley_terry(
    chosen_rewards: mx.array,
    rejected_rewards: mx.array,
    *,
    margin: mx.array | None = None,
    center_rewards_coefficient: float = 0.0,
    mask: mx.array | None = None,
) -> Loss:
    """-log sigmoid(chosen - rejected - margin) + coefficient * (chosen + rejected)^2, counted in pairs.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the margin Touvron et al. 2023, arXiv
    2307.09288, eq. 2; the centring, which keeps rewards near 0, Eisenstein et al. 2023, arXiv 2312.09244, section 2.1.

    Shapes: rewards, margin and mask all (N,), or all of one other shape; mask, float or bool, 1 on the pairs that
    count (None: all). Metrics, over pairs: rewards/chosen, /rejected, /margin, /accuracy (chosen above rejected).

    >>> loss = bradley_terry(mx.array([1.2, 0.1]), mx.array([0.4, 0.5]))
    >>> round(loss.total.item() / 2, 6), loss.metrics["rewards/accuracy"][0].item()
    (0.642058, 1.0)
    """
    margin = mx.zeros_like(chosen_rewards) if margin is None else margin
    mask = mx.ones_like(chosen_rewards) if mask is None else mask
    return _sums(chosen_rewards, rejected_rewards, margin, mask, number(center_rewards_coefficient))
