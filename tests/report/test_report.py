"""RUN/report.html: what it says is what the run's files say, whatever is in them or lacks."""

import json
import math
import os
import re
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from pages import Page, check

from mlx_email import report
from mlx_email.cli import main
from mlx_email.evaluate import acting, calibrate, counts, metrics, predictions
from mlx_email.evaluate.calibration_error import calibration_error
from mlx_email.labels.schema import read_rows
from mlx_email.report import numbers, read, said, tags

REAL_AVAILABLE, REAL_ATTEMPT = report.draw.available, report.attempt  # in tests both are others


@pytest.fixture(scope="session")
def long(made):
    return made()


@pytest.fixture(scope="session")
def short(made):
    """One stage, not calibrated."""
    return made(short=True, count=300, goals=())


@pytest.fixture
def run(long, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(long, tmp_path / "run")


def page(run, **options) -> Page:
    found = Page(report.write(run, **options).read_text())
    check(found)
    return found


def change(file, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# Drawing takes a while: what may lack or stand anywhere is tried in tables first, and in charts by the slower tests.
drawn = pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])


@pytest.fixture
def charted(drawn, monkeypatch):
    monkeypatch.setattr(report.draw, "available", lambda: drawn)


# What it says


@pytest.fixture(scope="session")
def whole(long):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.draw, "available", lambda: True)
        found = Page(report.write(long).read_text())
    check(found)
    return found


def test_the_headline_is_what_the_rule_did_on_the_test_mail(whole, long):
    rule = acting.rule_of(acting.read(long / "dpo"), 0.95)
    ((_, said_),) = whole.all("div", **{"class": "headline yes"})
    assert said_.startswith(f"{rule.test['acts']:.0%}of the mail it may act on alone, to be right 95%")
    assert f"right {rule.test['acts_accuracy']:.1%} of the time" in said_
    assert f"at least {rule.threshold:.1%} sure" in said_


@pytest.mark.parametrize(
    ("accuracy", "kind", "words"),
    [(0.95, "yes", "kept that"), (0.945, "near", "a little short"), (0.8, "no", "Don't let it act alone")],
)
def test_a_promise_that_was_not_kept_is_said(run, accuracy, kind, words):
    rules = json.loads((run / "dpo/acting.json").read_text())
    rules["goals"][1]["test"]["acts_accuracy"] = accuracy
    (run / "dpo/acting.json").write_text(json.dumps(rules))
    ((_, said_),) = page(run).all("div", **{"class": f"headline {kind}"})
    assert words in said_


def test_never_is_0_percent_with_its_reason(run):
    change(run / "dpo/acting.json", goals=[{"goal": 0.95, "threshold": None, "actions": [], "test": {"acts": 0.0}}])
    ((_, said_),) = page(run).all("div", **{"class": "headline no"})
    assert said_.startswith("0%of the mail") and "on 300 validation messages no confidence" in said_


def test_never_for_want_of_validation_mail(run):
    change(run / "dpo/acting.json", goals=[{"goal": 0.95, "threshold": None, "actions": [], "test": {"acts": 0.0}}])
    record = json.loads((run / "metrics.json").read_text())
    del record["stages"]["dpo"]["validation"]
    (run / "metrics.json").write_text(json.dumps(record))
    ((_, said_),) = page(run).all("div", **{"class": "headline no"})
    assert said_.startswith("0%of the mail") and "there is no validation mail" in said_


def test_a_policy_that_a_baseline_beats_is_said_to_be(run, whole):
    assert not whole.all("p", **{"class": "warning"})
    change(run / "metrics.json", test={"baselines": {"majority": 0.3, "tfidf": 0.99, "best_possible": 0.995}})
    ((_, warning),) = page(run).all("p", **{"class": "warning"})
    assert "TF-IDF, logistic regression is right 99.0%" in warning


def test_without_rules_the_headline_is_the_accuracy(short):
    found = page(short)
    measured = json.loads((short / "metrics.json").read_text())["stages"]["sft"]["test"]
    ((_, said_),) = found.all("div", **{"class": "headline none"})
    assert said_.startswith(f"{measured['accuracy']:.1%}of all later mail") and "let it suggest" in said_
    assert "this run has no calibration" not in found.section("data")
    assert not re.search("after calibration|temperature", found.section("reliability"))


def test_numbers_are_of_the_calibrated_policy(whole, long):
    rows = list(read_rows(long / "data/features.parquet", "test"))
    target, raw = metrics.targets(rows), predictions.read(long / "dpo/test.csv")
    p = calibrate.apply(calibrate.read(long / "dpo"), np.log(raw))
    right = p.argmax(axis=1) == target
    confused = counts.confusion(target, p.argmax(axis=1))
    assert [[int(cell) for cell in row[1:6]] for row in whole.rows("Confusion matrix")] == confused.tolist()
    off, was = (calibration_error(each.max(axis=1), right) for each in (p, raw))
    assert off < was  # else what follows would say nothing
    ((_, tiles),) = whole.all("dl")
    assert f"Confidence is off by{off:.1%}on average; {was:.1%} before calibration" in tiles
    shown = whole.rows("Owners")
    for owner, *_, of, share, _ in shown:
        mine = np.array([row.user == owner for row in rows])
        assert (int(of), share) == (mine.sum(), f"{right[mine].mean():.1%}")
    goals = dict(whole.rows("Coverage of the test mail"))
    for goal in (0.9, 0.95, 0.99):
        order = np.argsort(-p.max(axis=1))
        kept = right[order].cumsum() / np.arange(1, len(order) + 1)
        assert goals[f"{goal:.0%}"] == f"{(np.flatnonzero(kept >= goal).max() + 1) / len(order):.1%}"


def test_stages_baselines_and_curves_are_there(whole, long):
    told = json.loads((long / "metrics.json").read_text())
    lines = {row[0]: row for row in whole.rows("Stages")}
    for name in ("sft", "dpo"):
        assert lines[name][2] == f"{told['stages'][name]['test']['accuracy']:.1%}"
    assert lines["reward"][2:4] == ["70.0% of pairs", "60.0\u201380.0%"] and lines["dpo"][-1] == "the run's policy"
    trees, best = whole.rows("Stages")[-2:]
    assert trees[1:5] == ["boosted trees", "60.0%", "50.0\u201370.0%", "0.550"] and best[1:3] == [
        "best possible",
        "95.0%",
    ]
    ((_, tiles),) = whole.all("dl")
    assert "Without this model60.0%boosted trees" in tiles
    labels = [attrs["aria-label"] for attrs, _ in whole.all("svg")]
    for begins in ("Accuracy of each stage: sft", "Confidence and", "Share of right", "Messages by time"):
        assert len([label for label in labels if label.startswith(begins)]) == 1, begins
    courses = [label.partition(" over")[0] for label in labels if " over the steps" in label]
    assert courses == [
        *("sft: Loss", "reward: Loss", "reward: Share right"),
        *("dpo: Loss", "dpo: Reward", "dpo: KL divergence"),
    ]
    assert "validation from 0.5 to 0.5" in labels[labels.index(next(x for x in labels if x.startswith("sft: Loss")))]


def test_the_mail_is_counted(whole, long):
    rows = list(read_rows(long / "data/features.parquet"))
    done = whole.rows("What was done")
    assert done[-1] == ["all", "900", "300", "300", "1,500", "100.0%"]
    assert [int(row[4].replace(",", "")) for row in done[:-1]] == np.bincount(
        metrics.targets(rows), minlength=5
    ).tolist()
    when = whole.rows("When")
    assert [row[0] for row in when[:2]] == ["2001-01", "2001-02"] and when[0][4] == "81"  # from the 5th on, three a day
    quality = whole.rows("How far the label can be trusted")
    assert sum(int(row[4].replace(",", "")) for row in quality[:-1]) == 1500 and len(quality) == 3


def test_settings_versions_and_hashes_are_there(whole, long):
    ((_, settings),) = whole.all("pre")
    assert settings == (long / "config.yaml").read_text()
    assert ["mlx", "0.0"] in whole.rows("Versions")
    hashes = dict(whole.rows("Hashes"))
    assert hashes["labelled table"] == "cd" * 32 and hashes["adapter of dpo"] == f"{2:064x}"


# Mistakes


def test_the_surest_mistakes_come_first_with_their_headers(whole, long):
    rows = {row.message_id: row for row in read_rows(long / "data/features.parquet", "test")}
    policy = said.read(long / "dpo")
    wrong = [place for place in np.argsort(-policy.confidence, kind="stable") if not policy.right[place]][:20]
    cards = [text for _, text in whole.all("li") if "said " in text and "was " in text]
    assert len(cards) == 20
    for place, card in zip(wrong, cards, strict=True):
        row = rows[policy.ids[place]]
        assert card.startswith(f"{policy.confidence[place]:.1%}said ")
        assert row.subject in card and row.sender in card and f"{row.date:%Y-%m-%d %H:%M}" in card and row.user in card


def test_reasons_are_asked_for_the_mistakes_that_are_shown(run):
    asked = []

    def explain(keys):
        asked.extend(keys)
        return ["<b>because</b> of it", *[None] * (len(keys) - 1)]

    found = page(run, explain=explain)
    policy = said.read(run / "dpo")
    assert asked == [(policy.users[place], policy.ids[place]) for place in numbers.mistakes(policy)]
    assert [text for _, text in found.all("blockquote")] == ["<b>because</b> of it"]


def test_the_same_message_in_two_mailboxes_is_two(run):
    """They are told apart by the mailbox; by the id alone one's subject would stand for both."""
    file = run / "data/features.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    policy = said.read(run / "dpo")
    place = numbers.mistakes(policy)[0]
    other = dict(next(line for line in table.to_pylist() if line["message_id"] == policy.ids[place]))
    assert other["user"] != "owner-9"
    pq.write_table(
        pa.concat_tables(
            [table, pa.Table.from_pylist([{**other, "user": "owner-9", "subject": "not this"}], table.schema)]
        ),
        file,
    )
    text = report.write(run).read_text()
    assert other["subject"] in text and "not this" not in text


# Whatever stands in it

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></title></body><svg onload=alert(1)>",
    "pay \u202etxt.exe\u202c \u2066now\u2069 \x00\x1b[2J\x07 tab\tend\nline\u2028next",
    "&lt;b&gt; &amp; $x^2$ ]]> <!-- --",
    "x" * 10_000,
    "\u200f\u061c\U000e0041\ufeff",
    "e\u0301" * 300,
    "",
)


def hostile(run) -> None:
    """Every subject, sender, owner and free text of a run is one of HOSTILE."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = run / "data/features.parquet"
    table = pq.read_table(file)
    every = [HOSTILE[number % len(HOSTILE)] for number in range(len(table))]
    owners = [f"{HOSTILE[int(user[-1])]}{user}" for user in table["user"].to_pylist()]
    for name, values in (
        ("subject", every),
        ("from", every[1:] + every[:1]),
        ("user", owners),
        ("label_quality", every),
    ):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, pa.string()))
    pq.write_table(table, file)
    rows = list(read_rows(file, "test"))
    predictions.write(run / "dpo/test.csv", rows, predictions.read(run / "dpo/test.csv"))
    (run / "config.yaml").write_text("".join(HOSTILE[:5]))
    change(run / "environment.json", **{HOSTILE[0]: HOSTILE[1], "model": HOSTILE[2]})
    record = json.loads((run / "metrics.json").read_text())
    record["stages"]["dpo"]["method"] = HOSTILE[0]
    record["stages"][HOSTILE[4]] = {"method": HOSTILE[1], "test": {"accuracy": 0.5}, "kept": True}
    (run / "metrics.json").write_text(json.dumps(record))


@drawn
def test_whatever_mail_says_is_text(run, charted):
    hostile(run)
    text = report.write(run).read_text()
    found = Page(text)
    check(found)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200f\u061c\ufeff]", text)
    shown = [said_ for _, said_ in found.all("bdi")]
    assert HOSTILE[0] in shown and HOSTILE[1] in shown and "(nothing)" in shown
    assert max(map(len, shown)) == tags.SHOWN and "x" * 159 + "\u2026" in shown
    assert "pay txt.exe now tab end line next" in shown


def test_text_that_is_not_escaped_would_be_seen(run, monkeypatch):
    hostile(run)
    monkeypatch.setattr(tags.html, "escape", lambda text: text)
    with pytest.raises(AssertionError):
        page(run)


def test_150_owners(made):
    run = made(short=True, owners=150, count=900)
    rows = page(run).rows("Owners")
    assert len(rows) == 150 and sum(int(row[4]) for row in rows) == 180


# Whatever lacks


@drawn
@pytest.mark.parametrize(
    "name",
    [
        "events.jsonl",
        "environment.json",
        "data/prepare.json",
        "data/features.parquet",
        "dpo/calibration.json",
        "dpo/acting.json",
        "dpo/test.csv",
        "dpo/validation.csv",
        "dpo/stage.json",
    ],
)
def test_any_file_but_two_may_lack(run, name, charted):
    (run / name).unlink()
    page(run)


@drawn
@pytest.mark.parametrize("gone", [float("nan"), float("inf"), None, "many", [], {}])
def test_numbers_may_lack(run, gone, charted):
    record = json.loads((run / "metrics.json").read_text())

    def emptied(value, name=None):
        if isinstance(value, dict):
            return {key: emptied(each, key) for key, each in value.items()}
        return value if name in ("method", "final", "kept") else gone

    (run / "metrics.json").write_text(json.dumps(emptied(record)))
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for line in lines[::2]:
        line["loss"] = gone
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    for name in ("acting.json", "test.csv"):
        (run / "dpo" / name).unlink()
    text = report.write(run).read_text()
    check(Page(text))
    assert not re.search(r"\b(nan|inf|None)\b", re.sub("<pre.*?</pre>", "", text, flags=re.DOTALL))


def test_predictions_that_are_no_numbers_are_left_out(run):
    file = run / "dpo/test.csv"
    head, first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, ",".join([*first.split(",")[:-1], "nan"]), *rest]) + "\n")
    assert said.read(run / "dpo").left_out == 1
    found = page(run)
    assert sum(int(row[4]) for row in found.rows("Owners")) == 299
    assert "tested on 300 later ones" in found.all("header")[0][1]


@drawn
@pytest.mark.parametrize("final", [None, "reward", "gone"])
def test_a_run_without_a_policy(run, final, charted):
    change(
        run / "metrics.json", final=final, stages={"reward": {"method": "reward", "parent": None, "test": {"pairs": 0}}}
    )
    found = page(run)
    assert found.all("div", **{"class": "headline none"})
    assert "no predictions" in found.section("acting")


def test_a_run_that_is_not_tested_yet(run):
    record = json.loads((run / "metrics.json").read_text())
    for stage in record["stages"].values():
        del stage["test"]
    (run / "metrics.json").write_text(json.dumps(record))
    for name in ("test.csv", "acting.json", "calibration.json"):
        (run / "dpo" / name).unlink()
    assert "It is not measured yet" in page(run).all("div", id="verdict")[0][1]


def test_without_matplotlib_numbers_stand_in_tables(long, run, monkeypatch, whole, capsys):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not REAL_AVAILABLE()
    monkeypatch.setattr(report.draw, "available", REAL_AVAILABLE)
    found = page(run)
    assert not found.all("svg") and whole.all("svg")
    assert found.section("owners") == whole.section("owners")
    assert "pip install 'mlx-email[report]'" in found.all("body")[0][1]
    for label in ("Coverage of the test mail", "Reliability", "sft: Loss", "When"):
        assert found.rows(label) == whole.rows(label)
    notes = []
    REAL_ATTEMPT(run, notes.append)
    (note,) = notes
    assert note.startswith(f"{run / report.FILE}: numbers in tables")


# As a command, and at the end of a run


def test_the_command_writes_it_again(run, capsys):
    (run / report.FILE).unlink(missing_ok=True)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / report.FILE}\n"
    assert stat.S_IMODE((run / report.FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("break_it", "said_"),
    [
        (lambda run: shutil.rmtree(run), "is not a run folder"),
        (lambda run: (run / "metrics.json").unlink(), "mlx-email train --resume"),
        (lambda run: (run / "dpo/test.csv").write_text("nothing\n1\n"), "is no table of predictions"),
        (lambda run: (run / "data/features.parquet").write_text("x"), "cannot be read"),
    ],
)
def test_what_cannot_be_reported_is_one_line(run, break_it, said_, capsys):
    break_it(run)
    assert main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said_ in error


def test_a_failure_does_not_fail_the_run(run, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a\ndefect")

    notes = []
    monkeypatch.setattr(report.page, "page", broken)
    REAL_ATTEMPT(run, notes.append)
    assert notes == [f"warning: no {run / report.FILE} (ValueError: a defect): mlx-email report {run} tries again"]
    monkeypatch.setattr(report.page, "page", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        REAL_ATTEMPT(run, notes.append)


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a process of its own prints."""
    known = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_nothing_slow_is_imported_for_help():
    said_ = python("import sys; from mlx_email.cli import main; main(['report', '--help']); print(sorted(sys.modules))")
    assert "mlx_email.cli" in said_
    assert not re.search("'(matplotlib|mlx|mlx_email.report)[.']", said_)


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    """In other processes, at other times, with settings of the user's own for matplotlib."""
    pytest.importorskip("matplotlib.figure")
    code = "import sys; from mlx_email.cli import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "own").mkdir()
    (tmp_path / "own/matplotlibrc").write_text("lines.linewidth: 9\nfont.family: serif\naxes.grid: False\n")
    found = set()
    for seed, where in (("1", {}), ("2", {"MPLCONFIGDIR": str(tmp_path / "own")})):
        python(code, "report", str(run), PYTHONHASHSEED=seed, **where)
        found.add((run / report.FILE).read_bytes())
    assert len(found) == 1 and b"<svg" in found.pop()


# Its own numbers


def test_wilson_by_hand():
    """With z = 1.96: 8 of 10 (Wilson 1927, as in Brown, Cai and DasGupta 2001, eq. 4)."""
    z, p, n = 1.959964, 0.8, 10
    middle = (p + z * z / 2 / n) / (1 + z * z / n)
    wide = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    assert numbers.wilson(8, 10) == pytest.approx((middle - wide, middle + wide))
    assert numbers.wilson(0, 0) == (0.0, 1.0) and numbers.wilson(0, 5)[0] == 0.0


def test_the_gap_is_the_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), 400)
    target = rng.integers(0, 5, 400)
    error = calibration_error(p.max(axis=1), p.argmax(axis=1) == target)
    assert numbers.gap(numbers.reliability(p, target)) == pytest.approx(error)


def test_a_long_curve_is_thinned_to_its_means():
    steps, values = numbers.thinned(range(1000), [float(step % 2) for step in range(1000)], 10)
    assert len(steps) == len(values) == 10 and values == [0.5] * 10 and steps[0] == 49.5


def test_stages_stand_in_the_order_of_their_training(run):
    assert [stage.name for stage in read.run(run).stages] == ["sft", "reward", "dpo"]  # by name: dpo first


def test_years_where_months_are_many():
    from mlx_email.report.about import by_time

    assert list(by_time({("2001-11", "train"): 1, ("2002-01", "test"): 2})) == ["2001-11", "2001-12", "2002-01"]
    found = by_time({("1990-01", "train"): 1, ("2002-01", "test"): 2, ("2002-05", "test"): 3})
    assert list(found) == [str(year) for year in range(1990, 2003)] and found["2002"] == {"test": 5}
    assert list(by_time({("0001-01", "train"): 1, ("2002-01", "test"): 2})) == ["0001", "2002"]
    assert by_time({("unknown", "train"): 1}) == {}
