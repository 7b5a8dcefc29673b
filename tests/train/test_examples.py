"""What each kind of stage trains on, made of labelled rows."""

import dataclasses
from collections import Counter

import msgspec
import numpy as np
import pytest

from mlx_email import config
from mlx_email.cli import main
from mlx_email.errors import DataError
from mlx_email.labels.examples.margins import margin
from mlx_email.labels.schema import ACTIONS, predicted_action, read_rows
from mlx_email.model import load as loading
from mlx_email.model.batch import example
from mlx_email.model.render import renderer
from mlx_email.model.wording import CUT as MARK
from mlx_email.train import examples as made
from mlx_email.train.examples import Writer, examples_of, settled

LIMIT = 320


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    assert main(["synth", "--out", str(folder / "box"), "--messages", "150"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "table")]) == 0
    return list(read_rows(folder / "table/features.parquet", "train"))


@pytest.fixture(scope="module")
def tiny():
    tokenizer = loading.load("tiny").tokenizer
    return tokenizer, renderer(tokenizer, history=False)


@pytest.fixture
def writer(tiny) -> Writer:
    return Writer(tiny[1], LIMIT, 0)


def action(tokenizer, ids) -> str:
    return tokenizer.decode(ids.tolist()).removeprefix("Action: ").split("\n")[0]


def priority(tokenizer, ids) -> str:
    return tokenizer.decode(ids.tolist()).split("Priority: ")[1].split("\n")[0]


def reasoning(tokenizer, ids) -> str:
    return tokenizer.decode(ids.tolist()).split("Reasoning: ")[1]


def taken(rows) -> dict[str, str]:
    return {row.message_id: predicted_action(row.action, row.response_time_hours) for row in rows}


def test_dpo_sets_what_was_done_against_something_else_and_nothing_else_differs(rows, writer, tiny):
    found = examples_of(config.Dpo(), rows, writer)
    assert len(found) > 100
    for each in found:
        chosen, rejected = each.completions
        assert action(tiny[0], chosen) == taken(rows)[each.id]
        assert action(tiny[0], rejected) in set(ACTIONS) - {taken(rows)[each.id]}
        assert reasoning(tiny[0], chosen) == reasoning(tiny[0], rejected)
    several = Counter(each.id for each in examples_of(config.Dpo(wrong_answers=3), rows, writer))
    assert max(several.values()) == 3


def test_kto_has_single_answers_of_both_kinds(rows, writer, tiny):
    found = examples_of(config.Kto(), rows, writer)
    kinds = Counter(each.numbers["desirable"] for each in found)
    assert set(kinds) == {0.0, 1.0} and all(len(each.completions) == 1 for each in found)
    for each in found:
        if each.numbers["desirable"]:
            assert action(tiny[0], each.completions[0]) == taken(rows)[each.id]


def test_the_reward_model_sees_the_right_answer_before_all_others(rows, writer, tiny):
    stage = config.Reward(message_pairs=0.2)
    found = examples_of(stage, rows, writer)
    answers = [each for each in found if len(each.completions) == 5]
    by_id = {row.message_id: row for row in rows}
    for each in answers:
        named = [action(tiny[0], ids) for ids in each.completions if len(ids)]
        assert named[0] == taken(rows)[each.id] and len(set(named)) == len(named)
        assert each.numbers["margin"][: len(named) - 1] == [margin(by_id[each.id], wrong) for wrong in named[1:]]
    messages = [each for each in found if len(each.completions) == 2]
    assert len(messages) == round(0.2 * len(rows)) and len(answers) + len(messages) == len(found)
    for each in messages:  # the two prompts as they are, cut where the template ends
        assert all(each.prompt.tolist() == list(tiny[1].before) for _ in each.completions)
        chosen, rejected = each.id.split()
        for name, ids in zip((chosen, rejected), each.completions, strict=True):
            assert [*each.prompt.tolist(), *ids.tolist()] == writer.prompt(by_id[name])
    assert not any(any(each.numbers["margin"]) for each in examples_of(config.Reward(margins=False), rows, writer))
    assert {len(each.completions) for each in examples_of(config.Reward(message_pairs=0.0), rows, writer)} == {5}


def test_variants_are_made_of_training_mail_only(rows, writer):
    stage = config.Sft(augment=True)
    training = [each.id for each in examples_of(stage, rows[:20], writer)]
    assert any("+" in name for name in training)
    held_out = [msgspec.structs.replace(row, split="validation") for row in rows[20:30]]
    both = [each.id for each in examples_of(stage, [*rows[:20], *held_out], writer)]
    assert both == training + [row.message_id for row in held_out]


def test_the_same_rows_and_seed_make_the_same_examples(rows, tiny):
    for stage in (config.Dpo(), config.Kto(), config.Reward()):
        both = [examples_of(stage, rows, Writer(tiny[1], LIMIT, 3)) for _ in range(2)]
        other = examples_of(stage, rows, Writer(tiny[1], LIMIT, 4))
        written = [[(e.id, [c.tolist() for c in e.completions]) for e in found] for found in (*both, other)]
        assert written[0] == written[1] != written[2]


def told_apart(tokenizer, examples, *, by_priority: bool) -> float:
    """How many pairs are put in order, on the second half, by how often the first half chose a text's action, or its
    action and priority: by who sees no mail."""
    texts = [
        [
            (action(tokenizer, ids), priority(tokenizer, ids) if by_priority else "")
            for ids in each.completions
            if len(ids)
        ]
        for each in examples
    ]
    half = len(texts) // 2
    chosen = Counter(text[0] for text in texts[:half])
    rejected = Counter(wrong for text in texts[:half] for wrong in text[1:])
    odds = {text: (chosen[text] + 1) / (rejected[text] + 1) for text in chosen | rejected}
    right = [odds.get(text[0], 1) > odds.get(wrong, 1) for text in texts[half:] for wrong in text[1:]]
    return sum(right) / len(right)


def test_no_answer_s_text_says_that_it_is_the_wrong_one(rows, writer, tiny, monkeypatch):
    """Without its mail an answer's priority gives no more away than its action. With the message's own priority on
    wrong answers (the planted fault) almost every pair could be told apart."""
    stage = config.Reward(message_pairs=0.0)
    many = [msgspec.structs.replace(row, message_id=f"{copy}{row.message_id}") for copy in range(6) for row in rows]
    examples = examples_of(stage, many, writer)
    plain, with_priority = (told_apart(tiny[0], examples, by_priority=by) for by in (False, True))
    assert with_priority < plain + 0.05
    monkeypatch.setattr(
        Writer,
        "other",
        lambda self, row, wrong, _: made.answer_ids(
            self.renderer, dataclasses.replace(made.demonstration(row), action=wrong)
        ),
    )
    assert told_apart(tiny[0], examples_of(stage, many, writer), by_priority=True) > plain + 0.1


def test_priorities_are_those_of_the_owner_s_own_settled_messages(rows, writer, tiny):
    """Another owner answers at another pace, which the reader's address would give away."""
    mine, theirs = (
        msgspec.structs.replace(
            rows[0], user=user, message_id=user, action="replied", label_quality="good", priority_target=priority_
        )
        for user, priority_ in (("ann", 0.99), ("bob", 0.71))
    )
    unsettled = msgspec.structs.replace(mine, message_id="x", label_quality="unseen", priority_target=0.1)
    found = made.priorities_of([mine, theirs, unsettled])
    taken_ = predicted_action(mine.action, mine.response_time_hours)
    assert found == {("ann", taken_): [0.99], ("bob", taken_): [0.71]}
    kept = msgspec.structs.replace(rows[0], user="bob", action="archived", label_quality="good")
    assert priority(tiny[0], np.array(writer.other(kept, taken_, found))) == "0.71"
    assert priority(tiny[0], np.array(writer.other(kept, "delete", found))) == "0.05"


def test_two_messages_are_compared_as_all_of_the_split_says(rows, writer, monkeypatch):
    """What a few rows leave out (a later mail of the thread) would make other preferences."""
    stage = config.Reward(message_pairs=1.0)
    few = rows[::3]
    seen = []
    honest = made.pairs
    monkeypatch.setattr(made, "pairs", lambda rows, seed: seen.append(len(rows)) or honest(rows, seed))
    found = examples_of(stage, few, writer, rows)
    assert seen == [len(rows)]
    assert 0 < len([each for each in found if len(each.completions) == 2]) <= len(few)


def test_messages_that_share_an_id_stay_two(rows, writer):
    twins = [msgspec.structs.replace(row, message_id="same") for row in rows[:2]]
    found = examples_of(config.Reward(message_pairs=0.0), twins, writer)
    assert len(found) == 2 and writer.counts == {}


# Bad input


def test_pairs_that_say_nothing_are_left_out_and_counted(writer):
    fine = example("fine", [1], [2, 3], [2, 4])
    given = [
        fine,
        example("equal", [1], [2, 3], [2, 3]),
        example("chosen empty", [1], [], [2]),
        example("all empty", [1], [], []),
        example("rejected empty", [1], [2, 3], []),
        example("fewer wrong ones", [1], [2], [3], []),
    ]
    assert [each.id for each in writer.kept(given)] == ["fine", "fewer wrong ones"]
    assert writer.counts == {made.EQUAL: 1, made.EMPTY: 3}


def test_long_bodies_are_cut_in_the_middle_and_counted(rows, tiny):
    tokenizer, words = tiny
    writer = Writer(words, 230, 0)
    body = "First things first. " + "and so on " * 140 + "Please answer by Friday."
    long = msgspec.structs.replace(rows[0], body=body[-1490:] if len(body) > 1490 else body)
    (each,) = examples_of(config.Sft(), [long], writer)
    text = tokenizer.decode(each.prompt.tolist())
    assert len(each.prompt) <= 230 and writer.counts == {made.CUT: 1}
    assert "Please answer by Friday." in text and MARK in text and "Action: one of" in text and "Subject:" in text
    assert text.index("First things") < text.index(MARK) < text.index("Please answer")
    examples_of(config.Sft(), [msgspec.structs.replace(rows[0], body="short")], writer)
    assert writer.counts == {made.CUT: 1}
    writer = Writer(words, 230, 0)
    assert len(examples_of(config.Dpo(wrong_answers=4), [long], writer)) > 1
    assert writer.counts == {made.CUT: 1}, "a message counts once"


def wishes(desirable: int, undesirable: int):
    return [example("", [1], [2], numbers={"desirable": float(n < desirable)}) for n in range(desirable + undesirable)]


@pytest.mark.parametrize(
    ("counts", "given", "weights", "warns"),
    [
        ((30, 10), {}, (1.0, 3.0), False),
        ((10, 40), {}, (4.0, 1.0), False),
        ((10, 10), {}, (1.0, 1.0), False),
        ((30, 10), {"desirable_weight": 2.0}, (2.0, 6.0), False),
        ((30, 10), {"desirable_weight": 1.0, "undesirable_weight": 1.0}, (1.0, 1.0), True),
        ((30, 10), {"desirable_weight": 1.0, "undesirable_weight": 2.5}, (1.0, 2.5), False),
    ],
)
def test_kto_s_weights_follow_from_the_balance_of_the_classes(counts, given, weights, warns):
    said = []
    stage = settled(config.Kto(**given), wishes(*counts), said.append)
    assert (stage.desirable_weight, stage.undesirable_weight) == weights
    assert len(said) == 1 and f"{counts[0]} desirable" in said[0] and f"{counts[1]} undesirable" in said[0]
    assert said[0].startswith("warning") == warns


@pytest.mark.parametrize(("counts", "lacks"), [((5, 0), "undesirable"), ((0, 5), "desirable")])
def test_kto_with_one_class_is_refused(counts, lacks):
    with pytest.raises(DataError, match=f"none of 5 examples is {lacks}"):
        settled(config.Kto(), wishes(*counts), print)


def test_other_stages_are_settled_as_they_are():
    for stage in (config.Sft(), config.Dpo(), config.Reward()):
        assert settled(stage, [example("", [1], [2])], print) is stage


def test_margins_grow_with_how_fast_and_how_clearly_the_owner_acted(rows):
    replied = msgspec.structs.replace(rows[0], action="replied", response_time_hours=0.0, label_quality="good")
    slower = msgspec.structs.replace(replied, response_time_hours=3.0)
    assert margin(replied, "archive") == 1 > margin(slower, "archive") > margin(slower, "reply_later")
    kept = msgspec.structs.replace(rows[0], action="archived", label_quality="good")
    unclear = msgspec.structs.replace(kept, label_quality="no_trash")
    assert margin(kept, "reply_now") == 2 * margin(unclear, "reply_now")
    assert margin(kept, "delete") == margin(kept, "forward") / 2
    every = [margin(row, wrong) for row in rows for wrong in ACTIONS]
    assert min(every) > 0 and max(every) <= 1 and np.std(every) > 0
