"""The expectation of PPO's clipped objective over a closed set of actions, written from the formulas in float64."""

import numpy as np


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def loss(
    policy, old, reference, rewards, mask, *, beta=0.0, epsilon_low=0.2, epsilon_high=0.2, scale=False, kl="exact"
):
    """Row by row and action by action."""
    total, count = 0.0, 0
    policy = log_softmax(policy)
    old = policy if old is None else log_softmax(old)
    for row in range(len(policy)):
        if not mask[row]:
            continue
        count += 1
        p, q = np.exp(policy[row]), np.exp(old[row])
        advantages = rewards[row] - q @ rewards[row]
        if scale:
            advantages = advantages / (np.sqrt(q @ advantages**2) + 1e-4)
        for action, advantage in enumerate(advantages):
            ratio = p[action] / q[action]
            clipped = min(max(ratio, 1 - epsilon_low), 1 + epsilon_high)
            total -= q[action] * min(ratio * advantage, clipped * advantage)
        if beta:
            r = np.exp(log_softmax(reference[row]))
            divergence = p @ np.log(p / r) if kl == "exact" else q @ (r / p - np.log(r / p) - 1)
            total += beta * divergence
    return total, count
