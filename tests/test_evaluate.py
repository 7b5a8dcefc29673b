"""Runs side by side, and the baselines that are fitted once a run."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import small
from msgspec.structs import replace

from mlx_email import baselines, trained
from mlx_email.cli import main
from mlx_email.evaluate import fitted, metrics, priority
from mlx_email.labels.schema import Row
from mlx_email.progress import Progress

MAIL = [
    Row(
        message_id=str(i),
        user=f"u{i % 2}",
        date=datetime(2026, 1 + i % 3, 1, tzinfo=UTC),
        sender="s",
        action="deleted" if i % 3 else "archived",
        label_quality="good" if i % 3 else "kept_late",
        thread_id=str(i // 2),
    )
    for i in range(120)
]


def said(share: float, rows=MAIL) -> np.ndarray:
    target = metrics.targets(rows)
    right = np.arange(len(rows)) < share * len(rows)
    found = np.full((len(rows), 5), 0.05)
    found[np.arange(len(rows)), np.where(right, target, (target + 1) % 5)] = 0.8
    return found


# Runs side by side


@pytest.fixture
def runs(monkeypatch):
    """Lets `evaluate` find that runs have said something of some messages."""

    def give(**found) -> None:
        def measured(policy, path, data, split, progress):
            rows, probabilities = found[path.name]
            about = {"run": path.name, "stage": "sft", "split": split, "baselines": {}}
            worth = metrics.summary(rows, probabilities, priority.by_action(rows))
            return trained.Measured({**about, **worth}, rows, probabilities, probabilities)

        monkeypatch.setattr(trained, "open_policy", lambda path, beside: None)
        monkeypatch.setattr(trained, "_measured", measured)

    return give


def output(capsys, *arguments: str) -> str:
    assert main(["evaluate", *arguments]) == 0
    return capsys.readouterr().out


def test_each_run_is_compared_with_the_first(runs, capsys):
    runs(a=(MAIL, said(0.5)), b=(MAIL, said(0.9)), c=(MAIL, said(0.5)))
    *alone, better, equal = json.loads(output(capsys, "a", "b", "c", "--json"))
    assert [record["run"] for record in alone] == ["a", "b", "c"]
    assert better["compared"] == ["a", "b"] and equal["compared"] == ["a", "c"]
    assert better["change"]["accuracy"] == pytest.approx(0.4) and better["change"]["accuracy_interval"][0] > 0.2
    assert better["mcnemar"] < 1e-6 and equal["mcnemar"] == 1
    table = output(capsys, "a", "b")
    assert "b beside a, 120 messages in 60 threads" in table
    assert "+0.400" in table and "48 to 0" in table


def test_one_run_is_compared_with_none(runs, capsys):
    runs(a=(MAIL, said(0.5)))
    (record,) = json.loads(output(capsys, "a", "--json"))
    assert record["run"] == "a"
    assert "beside" not in output(capsys, "a")


def test_other_messages_are_not_compared(runs, capsys):
    runs(a=(MAIL, said(0.5)), b=(MAIL[:40], said(0.9, MAIL[:40])))
    *_, record = json.loads(output(capsys, "a", "b", "--json"))
    assert record["reason"] == "they were measured on other messages: 40 of 120 and 40 are the same"
    assert "b is not compared with a: they were measured" in output(capsys, "a", "b")


def test_the_table_says_what_was_measured(runs, capsys):
    rows = [replace(row, user="a\x1b[31m\nb" if row.user == "u0" else row.user) for row in MAIL]
    runs(a=(rows, said(0.5)))
    table = output(capsys, "a")
    for words in ("calibration error", "Brier score", "nats", "priority", "2026-03", "u1", "precision  recall"):
        assert words in table
    assert "of 60 messages; " in table and "with certain labels" in table
    assert "\x1b" not in table and "a b" in table  # an owner's name comes from a folder's


# Baselines


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of 150 training rows, and baselines that count how often they are fitted."""
    calls = []

    def fit(train, rows):
        calls.append([row.message_id for row in train])
        return said(0.7, rows)

    monkeypatch.setattr(fitted, "BASELINES", {"tfidf": fit})
    monkeypatch.setattr(fitted, "installed", lambda: True)
    train = [replace(MAIL[0], message_id=str(i)) for i in range(150)]
    monkeypatch.setattr(baselines, "read_rows", lambda *_, **__: iter(train))
    return calls


def of_fitted(kept=None, data="a", rows=MAIL, count=150):
    return baselines.of_fitted(Path("features.parquet"), data, count, rows, kept, Progress(quiet=True))


def test_baselines_are_fitted_once_and_kept(table, tmp_path):
    kept = tmp_path / "baselines.json"
    first = of_fitted(kept)
    assert first["tfidf"]["accuracy"] == pytest.approx(0.7) and first["tfidf"]["trained_on"] == 150
    assert set(first["tfidf"]) > {"accuracy_interval", "macro_f1", "brier", "calibration_error"}
    assert of_fitted(kept) == first and len(table) == 1
    of_fitted(kept, data="b")  # another table
    of_fitted(kept, data="b", rows=MAIL[:110])  # other messages
    assert len(table) == 3
    kept.write_text("{}")
    of_fitted(kept)
    assert len(table) == 4
    of_fitted()
    assert len(table) == 5


def test_many_training_rows_are_thinned_out_evenly(table, monkeypatch, capsys):
    monkeypatch.setattr(fitted, "MOST_ROWS", 4)
    of_fitted()
    assert table == [["0", "50", "99", "149"]]
    assert "fitted to 4 of 150 messages" in capsys.readouterr().err


def test_without_scikit_learn_a_line_says_so(table, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fitted, "installed", lambda: False)
    assert of_fitted(tmp_path / "kept") == {} and table == [] and not (tmp_path / "kept").exists()
    assert capsys.readouterr().err.splitlines() == [baselines.MISSING]


def test_a_broken_scikit_learn_is_none(monkeypatch):
    def broken(name):
        raise ImportError(name)

    monkeypatch.setattr(fitted.importlib, "import_module", broken)
    assert not fitted.installed()


def test_a_run_that_may_only_be_read_is_measured_too(table, tmp_path):
    assert of_fitted(tmp_path / "absent/baselines.json")["tfidf"]["accuracy"] == pytest.approx(0.7)


def test_too_few_messages_say_little(table, capsys):
    assert of_fitted(rows=MAIL[:99]) == of_fitted(count=99) == {} and table == []
    assert "fewer than 100 messages" in capsys.readouterr().err


def test_what_is_fitted_stands_beside_what_is_counted():
    counted = {"majority": 0.3, "best_possible": 0.9, "measured": {"majority": {"accuracy": 0.3}}}
    found = baselines.joined(counted, {"tfidf": {"accuracy": 0.5}})
    assert found["tfidf"] == 0.5 and found["majority"] == 0.3 and found["best_possible"] == 0.9
    assert set(found["measured"]) == {"majority", "tfidf"}
    assert baselines.joined(counted, {}) == counted


@pytest.mark.slow
def test_a_run_has_its_baselines_and_evaluate_compares_it_with_another(tmp_path, capsys):
    assert main(["synth", "--out", str(tmp_path / "box"), "--messages", "600"]) == 0
    assert main(["prepare", str(tmp_path / "box/maildir"), "--out", str(tmp_path / "table")]) == 0
    small.write_model(tmp_path / "model")
    for seed in (0, 1):
        stages = "stages=[{algorithm: sft, max_steps: 2, batch_size: 4, accumulation: 1}]"
        chosen = ["--set", stages, "--set", "lora.rank=2", "--set", "max_prompt_tokens=160", "--set", f"seed={seed}"]
        out = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / f"run{seed}"), "--json"]
        capsys.readouterr()
        assert main(["train", str(tmp_path / "table"), *out, *chosen]) == 0
    record = json.loads(capsys.readouterr().out)
    there = record["test"]["baselines"]
    assert there["tfidf"] > there["majority"] and set(there["measured"]) == {"tfidf", "boosted_trees", *COUNTED}
    kept = [(tmp_path / f"run{seed}/baselines.json").read_bytes() for seed in (0, 1)]
    assert kept[0] == kept[1]  # the same every time
    one, other, both = json.loads(output(capsys, str(tmp_path / "run0"), str(tmp_path / "run1"), "--json"))
    assert one["baselines"] == other["baselines"] == there
    assert both["messages"] == one["messages"] and both["change"]["accuracy"] == pytest.approx(
        other["accuracy"] - one["accuracy"]
    )
    assert one["priority"] == json.loads((tmp_path / "run0/sft/metrics.json").read_text())["priority"]
    events = (tmp_path / "run0/events.jsonl").read_text()
    assert '"owners"' not in events and '"months"' not in events


def test_an_ensemble_is_made_of_what_its_members_said(runs, capsys):
    """Two that are wrong in other places are better together; of other messages there is no ensemble."""
    target, count = metrics.targets(MAIL), len(MAIL)
    wrong = (target + 1) % 5

    def said(right, sure):
        found = np.full((count, 5), (1 - sure) / 4)
        found[np.arange(count), np.where(right, target, wrong)] = sure
        return found

    even = np.arange(count) % 2 == 0
    unsure = np.where(even[:, None], said(even, 0.9), said(even, 0.3))
    other = np.where(even[:, None], said(~even, 0.3), said(~even, 0.9))
    runs(a=(MAIL, unsure), b=(MAIL, other), c=(MAIL[1:], unsure[1:]))
    one, two, _, average, vote = json.loads(output(capsys, "a", "b", "--ensemble", "--json"))
    assert max(one["accuracy"], two["accuracy"]) < 0.6 and average["accuracy"] == 1 == vote["accuracy"]
    assert average["of"] == ["a", "b"] and vote["ensemble"] == "vote"
    assert "majority vote                  1.000" in output(capsys, "a", "b", "--ensemble")
    assert main(["evaluate", "a", "c", "--ensemble"]) == 2
    assert "are no ensemble: they were measured on other messages" in capsys.readouterr().err


@pytest.mark.slow
def test_stages_of_a_run_share_their_base_and_are_what_they_are_alone(tmp_path, capsys, monkeypatch):
    assert main(["synth", "--out", str(tmp_path / "box"), "--messages", "400"]) == 0
    assert main(["prepare", str(tmp_path / "box/maildir"), "--out", str(tmp_path / "table")]) == 0
    small.write_model(tmp_path / "model")
    stage = "max_steps: 3, batch_size: 4, accumulation: 1, learning_rate: 0.01"
    stages = f"stages=[{{algorithm: sft, {stage}}}, {{algorithm: sft, name: more, {stage}}}]"
    chosen = [part for each in (stages, "lora.rank=2", "max_prompt_tokens=160") for part in ("--set", each)]
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "table"), "--model", str(tmp_path / "model"), "--out", str(run), *chosen]) == 0
    capsys.readouterr()
    names = [f"{run}:sft", f"{run}:more", str(run)]
    alone = [json.loads(output(capsys, name, "--json"))[0] for name in names]
    loaded = []
    honest = trained.loading.load
    monkeypatch.setattr(trained.loading, "load", lambda name: loaded.append(name) or honest(name))
    together = json.loads(output(capsys, *names, "--ensemble", "--json"))
    assert together[:3] == alone and len(loaded) == 1
    assert alone[0]["nll"] != alone[1]["nll"] and [each["stage"] for each in alone[:2]] == ["sft", "more"]
    assert "acting" in alone[0] and "calibrated" in alone[0]
    assert main(["evaluate", f"{run}:none"]) == 2
    assert "no finished policy named none; there are sft, more" in capsys.readouterr().err


COUNTED = ("majority", "majority_per_owner")


@pytest.mark.slow
def test_baselines_of_real_mail_are_where_others_found_them(shared, tmp_path):
    """shared/data/README.md has 0.511 and 0.554 (macro-F1 0.225 and 0.283) of the Outlook part of it."""
    from mlx_email.jobs import few_rows
    from mlx_email.labels.prepare import Options, prepare
    from mlx_email.measure import baseline_summary, outcomes

    prepare([shared / "data/enron-sample.tar.gz"], tmp_path / "table", Options(), count=2)
    features = tmp_path / "table/features.parquet"
    rows, known = few_rows(features, "test", None), outcomes(features)
    counted = baseline_summary(None, known, rows)
    found = baselines.joined(counted, baselines.of_fitted(features, "", len(known), rows, None, Progress(quiet=True)))
    assert 0.45 < found["tfidf"] < 0.56 and 0.5 < found["boosted_trees"] < 0.65
    assert 0.65 < found["majority_per_owner"] < 0.75
    assert 0.19 < found["measured"]["tfidf"]["macro_f1"] < 0.26
    assert 0.25 < found["measured"]["boosted_trees"]["macro_f1"] < 0.36
