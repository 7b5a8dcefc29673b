"""What the tiny model reads before it ships: mail of the grammar, and questions about what stands in it.

It should learn to read, and the form of an answer; not what any owner does. So every answer that names an action names
one drawn by lot, and beside it stand the facts of the mail, which the hidden state before that action has to hold.
`rule.best_action` is not used here. Prompts are those of `model.wording`, so that a later prompt looks familiar.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.model.wording import Answer, answer_text, prompt_text, reasoning_text
from mlx_email.synth import rule
from mlx_email.synth.grammar import Mail, Owner, make_owner, write_mail
from mlx_email.synth.rule import Facts, sample_facts

OWNERS = 40  # people to read about at a time; replaced one by one, so that names are not learnt by heart

# A fact that is asked for, and what may be said of it.
CHOICES: dict[str, tuple[str, ...]] = {
    "Sender": rule.ROLES,
    "Kind": rule.KINDS,
    "Time": rule.URGENCIES,
    "In charge": rule.HANDLERS,
    "Sent to": ("group", "owner"),
    "Department": rule.DEPARTMENTS,
}
_ASKS_ACTION = re.compile(r"\b(please|could you|can you|would you|need|kindly)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Lesson:
    """A conversation about one mail. The first question is the product's and carries the mail."""

    turns: tuple[Turn, ...]
    facts: Facts


def lessons(rng: Random) -> Iterator[Lesson]:
    """Lessons without end."""
    owners = [_owner(rng) for _ in range(OWNERS)]
    while True:
        place = rng.randrange(OWNERS)
        if rng.random() < 0.2:
            owners[place] = _owner(rng)
        yield lesson(rng, owners[place])


def lesson(rng: Random, owner: Owner) -> Lesson:
    """A mail to `owner`, answered with an action drawn by lot, and a question about what stands in it."""
    facts = sample_facts(rng, owner.department)
    mail = write_mail(rng, owner, facts)
    row = _row(rng, owner, mail)
    asked = Turn(prompt_text(row), answer_text(_random_answer(rng, row)))
    return Lesson((asked, _reading(rng, facts, mail)), facts)


def said_of(facts: Facts) -> dict[str, str]:
    """The right line for every key of `CHOICES`."""
    return {
        "Sender": facts.role,
        "Kind": facts.kind,
        "Time": facts.urgency,
        "In charge": facts.handler,
        "Sent to": "group" if facts.to_group else "owner",
        "Department": facts.department,
    }


def _reading(rng: Random, facts: Facts, mail: Mail) -> Turn:
    """Some facts, to be found in the mail."""
    lines = said_of(facts)
    if mail.project in mail.body and rng.random() < 0.2:
        lines["Project"] = mail.project
    if mail.other in mail.body and rng.random() < 0.2:
        lines["Named"] = mail.other
    keys = rng.sample(sorted(lines), rng.choice((2, 3, 4, 5)))
    return Turn(f"Name the facts: {', '.join(keys)}", "\n".join(f"{key}: {lines[key]}" for key in keys))


def _random_answer(rng: Random, row: Row) -> Answer:
    return Answer(rng.choice(ACTIONS), round(rng.random(), 2), reasoning_text(row))


def _owner(rng: Random) -> Owner:
    return make_owner(rng, rng.choice(rule.DEPARTMENTS), set())


def _row(rng: Random, owner: Owner, mail: Mail) -> Row:
    """The mail as a prompt needs it; the two scores are random, so they are read and not guessed."""
    return Row(
        message_id="",
        user=owner.person.address,
        date=datetime(2000, 1, 1, tzinfo=UTC),
        sender=mail.sender.address,
        to=(mail.to.address,),
        subject=mail.subject,
        body=mail.body,
        people_score=round(rng.random(), 2),
        urgency=round(rng.random(), 2),
        is_question="?" in mail.body,
        is_action_request=_ASKS_ACTION.search(mail.body) is not None,
    )
