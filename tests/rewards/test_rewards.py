"""What a completion is worth: by the functions that come with the package, by a user's own, by the reward model."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlx_email import config
from mlx_email.errors import ConfigError, UserError
from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.model import load as loading
from mlx_email.model.render import answer_ids, is_over, renderer, text_of
from mlx_email.model.wording import Answer, answer_text, read_answer
from mlx_email.rewards.functions import COST, FUNCTIONS, LONG
from mlx_email.rewards.judge import Judge, imported, judge, sample_of
from mlx_email.rewards.learned import Learned
from mlx_email.rewards.sample import Case

PROMPT = np.array([1, 2], np.int32)
GOOD = "Action: delete\nPriority: 0.10\nReasoning: nothing asked"


@pytest.fixture(scope="module")
def words():
    return renderer(loading.load("tiny").tokenizer, history=False)


@pytest.fixture
def case() -> Case:
    row = Row(
        message_id="1",
        user="ann",
        date=datetime(2026, 1, 1, tzinfo=UTC),
        sender="bob@x.example",
        action="deleted",
        priority_target=0.3,
    )
    return Case(row)


def samples(words, case, *texts, ended=True):
    return [
        sample_of(words, case, PROMPT, words.words.encode(text, add_special_tokens=False).ids, ended=ended)
        for text in texts
    ]


# Reading an answer


@given(st.sampled_from(ACTIONS), st.integers(0, 100), st.text(st.characters(codec="ascii", categories="L"), min_size=1))
def test_what_is_written_is_read(action, hundredths, reasoning):
    said = read_answer(answer_text(Answer(action, hundredths / 100, reasoning)))
    assert (said.action, said.priority, said.well_formed) == (action, hundredths / 100, True)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", (None, None, False)),
        ("Action: delete", ("delete", None, False)),
        ("Action: remove\nPriority: 0.10\nReasoning: x", (None, 0.1, False)),
        ("action: delete\nPriority: 0.10\nReasoning: x", (None, 0.1, False)),
        ("Action: delete \nPriority: 0.10\nReasoning: x", (None, 0.1, False)),
        ("Action: delete\nPriority: 1.10\nReasoning: x", ("delete", None, False)),
        ("Action: delete\nPriority: nan\nReasoning: x", ("delete", None, False)),
        ("Action: delete\nPriority: -0.1\nReasoning: x", ("delete", None, False)),
        ("Action: delete\nPriority: 0.10\nReasoning: ", ("delete", 0.1, False)),
        ("Action: delete\nPriority: 0.10\nReasoning: x\nAction: archive", ("delete", 0.1, False)),
        (GOOD + "\n", ("delete", 0.1, True)),
        (GOOD, ("delete", 0.1, True)),
    ],
)
def test_what_a_model_may_write(text, read):
    said = read_answer(text)
    assert (said.action, said.priority, said.well_formed) == read


def test_text_ends_where_the_answer_does(words):
    ids = answer_ids(words, Answer("delete", 0.1, "nothing asked"))
    assert text_of(words, [*ids, *ids]) == GOOD
    assert is_over(words, ids) and not is_over(words, ids[:-1])
    assert is_over(words, words.words.encode(GOOD + "\n", add_special_tokens=False).ids)
    assert not is_over(words, words.words.encode("Action: delete\nPriority: 0.10\n", add_special_tokens=False).ids)


def test_a_control_token_cannot_pass_for_text(words):
    """It has no text: decoded as nothing it would leave a well-formed answer behind."""
    ids = answer_ids(words, Answer("delete", 0.1, "nothing asked"))
    control = next(n for n in range(5000) if words.words.id_to_token(n) is None and n not in words.stops)
    assert not read_answer(text_of(words, [control, *ids])).well_formed
    assert text_of(words, [ids[0], control, *ids[1:]]).count("\ufffd") == 1


# The functions


def test_the_functions(words, case):
    texts = (GOOD, GOOD.replace("delete", "archive"), GOOD.replace("delete", "reply_now"), "rubbish", "word " * 90)
    made = samples(words, case, *texts)
    assert FUNCTIONS["action"](made) == [1, 0, 0, 0, 0]
    assert FUNCTIONS["action_cost"](made) == [1, 0.75, 0, 0, 0]
    assert FUNCTIONS["format"](made) == [1, 1, 1, 0, 0]
    assert FUNCTIONS["format"](samples(words, case, GOOD, ended=False)) == [0]
    assert FUNCTIONS["priority"](made) == pytest.approx([0.8, 0.8, 0.8, 0, 0])
    assert FUNCTIONS["length"](made)[:4] == [0, 0, 0, 0]
    assert FUNCTIONS["length"](made)[4] == pytest.approx(-min(1, (len(made[4].tokens) - LONG) / LONG)) != 0


def test_costs_are_of_all_actions_and_between_0_and_1():
    for done in ACTIONS:
        assert set(COST[done]) == set(ACTIONS) - {done}
        assert all(0 < cost <= 1 for cost in COST[done].values())
    assert all(COST[done]["delete"] == max(COST[done].values()) for done in ("reply_now", "reply_later", "forward"))


def test_a_judge_adds_by_weight(words, case):
    made = samples(words, case, GOOD, "rubbish")
    judged = judge([("action", 2.0), ("format", -0.5)], lambda: 1 / 0)(made)
    assert [each.reward for each in judged] == [1.5, 0]
    assert judged[0].parts == {"action": 1, "format": 1}
    assert Judge(())([]) == []


# A user's own


def test_by_import_path(tmp_path, monkeypatch, words, case):
    (tmp_path / "mine.py").write_text("def short(samples):\n    return [-len(each.text) for each in samples]\nNO = 3\n")
    made = samples(words, case, "four")
    assert imported(f"{tmp_path}/mine.py:short")(made) == [-4]
    monkeypatch.syspath_prepend(tmp_path)
    assert judge([("mine:short", 0.5)], lambda: 1 / 0)(made)[0].reward == -2
    for path, said in (
        (f"{tmp_path}/mine.py:long", "has no function 'long'"),
        ("mine:NO", "has no function 'NO'"),
        ("nowhere:f", "ModuleNotFoundError"),
        (f"{tmp_path}/other.py:f", "FileNotFoundError"),
    ):
        with pytest.raises(ConfigError, match=said):
            imported(path)


def test_its_errors_have_its_name(words, case):
    for broken, said in ((lambda s: s[9], "IndexError"), (lambda s: [], "0 numbers"), (lambda s: ["x"], "ValueError")):
        with pytest.raises(UserError, match=f"the reward function mine.*{said}"):
            Judge((("mine", 1.0, broken),))(samples(words, case, GOOD))


def test_names_are_checked_in_the_configuration():
    for name in ("acton", "action:", ":f", "mine:not a name"):
        with pytest.raises(ConfigError, match="regex"):
            config.load(None, [f"stages=[{{algorithm: grpo, rewards: [{{function: '{name}'}}]}}]"])
    with pytest.raises(ConfigError, match="named twice"):
        config.load(None, ["stages=[{algorithm: grpo, rewards: [{function: action}, {function: action}]}]"])


# The reward model


class Fixed:
    """A reward model whose score is the number of a completion's tokens, plus a tenth of its prompt's."""

    def __init__(self) -> None:
        self.asked = []

    def score_all(self, examples, batch_size):
        self.asked.append([len(each.completions) for each in examples])
        return np.array(
            [[[len(ids) + len(each.prompt) / 10] * 2 for ids in each.completions] for each in examples], np.float32
        )


def test_the_reward_model_scores_each_group_beside_its_prompt(words, case):
    other = np.array([1, 2, 3], np.int32)
    made = samples(words, case, "a", "a b", "a b c")
    made += [sample_of(words, case, other, [5, 6], ended=True)]
    model = Fixed()
    scores = Learned(model, 4)(made)
    assert scores == pytest.approx([len(each.tokens) + len(each.prompt) / 10 for each in made])
    assert model.asked == [[3, 3]]  # a prompt once, the smaller group padded


def test_what_the_owner_may_have_done_after_all_is_not_wrong(words, case):
    """Archived, in a mailbox without a trash folder: it may have been deleted."""
    hidden = Case(replace(case.row, action="archived", label_quality="no_trash"))
    made = samples(words, hidden, *(GOOD.replace("delete", action) for action in ("archive", "delete", "forward")))
    assert FUNCTIONS["action"](made) == [1, 0.5, 0]
    assert FUNCTIONS["action_cost"](made) == [1, 0.5, 0.25]


def test_messages_that_share_an_id_are_judged_apart(words, case):
    answers = tuple(np.array(answer_ids(words, Answer(action, 0.5, "none")), np.int32) for action in ACTIONS)
    cases = [Case(replace(case.row, action=action), answers) for action in ("deleted", "archived")]
    found = judge([("action", 1.0)], lambda: 1 / 0).of_actions(words, [(each, PROMPT) for each in cases])
    assert found.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 1, 0]]


def test_a_file_may_define_classes(tmp_path, words, case):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 2\n"
    )
    (tmp_path / "kinds.py").write_text(text + "def two(samples):\n    return [A().x for _ in samples]\n")
    assert imported(f"{tmp_path}/kinds.py:two")(samples(words, case, "a")) == [2]
