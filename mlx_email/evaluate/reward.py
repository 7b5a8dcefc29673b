"""How well a reward model ranks: arrays of rewards in, plain values out."""

from typing import Any

import numpy as np

NOTHING: dict[str, Any] = {"examples": 0, "pairs": 0}  # where no message says for certain what was not done


def summary(rewards: np.ndarray, real: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The metrics of N examples whose first completion should have the highest reward.

    rewards (N, G, members); real (N, G) bool: False where an example has fewer completions. The reward is the members'
    mean; the difference of two is the log-odds that the first is preferred, which is what calibration looks at. The
    interval is a percentile bootstrap over examples: the pairs of one are not independent.
    """
    mean = rewards.mean(axis=-1).astype(np.float64)
    pairs = real[:, :1] & real[:, 1:]
    difference = np.where(pairs, mean[:, :1] - mean[:, 1:], 0.0)
    right = pairs & (difference > 0)
    rng, of_example = np.random.default_rng(seed), np.stack([right.sum(axis=1), pairs.sum(axis=1)], axis=1)
    drawn = [of_example[rng.integers(0, len(mean), len(mean))].sum(axis=0) for _ in range(resamples)]
    shares = [won / max(of, 1) for won, of in drawn]
    return {
        "examples": len(mean),
        "pairs": int(pairs.sum()),
        "pair_accuracy": float(right.sum() / max(pairs.sum(), 1)),
        "pair_accuracy_interval": np.percentile(shares, [2.5, 97.5]).tolist(),
        "first": float((right == pairs).all(axis=1).mean()),  # share where nothing is ahead of the right one
        "margin": float(difference.sum() / max(pairs.sum(), 1)),
        "nll": float(np.logaddexp(0.0, -difference)[pairs].mean()),
        "calibration_error": calibration_error(difference[pairs]),
        "spread": float(rewards.std(axis=-1)[real].mean()),
    }


def calibration_error(log_odds: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of pairs whose first should win: in bins of equal width over the confidence, which is
    the probability of whichever is ahead, the distance of mean confidence and share right (Guo et al. 2017, arXiv
    1706.04599, eq. 3).

    >>> calibration_error(np.array([np.log(3.0)] * 3 + [-np.log(3.0)]))
    0.0
    """
    confidence = 1 / (1 + np.exp(-np.abs(log_odds)))
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == number].sum() - (log_odds[place == number] > 0).sum()) for number in range(bins)]
    return float(round(sum(gaps) / max(len(log_odds), 1), 12))
