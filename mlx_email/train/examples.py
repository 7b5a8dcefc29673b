"""What a stage trains on and validates on: labelled rows to token ids, each kind of stage its own way.

What had to be left out or cut is counted by name; a stage's line says so.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from random import Random

import msgspec
import numpy as np

from mlx_email.config import Dpo, Kto, Reward, Sampled, Sft, Stage, Temporal
from mlx_email.errors import NothingToLearnError
from mlx_email.labels.examples.augment import augmented
from mlx_email.labels.examples.contrasts import contrasts
from mlx_email.labels.examples.doubt import SETTLED
from mlx_email.labels.examples.feedback import each_alone, reviews
from mlx_email.labels.examples.margins import margin
from mlx_email.labels.examples.order import stream
from mlx_email.labels.examples.pairs import pairs
from mlx_email.labels.examples.unpaired import unpaired
from mlx_email.labels.schema import ACTIONS, Action, Row, predicted_action
from mlx_email.model.batch import Example, example
from mlx_email.model.render import Renderer, answer_ids, fitted
from mlx_email.model.wording import demonstration
from mlx_email.rewards.sample import Case

# Names of what is counted.
CUT = "prompts cut in the middle of the body"
EQUAL = "pairs with equal completions left out"
EMPTY = "empty completions left out"
DOUBTFUL = "messages whose label is in doubt left out"
CENSORED = "messages left out whose outcome could not be known by the end of a window's lookahead"


Priorities = dict[tuple[str, Action], list[float]]  # of an owner's messages on which an action was taken


@dataclass
class Writer:
    """Rows to token ids, counting what it has to cut or leave out."""

    renderer: Renderer
    limit: int  # tokens of a prompt
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    last: tuple[Row, list[int]] | None = None  # the row whose prompt was written last: it may come several times
    cut: set[tuple[str, str]] = field(default_factory=set)  # owner and message

    def prompt(self, row: Row) -> list[int]:
        """A message's prompt."""
        if self.last is None or self.last[0] is not row:
            ids, cut = fitted(self.renderer, row, self.limit)
            self.last = row, ids
            if cut and (row.user, row.message_id) not in self.cut:
                self.cut.add((row.user, row.message_id))
                self.counts[CUT] += 1
        return self.last[1]

    def answer(self, row: Row) -> list[int]:
        """The answer that says what the owner did."""
        return answer_ids(self.renderer, demonstration(row))

    def other(self, row: Row, action: Action, priorities: Priorities) -> list[int]:
        """The answer that the owner took another action, with a priority as such messages of theirs have it.

        Drawn from those: with the message's own, or always the same one, the text alone would give away which of two
        answers is wrong, and nothing would have to be learned about mail. Where they never took it, a typical one.
        """
        known = priorities.get((row.user, action)) or [TYPICAL[action]]
        drawn = stream(self.seed, "priority", row.user, row.message_id, action).choice(known)
        return answer_ids(self.renderer, dataclasses.replace(demonstration(row), action=action, priority=drawn))

    def kept(self, made: Iterable[Example]) -> list[Example]:
        """Without examples that no loss could learn from: no tokens, or nothing to tell two completions apart."""
        found = []
        for each in made:
            real = [ids.tobytes() for ids in each.completions if len(ids)]
            if not len(each.completions[0]) or len(real) < min(len(each.completions), 2):
                self.counts[EMPTY] += 1
            elif len(set(real)) < len(real):
                self.counts[EQUAL] += 1
            else:
                found.append(each)
        return found


TYPICAL: dict[Action, float] = {"reply_now": 0.98, "reply_later": 0.7, "forward": 0.55, "archive": 0.3, "delete": 0.05}


def priorities_of(rows: Iterable[Row]) -> Priorities:
    """What the answers of some rows give as the priority, by owner and action, of messages whose label is settled:
    those that right answers are made of."""
    found: Priorities = defaultdict(list)
    for row in rows:
        if row.label_quality in SETTLED:
            found[row.user, predicted_action(row.action, row.response_time_hours)].append(row.priority_target)
    return found


def examples_of(
    stage: Stage, rows: Iterable[Row], writer: Writer, within: Sequence[Row] | None = None
) -> list[Example]:
    """The examples of a stage, made of labelled rows; each kind says below what they are. `within`: all rows of the
    split, where `rows` are a part of them: what is said of two messages can need those around them."""
    if isinstance(stage, Sft):
        return writer.kept(demonstrations(stage, rows, writer))
    rows = list(rows)
    if isinstance(stage, Sampled):
        return list(cases(rows, writer))
    if isinstance(stage, Temporal):
        return list(of_windows(stage, rows, writer) if within is None else looked_back_at(stage, rows, writer, within))
    if isinstance(stage, Reward):
        pairs = of_two_messages(rows if within is None else within, writer, round(stage.message_pairs * len(rows)))
        return writer.kept([*comparisons(stage, rows, writer), *pairs])
    made = preferences(stage, rows, writer) if isinstance(stage, Dpo) else wishes(rows, writer)
    return writer.kept(made)


def demonstrations(stage: Sft, rows: Iterable[Row], writer: Writer) -> Iterable[Example]:
    """Each message's prompt with the answer that says what the owner did; the rows are read once and not kept.

    Variants are made of training rows only: what is validated on stays as it came.
    """
    if stage.augment:
        rows = list(rows)
        others = [row for row in rows if row.split != "train"]
        rows = [*augmented([row for row in rows if row.split == "train"], writer.seed), *others]
    for row in rows:
        yield example(row.message_id, writer.prompt(row), writer.answer(row))


def preferences(stage: Dpo, rows: Sequence[Row], writer: Writer) -> Iterable[Example]:
    """Two completions: what the owner did, and something that they did not."""
    priorities = priorities_of(rows)
    for found in contrasts(rows, writer.seed, per_message=stage.wrong_answers):
        row = found.row
        wrong = writer.other(row, found.rejected, priorities)
        yield example(row.message_id, writer.prompt(row), writer.answer(row), wrong)


def wishes(rows: Sequence[Row], writer: Writer) -> Iterable[Example]:
    """One completion, and whether it is desirable."""
    priorities = priorities_of(rows)
    for found in unpaired(rows, writer.seed):
        row = found.row
        done = found.action == predicted_action(row.action, row.response_time_hours)
        answer = writer.answer(row) if done else writer.other(row, found.action, priorities)
        yield example(row.message_id, writer.prompt(row), answer, numbers={"desirable": float(found.desirable)})


def cases(rows: Sequence[Row], writer: Writer) -> Iterable[Example]:
    """Each message whose label is settled, with the five actions' lines as its completions, and what completions of it
    are judged by. What they say of another action is the same in all stages: priorities are drawn as for wrong ones."""
    priorities = priorities_of(rows)
    lines = [writer.renderer.actions[action] for action in ACTIONS]
    for row in rows:
        if row.label_quality not in SETTLED:
            writer.counts[DOUBTFUL] += 1
            continue
        done = predicted_action(row.action, row.response_time_hours)
        answers = [
            writer.answer(row) if action == done else writer.other(row, action, priorities) for action in ACTIONS
        ]
        case = Case(row, tuple(np.array(ids, np.int32) for ids in answers))
        yield example(row.message_id, writer.prompt(row), *lines, about=case)


def of_windows(stage: Temporal, rows: Sequence[Row], writer: Writer) -> Iterable[Example]:
    """Each window's messages, or as many of them as are asked for, with the five actions' lines as their completions
    and the feedback on what was done; a turn a window. A message is in every window that it lies in."""
    lines = [writer.renderer.actions[action] for action in ACTIONS]
    days = {"length": stage.window_days, "lookahead": stage.lookahead_days, "step": stage.step_days}
    turn = 0
    looked_at = reviews(rows, **{name: timedelta(days=count) for name, count in days.items()})
    known = {(found.row.user, found.row.message_id) for review in looked_at for found in review.found}
    if censored := len({(row.user, row.message_id) for row in rows} - known):
        writer.counts[CENSORED] += censored
    for review in looked_at:
        count = len(review.found) if stage.window_messages is None else min(stage.window_messages, len(review.found))
        drawn = stream(writer.seed, "window", review.user, review.start.isoformat())
        for index in sorted(drawn.sample(range(len(review.found)), count)):
            row = review.found[index].row
            yield example(row.message_id, writer.prompt(row), *lines, about=review.found[index], turn=turn)
        turn += bool(count)


def looked_back_at(stage: Temporal, rows: Sequence[Row], writer: Writer, within: Sequence[Row]) -> Iterable[Example]:
    """The same of single messages, for a validation: a split of a few weeks has no window with a lookahead in it."""
    lines = [writer.renderer.actions[action] for action in ACTIONS]
    for found in each_alone(rows, within, timedelta(days=stage.lookahead_days)):
        yield example(found.row.message_id, writer.prompt(found.row), *lines, about=found)


def comparisons(stage: Reward, rows: Sequence[Row], writer: Writer) -> Iterable[Example]:
    """What the owner did before up to four things that they did not."""
    priorities = priorities_of(rows)
    made = contrasts(rows, writer.seed, per_message=stage.wrong_answers)
    for _, of_message in groupby(
        made, key=lambda found: id(found.row)
    ):  # not by Message-ID: some programs give it twice
        found = list(of_message)
        row, missing = found[0].row, stage.wrong_answers - len(found)
        wrong = [writer.other(row, each.rejected, priorities) for each in found] + [[]] * missing
        margins = [margin(row, each.rejected) if stage.margins else 0.0 for each in found]
        numbers = {"margin": [*margins, *[0.0] * missing]}
        yield example(row.message_id, writer.prompt(row), writer.answer(row), *wrong, numbers=numbers)


def of_two_messages(rows: Sequence[Row], writer: Writer, count: int) -> Iterable[Example]:
    """Up to `count` of the source's preferences among messages: two whole prompts as the completions of the beginning
    that they share, without a margin. `rows` are all of their owners' mail in the split."""
    sampled = pairs(rows, writer.seed) if count else []
    shared = len(writer.renderer.before) or 1
    for index in sorted(Random(writer.seed).sample(range(len(sampled)), min(count, len(sampled)))):
        pair = sampled[index]
        chosen, rejected = writer.prompt(pair.chosen), writer.prompt(pair.rejected)
        names = f"{pair.chosen.message_id} {pair.rejected.message_id}"
        yield example(names, chosen[:shared], chosen[shared:], rejected[shared:], numbers={"margin": [0.0]})


def settled(stage: Stage, examples: Sequence[Example], note: Callable[[str], object]) -> Stage:
    """The stage with what its settings leave to the examples; a `note` says what that is.

    KTO: both classes weigh the same in all, the larger one 1 an example; its paper advises weight times number of the
    desirable between 1 and 4/3 of the undesirable's (section 4.2). Raises NothingToLearnError where there is one class
    only.
    """
    if not isinstance(stage, Kto) or not examples:
        return stage
    desirable = sum(each.numbers["desirable"] == 1 for each in examples)
    counts = desirable, len(examples) - desirable
    if not all(counts):
        lacks = "desirable" if not counts[0] else "undesirable"
        raise NothingToLearnError(f"{stage.name}: none of {len(examples)} examples is {lacks}: KTO needs both kinds")
    chosen = [stage.desirable_weight, stage.undesirable_weight]
    # Weight times number: of each class that has its weight, of the other then the same; of neither, the larger number.
    sums = [weight * count for weight, count in zip(chosen, counts, strict=True) if weight is not None]
    weights = [
        (sums[0] if sums else max(counts)) / count if weight is None else weight
        for weight, count in zip(chosen, counts, strict=True)
    ]
    ratio = weights[0] * counts[0] / (weights[1] * counts[1])
    line = (
        f"{stage.name}: {counts[0]} desirable examples of weight {weights[0]:.3g}, {counts[1]} undesirable of "
        f"{weights[1]:.3g}: {ratio:.3g} in all"
    )
    if None in chosen:
        line += " (a weight that is not set makes one kind count as much as the other)"
    if not 1 - 1e-6 <= ratio <= 4 / 3 + 1e-6:
        line = f"warning: {line}; between 1 and 4/3 is advised"
    note(line)
    return msgspec.structs.replace(stage, desirable_weight=weights[0], undesirable_weight=weights[1])
