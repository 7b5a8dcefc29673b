"""What a reward function is given: one completion, and the message that it is about."""

from dataclasses import dataclass, field

import numpy as np

from mlx_email.labels.schema import Action, Row, predicted_action
from mlx_email.model.wording import Said


@dataclass(frozen=True)
class Case:
    """A message that completions are sampled for."""

    row: Row
    # The tokens of an answer for each of ACTIONS, the owner's own among them; none where nobody asks for them.
    answers: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One completion of a message's prompt."""

    row: Row  # the message and what its owner did
    prompt: np.ndarray = field(repr=False)  # (p,) int32 token ids; the same object for all samples of a group
    tokens: np.ndarray = field(repr=False)  # (c,) int32, what ended it included
    text: str  # without what ended it; a control token is U+FFFD
    said: Said  # what can be read from it
    ended: bool  # else it was cut at the longest length allowed

    @property
    def done(self) -> Action:
        """What the owner did with the message."""
        return done(self.row)


def done(row: Row) -> Action:
    """What a message's owner did with it."""
    return predicted_action(row.action, row.response_time_hours)
