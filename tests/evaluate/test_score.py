"""Scores of the five actions are what the model itself gives to whole sequences, prompt and line, one at a time."""

from datetime import UTC, datetime

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_email.evaluate import score
from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.model import load, lora
from mlx_email.model.frozen import Frozen
from mlx_email.model.render import prompt_ids, renderer

LIMIT = 200


@pytest.fixture(scope="module")
def base():
    base = load.load("tiny")
    lora.apply(base.model, lora.Lora(4, 8.0, 0.0, ("q_proj", "down_proj"), layers=2), seed=3)
    return base


@pytest.fixture(scope="module")
def words(base):
    return renderer(base.tokenizer)


def policies(base) -> list[Frozen]:
    found = []
    for number in range(2):
        mx.random.seed(number)
        arrays = lora.adapter_arrays(base.model)
        found.append(Frozen({name: 0.1 * mx.random.normal(array.shape) for name, array in arrays.items()}))
    return found


def rows() -> list[Row]:
    bodies = ("Can you send it?", "", "It is done. " * 30, "x " * 400)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    return [
        Row(message_id=f"m{n}", user="ann", date=now, sender="bob@x.example", body=text)
        for n, text in enumerate(bodies)
    ]


def brute_force(base, words) -> np.ndarray:
    """Log-probabilities (N, 5): each prompt with each line as one plain sequence, all logits, float64 sums."""
    found = []
    for row in rows():
        prompt = prompt_ids(words, row, LIMIT)
        for action in ACTIONS:
            line = list(words.actions[action])
            logits = base.model(mx.array([[*prompt, *line]]))[0, len(prompt) - 1 : -1]
            logps = nn.log_softmax(logits.astype(mx.float32), axis=-1)
            found.append(sum(float(logps[at, token]) for at, token in enumerate(line)))
    return np.array(found).reshape(-1, len(ACTIONS))


def scored(base, words, each, size=3):
    told = []
    found = score.action_logps(base, words, each, rows(), batch_size=size, limit=LIMIT, progress=told.append)
    assert sum(told) == len(rows())
    return found


def test_scores_are_those_of_whole_sequences(base, words):
    each = policies(base)
    found = scored(base, words, each)
    assert found.shape == (2, 4, 5)
    for number, policy in enumerate(each):
        policy.put_on(base.model)
        np.testing.assert_allclose(found[number], brute_force(base, words), atol=2e-4)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_a_line_without_one_of_its_tokens_is_found_out(base, words, monkeypatch):
    """The planted fault: the sum leaves out the tokens before the action's own."""
    each = policies(base)[:1]
    honest = score.logps
    monkeypatch.setattr(score, "logps", lambda *given, **named: honest(*given, **named)[..., 3:])
    wrong = scored(base, words, each)[0]
    each[0].put_on(base.model)
    assert np.abs(wrong - brute_force(base, words)).max() > 0.01


def test_batches_do_not_matter(base, words):
    each = policies(base)
    np.testing.assert_allclose(scored(base, words, each, 1), scored(base, words, each, 4), atol=1e-5)


def test_a_longer_line_is_not_punished_for_its_length(words):
    """Lines have 4 or 5 tokens here. A model that is sure of a line gives it a log-probability near 0 whatever its
    length, so nothing is divided by it: the five exhaust what an answer can begin with."""
    assert len({len(words.actions[action]) for action in ACTIONS}) > 1
    logps = np.array([[-0.01, -9.0, -9.0, -9.0, -9.0], [-9.0, -9.0, -9.0, -9.0, -0.01]])
    assert (score.probabilities(logps).max(axis=1) > 0.999).all()
