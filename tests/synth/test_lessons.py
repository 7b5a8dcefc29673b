"""What the tiny model was taught: right answers about mails, and actions that are independent of the rule."""

import re
from collections import Counter
from itertools import islice
from random import Random

from mlx_email.labels.schema import ACTIONS
from mlx_email.model.wording import QUESTION
from mlx_email.synth.lessons import CHOICES, lessons, said_of
from mlx_email.synth.rule import best_action


def test_the_first_question_is_a_prompt_of_the_product_and_carries_the_mail():
    for lesson in islice(lessons(Random(1)), 50):
        first, second = lesson.turns
        assert first.question.startswith("What should be done with this email?\nFrom: ")
        assert first.question.endswith(QUESTION)
        assert "From: " not in second.question


def test_the_same_seed_teaches_the_same():
    assert list(islice(lessons(Random(2)), 5)) == list(islice(lessons(Random(2)), 5))


def test_what_is_asked_is_answered_and_rightly():
    asked = Counter()
    for lesson in islice(lessons(Random(3)), 300):
        _, turn = lesson.turns
        keys = turn.question.removeprefix("Name the facts: ").split(", ")
        lines = dict(line.split(": ") for line in turn.answer.splitlines())
        assert list(lines) == keys
        right = said_of(lesson.facts)
        assert all(lines[key] == right[key] and right[key] in CHOICES[key] for key in keys if key in CHOICES)
        asked.update(keys)
    assert set(asked) == {*CHOICES, "Project", "Named"}


def test_actions_are_drawn_by_lot():
    counts, agreed = Counter(), 0
    for lesson in islice(lessons(Random(4)), 3000):
        action = re.match(r"Action: (\w+)\nPriority: [01]\.\d\d\nReasoning: ", lesson.turns[0].answer)[1]
        counts[action] += 1
        agreed += action == best_action(lesson.facts)
    assert all(abs(counts[action] / 3000 - 0.2) < 0.03 for action in ACTIONS)
    assert abs(agreed / 3000 - 0.2) < 0.03  # no more often the owner's action than chance
