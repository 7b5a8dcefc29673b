"""Log-probability of a token under softmax(W h + b) and its derivative by h, in float64, one token at a time."""

import numpy as np


def logprob(hidden, weight, bias, targets):
    """(N, D), (V, D), (V,), (N,) -> log-probabilities (N,) in nats and their derivatives (N, D)."""
    values, directions = [], []
    for h, target in zip(np.asarray(hidden, np.float64), targets, strict=True):
        odds = np.asarray(weight, np.float64) @ h + bias
        odds = odds - odds[target]  # log of p_v / p_target
        top = odds.max()
        total = np.exp(odds - top).sum()
        others = np.exp(np.delete(odds, target) - top)
        if top > 0:
            values.append(-(top + np.log(total)))
        else:  # the target is the likeliest: keep every digit of a small 1 - p
            values.append(-np.log1p(others.sum()))
        differences = weight[target] - np.delete(np.asarray(weight, np.float64), target, axis=0)
        directions.append((others / total) @ differences)
    return np.array(values), np.array(directions)
