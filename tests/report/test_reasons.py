"""The policy's reasons for its mistakes: asked for once, kept, and not believed of another action."""

import json
from types import SimpleNamespace

import pytest

from mlx_email import config, reasons
from mlx_email.cli import main
from mlx_email.evaluate.explain import Explanation
from mlx_email.labels.schema import ACTIONS, read_rows
from mlx_email.report import numbers, said


@pytest.fixture
def run(made, monkeypatch):
    """A run in whose place no model is loaded: what `explain` is asked is noted."""
    folder = made(short=True, count=200)
    calls = []

    def explain(base, words, rows, actions, *, limit):
        calls.append(list(zip([row.message_id for row in rows], actions, strict=True)))
        return [Explanation(0.5, f"because of {row.message_id}, {limit}") for row in rows]

    monkeypatch.setattr(reasons, "explain", explain)
    monkeypatch.setattr(reasons, "result", lambda run, stage: run / stage)
    monkeypatch.setattr(reasons, "put_adapters", lambda file, model: None)
    model = SimpleNamespace(eval=lambda: None)
    held = SimpleNamespace(
        folder=folder, base=SimpleNamespace(model=model), words=None, config=config.Config(max_prompt_tokens=77)
    )
    rows = list(read_rows(folder / "data/features.parquet", "test"))
    policy = said.read(folder / "sft")
    keys = [(policy.users[at], policy.ids[at]) for at in numbers.mistakes(policy)]
    assert keys
    return SimpleNamespace(folder=folder, held=held, rows=rows, keys=keys, calls=calls, policy=policy)


def test_they_are_asked_for_once_and_kept(run):
    explain = reasons.asked(run.held, "sft", run.rows)
    found = explain(run.keys)
    assert found == [f"because of {name}, 77" for _, name in run.keys]
    names = [name for _, name in run.keys]
    assert run.calls == [[(name, ACTIONS[run.policy.predicted[run.policy.ids.index(name)]]) for name in names]]
    assert explain(run.keys) == found and len(run.calls) == 1
    assert reasons.of_run(run.folder)(run.keys) == found and len(run.calls) == 1


def test_the_report_has_them_again_without_a_model(run, capsys):
    reasons.asked(run.held, "sft", run.rows)(run.keys)
    assert main(["report", str(run.folder)]) == 0
    text = (run.folder / "report.html").read_text()
    assert "because of" in text and text.count("<blockquote") == len(run.keys)
    (run.folder / "sft" / reasons.FILE).unlink()
    assert main(["report", str(run.folder)]) == 0
    assert "<blockquote" not in (run.folder / "report.html").read_text()


def test_a_reason_for_another_action_is_not_shown(run):
    """As after another calibration: what was written was about what was said then."""
    explain = reasons.asked(run.held, "sft", run.rows)
    explain(run.keys)
    file = run.folder / "sft" / reasons.FILE
    kept = json.loads(file.read_bytes())
    kept["said"][0]["action"] = next(each for each in ACTIONS if each != kept["said"][0]["action"])
    file.write_text(json.dumps(kept))
    assert reasons.of_run(run.folder)(run.keys)[0] is None
    assert explain(run.keys)[0] is not None and len(run.calls) == 2 and len(run.calls[1]) == 1


def test_a_damaged_file_is_none(run):
    (run.folder / "sft" / reasons.FILE).write_text("[1]")
    assert reasons.of_run(run.folder)(run.keys) == [None] * len(run.keys)
    assert all(reasons.asked(run.held, "sft", run.rows)(run.keys))


def test_a_message_that_is_not_there_any_more_has_none(run):
    assert reasons.asked(run.held, "sft", [])(run.keys) == [None] * len(run.keys)
    assert run.calls == []
