"""What the model says of a message beside the action: its priority and its reasoning, decoded greedily.

They follow the line of the action that was chosen, as in the answers that it was trained on. They are what a model has
written, not how it came to its choice, which is read from the probabilities of the five lines alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_email.labels.schema import Action, Row
from mlx_email.model.load import Base
from mlx_email.model.render import ANSWER_LINES, Renderer, prompt_ids, text_of
from mlx_email.model.sample import Sampling, sample
from mlx_email.model.wording import action_text, read_answer

REASONING = "Reasoning: "  # as `answer_text` writes it
MAX_TOKENS = 48  # after the action's line; training answers have at most 24 of reasoning, and few more of priority


@dataclass(frozen=True)
class Explanation:
    """What was said, where it has the form of an answer."""

    priority: float | None  # 0..1
    reasoning: str | None


def explain(
    base: Base, renderer: Renderer, rows: Sequence[Row], actions: Sequence[Action], *, limit: int
) -> list[Explanation]:
    """What the model says after each message's prompt and action, in their order; prompts of at most `limit` tokens."""
    prompts = [
        [*prompt_ids(renderer, row, limit), *renderer.actions[action]]
        for row, action in zip(rows, actions, strict=True)
    ]
    if not prompts:
        return []
    said = sample(
        base.model,
        prompts,
        group=1,
        max_tokens=MAX_TOKENS,
        sampling=Sampling(temperature=0.0),
        over=lambda tokens: _is_over(renderer, tokens),
        seed=0,  # nothing is drawn
    )
    return [
        read(action, text_of(renderer, completion.tokens)) for action, (completion,) in zip(actions, said, strict=True)
    ]


def _is_over(renderer: Renderer, tokens: Sequence[int]) -> bool:
    return tokens[-1] in renderer.stops or text_of(renderer, tokens).count("\n") >= ANSWER_LINES - 1


def read(action: Action, text: str) -> Explanation:
    """What follows an action's line, taken apart; a reasoning that was cut is given as far as it goes.

    >>> read("archive", "Priority: 0.25\\nReasoning: no question, low urgency")
    Explanation(priority=0.25, reasoning='no question, low urgency')
    >>> read("archive", "Priority: high")
    Explanation(priority=None, reasoning=None)
    """
    line = [*text.split("\n"), ""][1]
    reasoning = line.removeprefix(REASONING).strip() if line.startswith(REASONING) else ""
    return Explanation(read_answer(action_text(action) + text).priority, reasoning or None)
