"""Exact probabilities of the five actions: one prompt pass, five branches, no sampling."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_email.algorithms.record import logps
from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.model.batch import Arrays, collate, example
from mlx_email.model.frozen import Frozen
from mlx_email.model.load import Base
from mlx_email.model.render import Renderer, prompt_ids
from mlx_email.model.trunk import under_each


def action_logps(
    base: Base,
    renderer: Renderer,
    policies: Sequence[Frozen],
    rows: Sequence[Row],
    *,
    batch_size: int,
    limit: int,
    progress: Callable[[int], Any],
) -> np.ndarray:
    """Log-probability of each action's line (`Action: X` and its newline) after each message's prompt, under each of S
    policies over one base, which has the last's adapters then.

    Shape (S, N, 5), float64, nats, columns in the order of ACTIONS. All tokens of a line count, so an action of several
    tokens is not favoured or punished for its length: the lines are the only thing a trained model writes there, and
    `probabilities` normalises over the five. Messages are taken by length, so that little is padding. `progress` is
    told of the messages that all policies have been asked about.
    """
    branches = tuple(renderer.actions[action] for action in ACTIONS)
    width = max(map(len, branches))
    examples = [example(row.message_id, prompt_ids(renderer, row, limit), *branches) for row in rows]
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].prompt))
    scores = np.empty((len(policies), len(examples), len(branches)), np.float64)
    base.model.eval()
    for start in range(0, len(order), batch_size):
        taken = order[start : start + batch_size]
        longest = len(examples[taken[-1]].prompt)
        arrays = collate([examples[i] for i in taken], len(taken), longest, width).arrays
        found = under_each(base.model, policies, partial(_of_lines, base.model, arrays))
        scores[:, taken] = np.array(mx.stack(found))
        progress(len(taken))
    return scores


def _of_lines(model: nn.Module, arrays: Arrays) -> mx.array:
    """Log-probabilities (B, 5) of whole lines."""
    return logps(model, arrays, False).sum(axis=-1)


def probabilities(logps: np.ndarray) -> np.ndarray:
    """Normalised over the five actions, (N, 5).

    >>> probabilities(np.log([[0.1, 0.1, 0.1, 0.1, 0.1]])).tolist()
    [[0.2, 0.2, 0.2, 0.2, 0.2]]
    """
    shifted = np.exp(logps - logps.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
