"""KTO and the Bradley-Terry loss in float64, one example at a time, from the papers' formulas as TRL applies them."""

import math


def logistic(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def kto(policy, reference, mask, desirable, kl_policy, kl_reference, loss_type="kto", beta=0.1, weights=(1.0, 1.0)):
    """The mean over examples that have a token."""
    kl = max(0.0, sum(p - f for p, f in zip(kl_policy, kl_reference, strict=True)) / len(kl_policy))
    losses = []
    for row, wanted in enumerate(desirable):
        real = [place for place, one in enumerate(mask[row]) if one > 0]
        if not real:
            continue
        ratio = sum(policy[row][place] - reference[row][place] for place in real)
        if loss_type == "apo_zero_unpaired":
            loss = 1 - logistic(beta * ratio) if wanted else logistic(beta * ratio)
        else:
            loss = 1 - logistic(beta * (ratio - kl)) if wanted else 1 - logistic(beta * (kl - ratio))
        losses.append(weights[0 if wanted else 1] * loss)
    return sum(losses) / len(losses)


def bradley_terry(chosen, rejected, margin=None, centring=0.0):
    """The mean over pairs."""
    losses = []
    for place, (better, worse) in enumerate(zip(chosen, rejected, strict=True)):
        ahead = better - worse - (0.0 if margin is None else margin[place])
        losses.append(math.log1p(math.exp(-ahead)) + centring * (better + worse) ** 2)
    return sum(losses) / len(losses)
