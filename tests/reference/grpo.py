"""The GRPO family in float64, one token at a time, from the papers' formulas as TRL applies them."""

import math

import numpy as np


def advantages(rewards, group_size, scale="group", correction=1):
    """Reward minus its group's mean, over the deviation of the group or the batch (n - correction in it) + 1e-4."""
    result = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        spread = {"group": group, "batch": rewards, "none": None}[scale]
        divisor = 1.0
        if spread is not None:
            squares = sum((reward - np.mean(spread)) ** 2 for reward in spread)
            divisor = math.sqrt(squares / max(len(spread) - correction, 1)) + 1e-4
        result.extend((reward - np.mean(group)) / divisor for reward in group)
    return np.array(result)


def token_loss(loss_type, ratio, advantage, logp, low, high, delta, temperature_pos, temperature_neg):
    if loss_type == "cispo":
        raise KeyError("cispo's ratio is a constant: it comes from the caller")
    if loss_type == "sapo":
        temperature = temperature_pos if advantage > 0 else temperature_neg
        return -advantage * 4 / temperature / (1 + math.exp(-temperature * (ratio - 1)))
    inside = min(max(ratio, 1 - low), 1 + high)
    outer = ratio if delta is None else min(ratio, delta)
    return -min(outer * advantage, inside * advantage)


def loss(
    policy,
    old,
    reference,
    mask,
    advantages,
    *,
    frozen=None,
    loss_type="grpo",
    importance_sampling_level="token",
    beta=0.0,
    epsilon_low=0.2,
    epsilon_high=0.2,
    delta=None,
    max_completion_length=None,
    total_tokens=None,
    sapo_temperature_pos=1.0,
    sapo_temperature_neg=1.05,
):
    """The loss as a number. `frozen` is the policy that cispo's constant ratio is of: differences must not move it."""
    frozen = policy if frozen is None else frozen
    sums, lengths = [], []
    for row in range(len(mask)):
        places = np.flatnonzero(mask[row])
        if not len(places):
            continue
        mean = np.mean([policy[row, t] - old[row, t] for t in places])
        mean_frozen = np.mean([frozen[row, t] - old[row, t] for t in places])
        total = 0.0
        for t in places:
            sequence = importance_sampling_level == "sequence"
            if loss_type == "cispo":
                constant = math.exp(mean_frozen if sequence else frozen[row, t] - old[row, t])
                total -= min(constant, epsilon_high) * advantages[row] * policy[row, t]
            else:
                ratio = math.exp(mean if sequence else policy[row, t] - old[row, t])
                settings = epsilon_low, epsilon_high, delta, sapo_temperature_pos, sapo_temperature_neg
                total += token_loss(loss_type, ratio, advantages[row], policy[row, t], *settings)
            if beta:
                d = reference[row, t] - policy[row, t]
                total += beta * (math.exp(d) - d - 1)
        sums.append(total)
        lengths.append(len(places))
    if loss_type in ("grpo", "sapo"):
        return np.mean([total / length for total, length in zip(sums, lengths, strict=True)])
    if loss_type == "luspo":  # a mean over completions, each times its length
        return np.mean(sums)
    if loss_type == "dr_grpo":
        return sum(sums) / (len(sums) * max_completion_length)
    if loss_type == "bnpo" or total_tokens is None:
        return sum(sums) / sum(lengths)
    return sum(sums) / total_tokens
