"""The rule depends on facts that a reader finds in the text, and on no single one of them."""

import re
from collections import Counter, defaultdict
from random import Random

import pytest

from mlx_email.labels.schema import ACTIONS
from mlx_email.synth import words
from mlx_email.synth.grammar import Owner, make_owner, write_mail
from mlx_email.synth.rule import DEPARTMENTS, Facts, best_action, sample_facts


@pytest.fixture(scope="module")
def population() -> list[tuple[Owner, Facts]]:
    rng = Random("population")
    owners = [make_owner(rng, department, set()) for department in DEPARTMENTS]
    return [(owner, sample_facts(rng, owner.department)) for owner in owners for _ in range(800)]


def share_by(key, population) -> float:
    """Accuracy of the best guess from `key` alone."""
    groups = defaultdict(Counter)
    for _, facts in population:
        groups[key(facts)][best_action(facts)] += 1
    return sum(max(counts.values()) for counts in groups.values()) / len(population)


@pytest.mark.parametrize("fact", ["role", "kind", "urgency", "handler", "to_group", "department"])
def test_no_single_fact_decides(population, fact):
    assert share_by(lambda facts: getattr(facts, fact), population) < 0.65


@pytest.mark.parametrize("left_out", ["role", "kind", "urgency", "handler", "to_group", "department"])
def test_every_fact_matters(population, left_out):
    names = [name for name in ("role", "kind", "urgency", "handler", "to_group", "department") if name != left_out]
    assert share_by(lambda facts: tuple(getattr(facts, name) for name in names), population) < 0.99
    assert share_by(lambda facts: facts, population) == 1.0


def test_all_five_actions_come_from_the_rule(population):
    assert {best_action(facts) for _, facts in population} == set(ACTIONS)


def said(sentences: tuple[str, ...], body: str) -> bool:
    """Whether one of the slotted sentences stands in the body, a person's full name where it names another."""
    for sentence in filter(None, sentences):
        fixed = re.escape(sentence).replace(r"\{other\}", "[A-Z][a-z]+ [A-Z][a-z]+")
        if re.search(re.sub(r"\\{\w+\\}", "[^.?]+", fixed), body):
            return True
    return False


def test_every_fact_stands_in_the_text(population):
    rng = Random("texts")
    for owner, facts in population[::5]:
        mail = write_mail(rng, owner, facts)
        human = facts.role in ("boss", "colleague", "customer")
        core = {"customer": words.CUSTOMER_INFORMATION}.get(facts.role) if facts.kind == "information" else None
        core = words.SEMINARS if (facts.role, facts.kind) == ("promoter", "invitation") else core
        assert said(core or words.CORE[facts.kind], mail.body)
        assert facts.department in mail.to.address
        assert (mail.to.address == owner.group) == facts.to_group
        assert mail.sender.address.endswith(f".{words.COMPANY}.example") == (
            facts.role in ("boss", "colleague", "automated")
        )
        if facts.role == "boss":
            assert mail.body.splitlines()[-1] == mail.sender.title
            assert mail.sender.title.split()[0] in ("Head", "Managing", "Vice", "Director", "Chief")
        if human:
            assert (facts.handler == "you") == said(words.YOU, mail.body)
            assert (facts.handler == "other") == said(words.OTHER, mail.body)
            assert (facts.urgency == "now") == said(words.NOW, mail.body)
            assert (facts.urgency == "later") == said(words.LATER, mail.body)
        if facts.kind == "alarm":
            assert (facts.handler == "other") == said(words.RUN_BY, mail.body)


def test_bodies_are_short_and_differ(population):
    rng = Random("lengths")
    bodies = [write_mail(rng, owner, facts).body for owner, facts in population]
    lengths = [len(body.split()) for body in bodies]
    assert 20 < sum(lengths) / len(lengths) < 40 and max(lengths) < 65
    assert len(set(bodies)) > 0.97 * len(bodies)
