"""Attention and the gate in float64, from their definitions, with gradients."""

import numpy as np


def attention(queries, keys, values, scale, seen):
    """queries (B, H, n, E), keys (B, K, m, E), values (B, K, m, F), seen (B, 1, n, m) bool -> output, weights."""
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, repeats, 1), np.repeat(values, repeats, 1)
    scores = np.where(seen, scale * np.einsum("bhne,bhme->bhnm", queries, keys), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bhmf->bhnf", weights, values), weights


def gradients(queries, keys, values, scale, seen, by_output):
    """Of sum(output * by_output), in queries, keys and values."""
    heads, repeats = keys.shape[1], queries.shape[1] // keys.shape[1]
    _, weights = attention(queries, keys, values, scale, seen)
    keys, values = np.repeat(keys, repeats, 1), np.repeat(values, repeats, 1)
    by_weights = np.einsum("bhnf,bhmf->bhnm", by_output, values)
    by_scores = weights * (by_weights - (weights * by_weights).sum(-1, keepdims=True))
    by_keys = scale * np.einsum("bhnm,bhne->bhme", by_scores, queries)
    by_values = np.einsum("bhnm,bhnf->bhmf", weights, by_output)

    def grouped(array):
        return array.reshape(array.shape[0], heads, repeats, *array.shape[2:]).sum(2)

    return scale * np.einsum("bhnm,bhme->bhne", by_scores, keys), grouped(by_keys), grouped(by_values)


def swiglu(gate, x):
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * x
