"""How much better than its group a completion was."""

import mlx.core as mx

# As in TRL; it also keeps a group whose rewards hardly differ from being blown up to unit variance.
FLOOR = 1e-4


def group_advantages(rewards: mx.array, group_size: int, *, scale: str = "group") -> mx.array:
    """(reward - mean of its group) / (standard deviation + 1e-4); equal rewards give exactly 0.

    Source: Shao et al. 2024, arXiv 2402.03300, section 4.1.2; the deviation has Bessel's correction, as in TRL. It is
    the group's, the whole batch's (`scale="batch"`: Liu et al. 2025, arXiv 2508.08221) or left out (`"none"`: Dr. GRPO,
    Liu et al. 2025, arXiv 2503.20783). `"batch"` is a statistic of the rewards it sees: hand it the whole batch.

    Shapes: rewards (N,), the members of a group side by side -> (N,) float32, a constant for the gradient.
    Raises ValueError for a number of rewards that group_size does not divide, and an unknown scale.

    >>> [round(a, 5) for a in group_advantages(mx.array([1.0, 0.0, 0.0, 0.5]), 4).tolist()]
    [1.30531, -0.78319, -0.78319, 0.26106]
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale {scale!r} is not known; known: group, batch, none")
    if group_size < 1 or rewards.size % group_size:
        raise ValueError(f"group_size {group_size} does not divide the number of rewards, {rewards.size}")
    groups = mx.stop_gradient(rewards.astype(mx.float32)).reshape(-1, group_size)
    centred = _centred(groups)
    if scale == "group":
        centred = centred / (_deviation(groups) + FLOOR)
    if scale == "batch":
        centred = centred / (_deviation(groups.reshape(1, -1)) + FLOOR)
    return centred.reshape(-1)


def leave_one_out(rewards: mx.array, group_size: int) -> mx.array:
    """Reward - mean of the others of its group; equal rewards give exactly 0.

    Source: RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, section 3). Shapes as `group_advantages`.
    Raises ValueError for a number of rewards that group_size does not divide, and groups of one.

    >>> [round(a, 5) for a in leave_one_out(mx.array([1.0, 0.0, 0.0, 0.5]), 4).tolist()]
    [0.83333, -0.5, -0.5, 0.16667]
    """
    if group_size < 2:
        raise ValueError(f"group_size {group_size}: leave-one-out needs others")
    return group_advantages(rewards, group_size, scale="none") * (group_size / (group_size - 1))


def _centred(rows: mx.array) -> mx.array:
    # From the first value on: the mean of equal numbers need not be that number, and 1e-8 / 1e-4 is not 0.
    moved = rows - rows[:, :1]
    return moved - moved.mean(axis=1, keepdims=True)


def _deviation(rows: mx.array) -> mx.array:
    """Standard deviation with Bessel's correction, (rows, 1); 0 for a single value."""
    return mx.sqrt(mx.square(_centred(rows)).sum(axis=1, keepdims=True) / max(rows.shape[1] - 1, 1))
