"""How far confidence is from being right: arrays of confidence (N,) and of whether it was right (N,) bool in."""

import numpy as np

BINS = 10


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: in bins of equal width over the confidence, the distance of mean confidence and share
    right, weighted by messages (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    >>> calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]))
    0.0
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == number].sum() - right[place == number].sum()) for number in range(bins)]
    return float(round(sum(gaps) / max(len(right), 1), 12))


def adaptive_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The same in bins of equal mass: as many messages in each, to one, by confidence, so that none is nearly empty
    (Nguyen and O'Connor 2015, arXiv 1508.05154, section 3; Nixon et al. 2019, arXiv 1904.01685, adaptive).

    Left out: Nixon's mean over all classes; only the confidence of what was predicted is looked at. Of messages with
    the same confidence it cannot depend on which comes first, so each counts as right as they are together.

    >>> adaptive_calibration_error(np.array([0.5, 0.5, 0.9, 0.9]), np.array([True, False, True, True]), bins=2)
    0.05
    """
    _, of, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    share = (np.bincount(of, weights=right, minlength=len(counts)) / counts)[of]
    gap = (confidence - share)[np.argsort(confidence, kind="stable")]
    return float(round(sum(abs(part.sum()) for part in np.array_split(gap, bins)) / max(len(right), 1), 12))


def brier(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Mean over messages of the summed squared distance of the probabilities (N, K) from 1 for the right class and 0
    for the others: from 0 to 2 (Brier 1950, Monthly Weather Review 78, eq. 2).

    >>> brier(np.array([[0.8, 0.2], [0.5, 0.5]]), np.array([0, 1]))
    0.29
    """
    happened = np.eye(probabilities.shape[1])[target]
    return float(round(((probabilities - happened) ** 2).sum(axis=1).mean(), 12))
