"""A GRPO that takes a second: a small random model with the embedded tokenizer, judged by a property of its tokens."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import small

from mlx_email import config
from mlx_email.algorithms import Context
from mlx_email.labels.schema import ACTIONS, OBSERVED, Row
from mlx_email.model import load as loading
from mlx_email.model.batch import Example, example
from mlx_email.model.render import Renderer, answer_ids, renderer
from mlx_email.model.wording import Answer
from mlx_email.rewards.judge import Judge
from mlx_email.rewards.sample import Case, Sample
from mlx_email.train.session import Job

WORDS = 4096  # of the embedded tokenizer
SHORT = {
    "max_steps": 6,
    "epochs": 9,
    "batch_size": 2,
    "accumulation": 2,
    "learning_rate": 0.02,
    "log_every": 1,
    "save_every": 2,
    "validate_every": None,
    "stop_accuracy": None,
}


def words() -> Renderer:
    return renderer(loading.load("tiny").tokenizer, history=False)


def low(samples: list[Sample]) -> list[float]:
    """How small a sample's token ids are, on the mean; between 0 and 1."""
    return [1 - float(np.mean(sample.tokens)) / WORDS for sample in samples]


def cases(count: int, renderer: Renderer, seed: int = 0) -> list[Example]:
    """Messages with short random prompts, in a world of five actions."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        row = Row(
            message_id=f"{seed}-{n}",
            user="ann",
            date=datetime(2026, 1, 1, tzinfo=UTC),
            sender="bob@x.example",
            action=OBSERVED[n % 4],
            response_time_hours=(1.0, 9.0)[n % 2] if n % 4 == 0 else None,
        )
        answers = tuple(np.array(answer_ids(renderer, Answer(a, 0.5, "none")), np.int32) for a in ACTIONS)
        lines = [renderer.actions[action] for action in ACTIONS]
        prompt = rng.integers(0, WORDS, 2 + n % 5).tolist()
        made.append(example(f"{seed}-{n}", prompt, *lines, about=Case(row, answers)))
    return made


def job(
    run: Path,
    *,
    judge: Callable[[list[Sample]], list[float]] = low,
    rolling: Callable[[int], object] = lambda tokens: None,
    settings: dict[str, Any] | None = None,
    kind: type[config.Stage] = config.Grpo,
    **stage: Any,
) -> Job:
    """As `small.job`; the prompts' lengths are such that batches differ. `judge`: the only reward function."""
    sampled: dict[str, Any] = {} if stage.get("rollout") == "enumerate" else {"max_tokens": 5}
    if kind is config.Grpo and sampled:
        sampled["samples_every"] = None
    chosen = kind(**{**SHORT, **sampled, **stage})
    config_ = msgspec.structs.replace(small.SETTINGS, stages=(chosen,), **(settings or {}))
    made = small.job(run, settings=config_, words=WORDS)
    said = words()
    context = Context(renderer=said, judge=Judge((("low", 1.0, judge),)), rolling=rolling)
    return dataclasses.replace(made, examples=cases(8, said), held_out=cases(4, said, 1), context=context)
