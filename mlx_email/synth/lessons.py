"""What the tiny model reads before it ships: mail of the grammar, and questions about what stands in it.

It should learn to read, and the form of an answer; not what any owner does. So answers that name an action name a
random one, or one that the question itself prescribes for facts chosen at random; `rule.best_action` is not used here,
and a test proves that it is not. Prompts are those of `model.wording`, so that a later prompt looks familiar.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.model.wording import QUESTION, Answer, answer_text, prompt_text, reasoning_text
from mlx_email.synth import rule
from mlx_email.synth.grammar import Mail, Owner, make_owner, write_mail
from mlx_email.synth.rule import Facts, sample_facts

TURNS = 3  # questions about one mail: the mail is read once for all of them
OWNERS = 40  # people to read about at a time; replaced one by one, so that names are not learnt by heart

# The line of an answer, and what may stand in it.
CHOICES: dict[str, tuple[str, ...]] = {
    "Sender": rule.ROLES,
    "Kind": rule.KINDS,
    "Time": rule.URGENCIES,
    "In charge": rule.HANDLERS,
    "Sent to": ("group", "owner"),
    "Department": rule.DEPARTMENTS,
}
_NUMBERS = ("one line", "two lines", "three lines")
_ASKS_ACTION = re.compile(r"\b(please|could you|can you|would you|need|kindly)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


def lessons(rng: Random) -> Iterator[list[Turn]]:
    """Conversations about mails, without end. The first question carries the mail."""
    owners = [_owner(rng) for _ in range(OWNERS)]
    while True:
        place = rng.randrange(OWNERS)
        if rng.random() < 0.2:
            owners[place] = _owner(rng)
        yield lesson(rng, owners[place])


def lesson(rng: Random, owner: Owner) -> list[Turn]:
    """A mail to `owner` and `TURNS` questions about it."""
    facts = sample_facts(rng, owner.department)
    mail = write_mail(rng, owner, facts)
    row = _row(rng, owner, mail)
    turns = []
    for number in range(TURNS):
        kind = rng.random()
        if kind < 0.10:
            turn = Turn(QUESTION, answer_text(_random_answer(rng, row)))
        elif kind < 0.45:
            turn = _policy(rng, facts, row)
        else:
            turn = _reading(rng, facts, mail)
        if number == 0:
            turn = Turn(prompt_text(row).removesuffix(QUESTION) + turn.question, turn.answer)
        turns.append(turn)
    return turns


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
    """One to three facts, to be found in the mail."""
    right = said_of(facts)
    lines = {key: (f"one of {', '.join(CHOICES[key])}", right[key]) for key in right}
    lines["Writer"] = ("name of the sender", mail.sender.name)
    if mail.project in mail.body:
        lines["Project"] = ("name of the project", mail.project)
    if mail.other in mail.body:
        lines["Named"] = ("who else is named", mail.other)
    keys = rng.sample(sorted(lines), rng.choice((1, 2, 3)))
    question = "\n".join(f"{key}: {lines[key][0]}" for key in keys)
    return Turn(
        f"Answer in {_NUMBERS[len(keys) - 1]}.\n{question}", "\n".join(f"{key}: {lines[key][1]}" for key in keys)
    )


def _policy(rng: Random, facts: Facts, row: Row) -> Turn:
    """An action prescribed for a combination of facts: which of the two cases is this mail?"""
    met, unmet = rng.sample(ACTIONS, 2)
    holds = rng.random() < 0.5
    keys = rng.sample(sorted(CHOICES), rng.choice((1, 2)))
    wanted = {key: said_of(facts)[key] for key in keys}
    if not holds:
        key = rng.choice(keys)
        wanted[key] = rng.choice([choice for choice in CHOICES[key] if choice != wanted[key]])
    condition = " and ".join(f"{key} is {value}" for key, value in wanted.items())
    answer = Answer(met if holds else unmet, round(rng.random(), 2), reasoning_text(row))
    question = f"Action: {met} if {condition}, else {unmet}"
    if rng.random() < 0.3:
        return Turn(f"Answer in three lines.\n{question}", answer_text(answer))
    return Turn(f"Answer in one line.\n{question}", f"Action: {answer.action}")


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
