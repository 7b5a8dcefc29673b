"""What a policy or a reward model is worth on some messages, beside what needs no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mlx_email.collect import RULE
from mlx_email.config import Config, Reward
from mlx_email.evaluate import baselines, metrics
from mlx_email.evaluate import reward as ranking
from mlx_email.evaluate.calibrate import NONE, Calibration
from mlx_email.evaluate.score import action_logps, probabilities
from mlx_email.jobs import gather
from mlx_email.labels.schema import ACTIONS, Row, read_rows
from mlx_email.model.batch import Example
from mlx_email.model.frozen import Frozen
from mlx_email.model.load import Base
from mlx_email.model.render import Renderer
from mlx_email.model.reward import RewardModel
from mlx_email.progress import Progress
from mlx_email.synth.mailbox import best_possible
from mlx_email.train.examples import of_two_messages
from mlx_email.train.memory import exhausted
from mlx_email.train.run import DATA


@dataclass(frozen=True)
class Policy:
    """A trained model, ready to ask."""

    base: Base
    renderer: Renderer
    config: Config
    stage: str
    calibration: Calibration = NONE  # `predict` gives probabilities before it


def evaluate(policy: Policy, rows: Sequence[Row], progress: Progress) -> dict[str, Any]:
    """The metrics of a policy on some messages."""
    return metrics.summary(rows, predict(policy, rows, progress))


def predict(policy: Policy, rows: Sequence[Row], progress: Progress) -> np.ndarray:
    """Probabilities of the five actions, (N, 5), columns in the order of ACTIONS."""
    return predict_each(policy, [Frozen.of(policy.base.model)], rows, progress)[0]


def predict_each(policy: Policy, adapters: Sequence[Frozen], rows: Sequence[Row], progress: Progress) -> np.ndarray:
    """The same under each of several adapters on the policy's base, (S, N, 5); what they share is computed once."""
    with progress.count(f"score {policy.stage}", "messages", len(rows)) as advance:
        logps = action_logps(
            policy.base,
            policy.renderer,
            adapters,
            rows,
            batch_size=policy.config.evaluation.batch_size,
            limit=policy.config.max_prompt_tokens,
            progress=advance,
        )
    return probabilities(logps)


def evaluate_reward(
    model: RewardModel,
    words: Renderer,
    stage: Reward,
    config: Config,
    rows: Sequence[Row],
    within: Sequence[Row] | None,
) -> dict[str, Any]:
    """How a reward model ranks, on some messages, what the owner did before all that they did not; and, where it has
    learned that too, one message before another (`messages`), as many pairs as there are messages. `within`: all of
    the split."""
    everything = msgspec.structs.replace(stage, wrong_answers=len(ACTIONS) - 1, message_pairs=0.0)
    writer, answers = gather(everything, rows, words, config)
    pairs = list(of_two_messages(within, writer, len(rows))) if within else []

    def measured(examples: Sequence[Example], batch_size: int) -> dict[str, Any]:
        if not examples:
            return ranking.NOTHING
        real = np.array([[len(ids) > 0 for ids in each.completions] for each in examples])
        with exhausted("scoring by the reward model"):
            return ranking.summary(model.score_all(examples, batch_size), real)

    # The completions of two messages are whole mails: as many at a time as in training.
    of_messages = {"messages": measured(pairs, stage.batch_size)} if within else {}
    return {**measured(answers, config.evaluation.batch_size), **of_messages}


def baseline_summary(run: Path | None, train_rows: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracies to beat on `rows`, under `measured` with their intervals and macro-F1, and for the embedded mailbox
    the best possible one."""
    said = {"majority": baselines.majority, "majority_per_owner": baselines.majority_per_owner}
    measured = {name: metrics.shares(rows, predict_from(train_rows, rows)) for name, predict_from in said.items()}
    summary: dict[str, Any] = {name: found["accuracy"] for name, found in measured.items()}
    if run is not None and (run / DATA / RULE).is_file():
        summary["best_possible"] = best_possible(run / DATA / RULE, rows)
    return {**summary, "measured": measured}


def outcomes(table: Path) -> list[Row]:
    """The training rows without their text: what baselines learn from."""
    return list(read_rows(table, "train", body_characters=0))
