"""Calibration: confidences that are shares of right answers. Fitted on validation mail, by its likelihood."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from mlx_email import files
from mlx_email.config import Calibrating
from mlx_email.errors import DataError
from mlx_email.labels.schema import ACTIONS

FILE = "calibration.json"
FEWEST = 30  # messages; of fewer nothing is fitted
Five = Annotated[tuple[float, ...], msgspec.Meta(min_length=len(ACTIONS), max_length=len(ACTIONS))]


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to log-probabilities l of the five actions before they are confidences.

    temperature: softmax(l / T) (Guo et al. 2017, arXiv 1706.04599, section 4.2); vector: softmax(w * l + b), a weight
    and a bias an action (the same, section 4.2); isotonic: for each action a step function of its probability that
    never falls (Zadrozny and Elkan 2002), the five divided by their sum; none: softmax(l).
    """

    method: Literal["none", "temperature", "vector", "isotonic"] = "none"
    temperature: float = 1.0
    weights: Five = (1.0,) * len(ACTIONS)
    biases: Five = (0.0,) * len(ACTIONS)
    # Of isotonic, an action each: probabilities at which its steps begin, from 0 on, and their heights.
    steps: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    messages: int = 0  # that it was fitted on


NONE = Calibration()


def fit(logps: np.ndarray, target: np.ndarray, method: Calibrating) -> Calibration:
    """The calibration of a kind that makes what happened likeliest; none at all of fewer messages than FEWEST.

    logps (N, 5) nats, up to a constant a message; target (N,) indices of the right actions.
    """
    if method == "none" or len(target) < FEWEST:
        return NONE
    logps = _normalised(np.asarray(logps, np.float64))
    if method == "temperature":
        return Calibration("temperature", temperature=_temperature(logps, target), messages=len(target))
    if method == "vector":
        weights, biases = _vector(logps, target)
        return Calibration("vector", weights=weights, biases=biases, messages=len(target))
    rights = [target == action for action in range(len(ACTIONS))]
    steps = tuple(isotonic(of_action, right) for of_action, right in zip(np.exp(logps).T, rights, strict=True))
    return Calibration("isotonic", steps=steps, messages=len(target))


def calibrated(calibration: Calibration, probabilities: np.ndarray) -> np.ndarray:
    """The same of probabilities (N, 5), as `evaluate.predictions` keeps them."""
    return apply(calibration, np.log(np.maximum(probabilities, TINY)))


def apply(calibration: Calibration, logps: np.ndarray) -> np.ndarray:
    """Probabilities (N, 5) of log-probabilities (N, 5)."""
    logps = _normalised(np.asarray(logps, np.float64))
    if calibration.method == "isotonic":
        columns = zip(np.exp(logps).T, calibration.steps, strict=True)
        heights = [np.array(height)[np.searchsorted(begin, p, side="right") - 1] for p, (begin, height) in columns]
        # On steps of the same height the action that was likelier before stays so.
        found = np.maximum(np.stack(heights, axis=1), FLOOR) + TIE * np.exp(logps)
        return found / found.sum(axis=1, keepdims=True)
    scaled = logps * np.array(calibration.weights) / calibration.temperature + np.array(calibration.biases)
    return np.exp(_normalised(scaled))


TINY = 1e-300
FLOOR = 1e-4  # the least probability of isotonic: nothing is impossible because it did not happen in the validation
TIE = 1e-6
RIDGE = 1e-3  # pulls vector scaling towards no scaling, where an action hardly happens; nats for a distance of 1
LOWEST = np.log(1e-12)  # of a log-probability: one of -inf would stay so at any temperature


def _normalised(logps: np.ndarray) -> np.ndarray:
    """Log-probabilities that sum to 1, none below LOWEST."""
    shifted = logps - logps.max(axis=-1, keepdims=True)
    return np.maximum(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), LOWEST)


def _temperature(logps: np.ndarray, target: np.ndarray) -> float:
    """The likelihood is concave in 1 / T: its slope, mean of l[target] - E[l], has one zero, which is bisected for.

    One message more is reckoned with, which is as sure as it should be: else mail that is all right would make every
    confidence 1, whatever it was.
    """
    own = (np.exp(logps) * logps).sum(axis=1).mean()
    chosen = logps[np.arange(len(target)), target].sum() + own

    def slope(inverse: float) -> float:
        expected = (np.exp(_normalised(logps * inverse)) * logps).sum(axis=1)
        return float(chosen - expected.sum() - expected.mean())

    low, high = np.log(1 / HOTTEST), np.log(HOTTEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) > 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


HOTTEST = 100.0  # temperatures lie between this and its inverse


def _vector(logps: np.ndarray, target: np.ndarray) -> tuple[Five, Five]:
    """Newton's method: the likelihood, with the ridge, is strictly concave in weights and biases."""
    classes = len(ACTIONS)
    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    found, right = start.copy(), np.eye(classes)[target]

    def loss(at: np.ndarray) -> float:
        chosen = _log_softmax(logps * at[:classes] + at[classes:])[np.arange(len(target)), target]
        return float(-chosen.mean() + RIDGE * np.square(at - start).sum() / 2)

    for _ in range(100):
        p = np.exp(_log_softmax(logps * found[:classes] + found[classes:]))
        by_bias = p - right
        gradient = np.concatenate([(by_bias * logps).mean(axis=0), by_bias.mean(axis=0)]) + RIDGE * (found - start)
        inner = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None, :]  # (N, 5, 5)
        of_weights = inner * logps[:, :, None]
        blocks = [[(of_weights * logps[:, None, :]).mean(axis=0), of_weights.mean(axis=0)]]
        blocks.append([blocks[0][1].T, inner.mean(axis=0)])
        step = np.linalg.solve(np.block(blocks) + RIDGE * np.eye(2 * classes), gradient)
        size, before = 1.0, loss(found)
        while size > 1e-6 and loss(found - size * step) > before:
            size /= 2
        found = found - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return tuple(found[:classes].tolist()), tuple(found[classes:].tolist())


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def isotonic(p: np.ndarray, right: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The never-falling step function of p with the least squared distance from `right` (N,) bool, by pooling adjacent
    violators (Ayer et al. 1955): where its steps begin, the first at 0, and their heights.

    >>> isotonic(np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, True, False, True]))
    ((0.0, 0.2, 0.9), (0.0, 0.5, 1.0))
    """
    begins, first = np.unique(p, return_inverse=True)
    counts = np.bincount(first).astype(float)
    sums = np.bincount(first, weights=right)
    pooled: list[tuple[float, float, float]] = []  # begin, sum, count of each step
    for begin, total, count in zip(begins.tolist(), sums.tolist(), counts.tolist(), strict=True):
        pooled.append((begin, total, count))
        while len(pooled) > 1 and pooled[-2][1] * pooled[-1][2] >= pooled[-1][1] * pooled[-2][2]:
            (begin, left, of_left), (_, more, of_more) = pooled[-2:]
            pooled[-2:] = [(begin, left + more, of_left + of_more)]
    heights = tuple(total / count for _, total, count in pooled)
    return (0.0, *(begin for begin, _, _ in pooled[1:])), heights


def write(folder: Path, calibration: Calibration) -> None:
    """Publish a stage's calibration."""
    files.write_json(folder / FILE, msgspec.to_builtins(calibration))


def read(folder: Path) -> Calibration:
    """A stage's calibration; none where it has no file. DataError where that is not one."""
    try:
        return of(msgspec.json.decode((folder / FILE).read_bytes()), folder / FILE)
    except FileNotFoundError:
        return NONE
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{folder / FILE} is no calibration: {' '.join(str(error).split())}") from error


def of(value: object, where: Path) -> Calibration:
    """A calibration of what JSON holds; DataError naming the file where it is none."""
    try:
        return msgspec.convert(value, Calibration, strict=False)
    except msgspec.ValidationError as error:
        raise DataError(f"{where} is no calibration: {' '.join(str(error).split())}") from error
