"""The reward model's score as a reward function."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from mlx_email.model.batch import Example
from mlx_email.model.reward import RewardModel
from mlx_email.rewards.sample import Sample


@dataclass(frozen=True)
class Learned:
    """Scores by a reward model, unbounded: the mean over its members. Each group's prompt is computed once."""

    model: RewardModel
    batch_size: int  # groups at a time

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        groups = [list(group) for _, group in groupby(samples, key=lambda sample: id(sample.prompt))]
        widest = max(map(len, groups))
        examples = []
        for group in groups:
            missing = (group[0].tokens,) * (widest - len(group))
            completions = (*(sample.tokens for sample in group), *missing)
            examples.append(Example(group[0].row.message_id, group[0].prompt, completions))
        scores = self.model.score_all(examples, self.batch_size).mean(axis=-1)
        return [float(score) for group, row in zip(groups, scores, strict=True) for score in row[: len(group)]]
