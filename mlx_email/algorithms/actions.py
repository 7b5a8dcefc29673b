"""The five actions as a closed set: their probabilities by the policy, and what each is worth."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_email.algorithms.record import Context, logps
from mlx_email.labels.schema import ACTIONS
from mlx_email.model.batch import Batch
from mlx_email.rewards.sample import Case, done


def rewards_of(batch: Batch, context: Context) -> np.ndarray:
    """What the canonical answer of each action is worth, (B, 5) float32, 0 in rows of padding."""
    if context.renderer is None or context.judge is None:
        raise AssertionError("rewards ask for a renderer and a judge")
    found = np.zeros((len(batch.arrays["prompt_lengths"]), len(ACTIONS)), np.float32)
    cases = [(_case(example.about), example.prompt) for example in batch.examples]
    found[: len(cases)] = context.judge.of_actions(context.renderer, cases)
    return found


def _case(about: object) -> Case:
    if not isinstance(about, Case):
        raise AssertionError("an example of this algorithm is about a case")
    return about


def measure(batches: list[Batch], policy: nn.Module, settings: object, context: Context) -> dict[str, float]:  # noqa: ARG001
    """On examples whose completions are the five actions' lines: the mean reward that the policy's probabilities, over
    the five, give to their canonical answers (`loss` is its negative), and how often the likeliest is the owner's."""
    rewards, right = [], []
    for batch in batches:
        scores = np.array(logps(policy, batch.arrays, False).sum(axis=-1))[: len(batch.examples)]
        likely = np.array(mx.softmax(mx.array(scores), axis=-1))
        worth = rewards_of(batch, context)[: len(batch.examples)]
        rewards += (likely * worth).sum(axis=1).tolist()
        owners = [ACTIONS.index(done(_case(example.about).row)) for example in batch.examples]
        right += (scores.argmax(axis=1) == owners).tolist()
    return {"loss": -float(np.mean(rewards)), "reward": float(np.mean(rewards)), "accuracy": float(np.mean(right))}
