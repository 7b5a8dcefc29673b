"""What happened later is the feedback: the policy says what it would do with a window's mail, time says how well that
would have turned out, and what did better is preferred (DPO). One step a window, oldest first.

Source: stage 5. Of each message the likeliest of the five actions is the prediction. Where the feedback gives it a
score of at least 0.5 it is preferred to the policy's next best, else the policy's best other action to it. G = 5
completions a prompt, the actions' lines in the order of ACTIONS; a pair is two of them.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_email.algorithms.record import Algorithm, Context, Prepared, always, logps
from mlx_email.config import Temporal
from mlx_email.kernels import losses
from mlx_email.labels.examples.feedback import Feedback
from mlx_email.labels.schema import ACTIONS
from mlx_email.model.batch import Arrays, Batch, Example

GOOD = 0.5  # a prediction with this score is as good as what it lacks to 1


def prepare(batch: list[Batch], policy: nn.Module, settings: Temporal, context: Context) -> Prepared:  # noqa: ARG001
    """Takes of the five lines the preferred one and the other: completions (B, 2, C), with their ref_logps."""
    if context.reference is None:
        raise AssertionError("preferences ask for the reference policy")
    columns, scores, right = [], [], []
    pairs = 0
    for each in batch:
        chosen = []
        for example, likely in zip(each.examples, ranked(each, policy), strict=True):
            found = feedback_of(example)
            predicted = ACTIONS[likely[0]]
            scores.append(found.of(predicted))
            right.append(predicted == found.seen)
            chosen.append(pair(found, likely))
        pairs += sum(both is not None for both in chosen)
        if any(both is not None for both in chosen):
            arrays = _columns(each, chosen)
            columns.append({**arrays, "ref_logps": context.reference.logps(policy, arrays)})
    said = {"score": float(np.mean(scores)), "agreement": float(np.mean(right)), "pairs": float(pairs)}
    return Prepared(columns, said)


def ranked(batch: Batch, policy: nn.Module) -> np.ndarray:
    """The actions of each real row by the policy's probabilities, the likeliest first: (rows, 5) indices of ACTIONS."""
    scores = np.array(logps(policy, batch.arrays, False).sum(axis=-1))[: len(batch.examples)]
    return np.argsort(-scores, axis=1, kind="stable")


def pair(found: Feedback, likely: np.ndarray) -> tuple[int, int] | None:
    """The preferred action and the other, as indices of ACTIONS; `likely` are all of them, the likeliest first. None
    where the prediction may be what was done though it does not seem so: nothing speaks for or against it."""
    first, second = int(likely[0]), int(likely[1])
    if ACTIONS[first] in found.doubtful:
        return None
    return (first, second) if found.of(ACTIONS[first]) >= GOOD else (second, first)


def feedback_of(example: Example) -> Feedback:
    """What an example is about."""
    if not isinstance(example.about, Feedback):
        raise AssertionError("an example of this algorithm is about feedback")
    return example.about


def _columns(batch: Batch, chosen: list[tuple[int, int] | None]) -> Arrays:
    """A batch with two of each row's completions; rows without a pair are masked."""
    rows = len(batch.arrays["prompt_lengths"])
    places = np.zeros((rows, 2, 1), np.int32)
    real = np.zeros((rows, 1, 1), np.float32)
    for row, both in enumerate(chosen):
        if both is not None:
            places[row, :, 0], real[row] = both, 1
    at = mx.array(places)
    return {
        "prompts": batch.arrays["prompts"],
        "prompt_lengths": batch.arrays["prompt_lengths"],
        "completions": mx.take_along_axis(batch.arrays["completions"], at, axis=1),
        "completion_mask": mx.take_along_axis(batch.arrays["completion_mask"], at, axis=1) * mx.array(real),
    }


def loss(logps: mx.array, arrays: Arrays, settings: Temporal) -> losses.Loss:
    reference, mask = arrays["ref_logps"], arrays["completion_mask"]
    sides = logps[:, 0], logps[:, 1], reference[:, 0], reference[:, 1]
    return losses.dpo(*sides, mask[:, 0], mask[:, 1], beta=settings.beta)


def measure(batches: list[Batch], policy: nn.Module, settings: Temporal, context: Context) -> dict[str, float]:  # noqa: ARG001
    """The mean score that the policy's probabilities, over the five, give to its predictions (`loss` is its negative),
    that of the likeliest, and how often that is what was done."""
    expected, scores, right = [], [], []
    for batch in batches:
        known = np.array(logps(policy, batch.arrays, False).sum(axis=-1))[: len(batch.examples)]
        for found, row in zip(map(feedback_of, batch.examples), known.astype(np.float64), strict=True):
            likely = np.exp(row - row.max())
            expected.append(float(likely @ [found.of(action) for action in ACTIONS] / likely.sum()))
            predicted = ACTIONS[int(row.argmax())]
            scores.append(found.of(predicted))
            right.append(predicted == found.seen)
    mean = float(np.mean(expected))
    return {"loss": -mean, "expected": mean, "score": float(np.mean(scores)), "agreement": float(np.mean(right))}


TEMPORAL = Algorithm(loss=loss, prepare=prepare, live_reference=always, measure=measure)
