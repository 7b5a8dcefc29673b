"""A run of several stages: what each starts from, what the gate rolls back, what is trained again, and from what."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small

from mlx_email import collect, files, gate, lineage, measure, pipeline
from mlx_email.cli import main
from mlx_email.evaluate import acting, calibrate, metrics, predictions
from mlx_email.labels.schema import ACTIONS, read_rows

SHORT = "algorithm: sft, max_steps: 2, batch_size: 4, accumulation: 1, learning_rate: 1.0e-2"
NAMES = ("a", "b", "c")
SETTINGS = ("lora.rank=2", "max_prompt_tokens=160", "evaluation.max_messages=10", "evaluation.validation_messages=4")


def stages(*changes: str) -> str:
    """Three short stages; `changes`: more settings of each."""
    more = [f", {change}" if change else "" for change in changes] + [""] * (len(NAMES) - len(changes))
    return "stages=[" + ", ".join(f"{{name: {n}, {SHORT}{m}}}" for n, m in zip(NAMES, more, strict=True)) + "]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    assert main(["synth", "--out", str(folder / "box"), "--messages", "400"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "table")]) == 0
    small.write_model(folder / "model")
    return folder


@pytest.fixture
def train(folder, tmp_path):
    def run(*settings: str, table: Path | None = None, out: str = "run", also: tuple[str, ...] = ()) -> int:
        chosen = [part for each in (*SETTINGS, *(settings or (stages(),))) for part in ("--set", each)]
        where = ["--model", str(folder / "model"), "--out", str(tmp_path / out), "--json"]
        return main(["train", str(table or folder / "table"), *where, *chosen, *also])

    return run


@pytest.fixture
def says(monkeypatch):
    """Lets each stage be right about a given share of any messages, and surer of it the more it is right."""

    def give(**shares: float) -> None:
        def predict(policy, rows, progress):
            target = metrics.targets(rows)
            right = np.arange(len(rows)) < shares[policy.stage] * len(rows)
            said = np.where(right, target, (target + 1) % len(ACTIONS))
            found = np.full((len(rows), len(ACTIONS)), 0.1)
            found[np.arange(len(rows)), said] = 0.6
            return found

        monkeypatch.setattr(pipeline, "predict", predict)

    return give


def read(file: Path) -> dict:
    return json.loads(file.read_bytes())


def parents(run: Path) -> dict:
    return {name: read(run / name / "stage.json")["parent"] for name in NAMES if (run / name / "stage.json").is_file()}


def adapters(run: Path, stage: str) -> str:
    return files.sha256(run / stage / "adapters.safetensors")


# The gate


def test_a_worse_stage_is_rolled_back(train, says, tmp_path, capsys):
    says(a=0.8, b=0.3, c=0.75)
    assert train() == 0
    run = tmp_path / "run"
    assert parents(run) == {"a": None, "b": "a", "c": "a"}
    began = (run / "c/step-000000/adapters.safetensors").read_bytes()
    assert began == (run / "a/adapters.safetensors").read_bytes()
    assert (run / "b/adapters.safetensors").is_file()  # kept aside
    said = capsys.readouterr()
    assert "b: rolled back: accuracy -0.5" in said.err and "with which the run goes on" in said.err
    record = json.loads(said.out)
    assert [record["stages"][name]["kept"] for name in NAMES] == [True, False, True]
    assert record["final"] == "c"  # a little worse than a, within its interval
    assert record["stages"]["c"]["than"] == "a" and record["stages"]["c"]["change_interval"][1] >= 0
    assert set(record["stages"]["b"]["test"]) > {"accuracy", "macro_f1", "calibration_error"}
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["stage"] == "c"
    assert main(["train", "--resume", str(run)]) == 0
    table = capsys.readouterr().out
    (rolled,) = [line for line in table.splitlines() if "rolled back" in line]
    assert rolled.split()[0] == "b" and "the run ends with c" in table


def test_without_a_gate_it_goes_on(train, says, tmp_path):
    """The planted fault: the run ends with what the gate would have rolled back."""
    says(a=0.8, b=0.3, c=0.2)
    assert train(stages(), "gate.metric=null") == 0
    assert parents(tmp_path / "run") == {"a": None, "b": "a", "c": "b"}
    assert read(tmp_path / "run/metrics.json")["final"] == "c"


@pytest.mark.slow
def test_small_steps_down_do_not_add_up(train, says, tmp_path):
    """Each is compared with the best there was, not with the one before it."""
    says(a=0.8, b=0.72, c=0.64)
    assert train() == 0
    record = read(tmp_path / "run/metrics.json")
    assert [record["stages"][name]["than"] for name in NAMES] == [None, "a", "a"]
    assert record["stages"]["b"]["kept"] and not record["stages"]["c"]["kept"]
    assert record["final"] == "a"


@pytest.mark.slow
def test_the_run_ends_with_the_policy_before_a_last_stage_that_is_worse(train, says, tmp_path, capsys):
    says(a=0.5, b=0.9, c=0.1)
    assert train() == 0
    assert read(tmp_path / "run/metrics.json")["final"] == "b"
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["stage"] == "b"


def test_the_target_ends_a_run(train, says, tmp_path, capsys):
    says(a=0.5, b=0.9, c=0.1)
    assert train(stages(), also=("--target-accuracy", "0.85")) == 0
    assert parents(tmp_path / "run") == {"a": None, "b": "a"}
    said = capsys.readouterr()
    assert "c: left out, as the target accuracy is reached" in said.err
    assert list(json.loads(said.out)["stages"]) == ["a", "b"]
    # Asked for more, the run goes on.
    assert main(["train", "--resume", str(tmp_path / "run"), "--target-accuracy", "0.95", "--json"]) == 0
    assert parents(tmp_path / "run")["c"] == "b"


def test_a_stage_can_start_from_any_before_it(train, says, tmp_path, capsys):
    says(a=0.8, b=0.1, c=0.8)
    assert train(stages("", "starts_from: base", "starts_from: b")) == 0
    run = tmp_path / "run"
    assert parents(run) == {"a": None, "b": None, "c": "b"}
    fresh = [(run / name / "step-000000/adapters.safetensors").read_bytes() for name in "ab"]
    assert fresh[0] == fresh[1]
    for change in ("starts_from: c", "starts_from: nobody"):
        assert train(stages("", change), out="x") == 2
        assert "no stage before it that trains a policy" in capsys.readouterr().err
    assert train(stages("", "", "starts_from: b"), out="x", also=("--stage", "c")) == 2
    assert "--stage: c starts from b" in capsys.readouterr().err


def test_test_mail_is_looked_at_when_all_stages_are_done(train, folder, tmp_path, monkeypatch):
    """And nothing depends on it: with other outcomes there, every adapter is the same."""
    order = []
    honest, honest_train = measure.action_logps, pipeline.train_stage

    def scored(base, words, policies, rows, **options):
        order.append((rows[0].split, len(policies)))
        return honest(base, words, policies, rows, **options)

    monkeypatch.setattr(measure, "action_logps", scored)
    monkeypatch.setattr(pipeline, "train_stage", lambda job: order.append("train") or honest_train(job))
    assert train() == 0
    assert order == ["train", ("validation", 1)] * 3 + [("test", 3)]  # of the test split one pass for all
    table = pq.read_table(folder / "table/features.parquet")
    split = np.array(table["split"].to_pylist())
    action = np.array(table["action"].to_pylist(), object)
    action[split == "test"] = "deleted"
    hours = np.array(table["response_time_hours"].to_pylist(), object)
    hours[split == "test"] = None
    for name, values in (("action", action.tolist()), ("response_time_hours", hours.tolist())):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    shutil.copytree(folder / "table", tmp_path / "other")
    pq.write_table(table, tmp_path / "other/features.parquet")
    assert train(table=tmp_path / "other", out="again") == 0
    for name in NAMES:
        assert adapters(tmp_path / "run", name) == adapters(tmp_path / "again", name)
    both = [read(tmp_path / run / "metrics.json")["stages"]["c"] for run in ("run", "again")]
    assert both[0]["validation"] == both[1]["validation"] and both[0]["test"] != both[1]["test"]


@pytest.mark.slow
def test_predictions_are_written_and_read_back(train, folder, tmp_path):
    assert train() == 0
    for split, file in (("validation", "validation.csv"), ("test", "test.csv")):
        rows = list(read_rows(folder / "table/features.parquet", split))
        lines = (tmp_path / "run/a" / file).read_text().splitlines()
        assert lines[0].startswith("message_id,user,actual,predicted,correct,confidence,reply_now")
        assert {line.split(",")[0] for line in lines[1:]} <= {row.message_id for row in rows}
        found = predictions.read(tmp_path / "run/a" / file)
        np.testing.assert_allclose(found.sum(axis=1), 1)
    measured = read(tmp_path / "run/a/metrics.json")
    assert measured["messages"] == len(found) == 10


@pytest.mark.slow
def test_without_validation_mail_everything_is_kept(train, folder, tmp_path, capsys):
    table = pq.read_table(folder / "table/features.parquet")
    few = table.filter(pa.array([split != "validation" for split in table["split"].to_pylist()]))
    shutil.copytree(folder / "table", tmp_path / "other")
    pq.write_table(few, tmp_path / "other/features.parquet")
    assert train(table=tmp_path / "other") == 0
    said = capsys.readouterr()
    assert "no mail to validate on" in said.err and json.loads(said.out)["final"] == "c"
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_few_messages_roll_nothing_back(train, says, tmp_path):
    says(a=0.9, b=0.1, c=0.1)
    assert train(stages(), f"gate.messages={gate.FEWEST - 1}") == 0
    assert read(tmp_path / "run/metrics.json")["final"] == "c"


def test_a_stage_without_anything_to_learn_from_is_left_out(train, says, tmp_path, capsys):
    """The mail spans no window: the stages before and after it are trained and measured."""
    says(a=0.5, c=0.5)
    windows = "algorithm: temporal, name: b, window_days: 3000"
    assert train(stages().replace(f"name: b, {SHORT}", windows)) == 0
    said = capsys.readouterr()
    assert "warning: b is left out: b: there is nothing to learn from" in said.err
    record = json.loads(said.out)
    assert list(record["stages"]) == ["a", "c"] and parents(tmp_path / "run") == {"a": None, "c": "a"}
    assert train(f"stages=[{{{windows}}}]", out="alone") == 2  # nothing but that
    assert "nothing to learn from" in capsys.readouterr().err


@pytest.mark.slow
def test_what_starts_from_a_stage_that_was_left_out_starts_from_nothing_else(train, says, capsys):
    says(a=0.5, c=0.5)
    windows = "algorithm: temporal, name: b, window_days: 3000"
    assert train(stages("", "", "starts_from: b").replace(f"name: b, {SHORT}", windows)) == 2
    assert "c starts from b, which was left out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_verdict_is_of_two_policies_not_of_two_names(train, says, tmp_path, monkeypatch):
    """Trained again, the one that a stage was compared with is another."""
    says(a=0.5, b=0.9, c=0.5)
    assert train(stages("", "", "starts_from: a")) == 0
    run = tmp_path / "run"
    assert not read(run / "c/gate.json")["kept"]
    says(a=0.5, b=0.52, c=0.5)
    names = trained(monkeypatch)
    assert resume(run, "stages.b.learning_rate=0.02", force=True) == 0
    assert names == ["b"] and read(run / "c/gate.json")["kept"]
    assert read(run / "metrics.json")["final"] == "c"


@pytest.mark.slow
def test_a_lower_target_takes_nothing_away(train, says, tmp_path):
    says(a=0.5, b=0.8, c=0.8)
    assert train() == 0
    before = (tmp_path / "run/metrics.json").read_bytes()
    assert main(["train", "--resume", str(tmp_path / "run"), "--target-accuracy", "0.4", "--json"]) == 0
    assert (tmp_path / "run/metrics.json").read_bytes() == before


@pytest.mark.slow
def test_a_finished_run_is_only_reported(train, says, tmp_path, monkeypatch):
    says(a=0.5, b=0.8, c=0.8)
    assert train() == 0
    written = []
    honest = files.write_json
    monkeypatch.setattr(files, "write_json", lambda path, value: written.append(path.name) or honest(path, value))
    before = (tmp_path / "run/events.jsonl").read_bytes()
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 0
    assert set(written) == {"metrics.json"} and (tmp_path / "run/events.jsonl").read_bytes() == before


# Lineage


def test_every_stage_says_what_made_it(train, says, tmp_path):
    says(a=0.5, b=0.1, c=0.5)
    assert train() == 0
    run = tmp_path / "run"
    found = {name: read(run / name / lineage.LINEAGE) for name in NAMES}
    assert [found[name]["parent"] for name in NAMES] == [None, "a", "a"]
    assert found["a"]["inputs"]["parent_adapter"] is None
    assert found["c"]["inputs"]["parent_adapter"] == adapters(run, "a")
    assert found["c"]["inputs"]["data"] == files.sha256(run / "data/features.parquet")
    assert {"mlx", "mlx_lm", "mlx_email", "python", "device"} <= found["c"]["environment"].keys()
    assert found["c"]["seed"] == 0 and len(found["c"]["config"]) == 64


@pytest.mark.slow
def test_a_run_is_made_again_from_its_folder_alone(train, tmp_path):
    assert train() == 0
    run, again = tmp_path / "run", tmp_path / "again"
    assert main(["train", str(run / "data"), "--config", str(run / "config.yaml"), "--out", str(again), "--json"]) == 0
    for name in (*(f"{stage}/adapters.safetensors" for stage in NAMES), "config.yaml", "metrics.json"):
        assert (run / name).read_bytes() == (again / name).read_bytes(), name
    for stage in NAMES:
        assert read(run / stage / lineage.LINEAGE) == read(again / stage / lineage.LINEAGE)


def resume(run: Path, *settings: str, force: bool = False) -> int:
    chosen = [part for each in settings for part in ("--set", each)]
    return main(["train", "--resume", str(run), "--json", *chosen, *(["--force"] if force else [])])


def trained(monkeypatch) -> list[str]:
    """The stages that are trained from now on."""
    names: list[str] = []
    honest = pipeline.train_stage
    monkeypatch.setattr(pipeline, "train_stage", lambda job: names.append(job.stage.name) or honest(job))
    return names


def test_what_has_not_changed_is_not_trained_again(train, says, tmp_path, monkeypatch, capsys):
    says(a=0.5, b=0.5, c=0.5)
    assert train() == 0
    run = tmp_path / "run"
    before = {name: adapters(run, name) for name in NAMES}
    names = trained(monkeypatch)
    assert resume(run, force=True) == 0 and names == []
    changed = "stages.b.learning_rate=0.02"
    capsys.readouterr()
    assert resume(run, changed) == 2 and names == []
    assert "the stage b is finished: nothing of it can change without --force" in capsys.readouterr().err
    assert resume(run, changed, force=True) == 0
    assert names == ["b", "c"]  # c begins with another b
    said = capsys.readouterr().err
    assert "b: is trained again: b.learning_rate was 0.01 and is 0.02; what was there is now" in said
    assert "c: is trained again: its parent adapter is another" in said
    assert adapters(run, "a") == before["a"] and adapters(run, "b") != before["b"]
    for name in "bc":
        assert files.sha256(run / lineage.REPLACED / f"{name}-1/adapters.safetensors") == before[name]
    # As it was: the same bits as at first.
    assert resume(run, "stages.b.learning_rate=0.01", force=True) == 0
    assert {name: adapters(run, name) for name in NAMES} == before
    assert (run / lineage.REPLACED / "b-2").is_dir()


@pytest.mark.slow
def test_a_setting_of_the_run_changes_all_of_it(train, says, tmp_path, monkeypatch, capsys):
    says(a=0.5, b=0.5, c=0.5)
    assert train() == 0
    names = trained(monkeypatch)
    assert resume(tmp_path / "run", "gradient_clip=0.5") == 2
    assert "gradient_clip was 1.0 and is 0.5" in capsys.readouterr().err
    assert resume(tmp_path / "run", "gradient_clip=0.5", force=True) == 0
    assert names == list(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["stages.c.log_every=3", "gate.messages=5", "evaluation.max_messages=7"])
def test_what_no_result_depends_on_trains_nothing(setting, train, says, tmp_path, monkeypatch):
    says(a=0.5, b=0.5, c=0.5)
    assert train() == 0
    names = trained(monkeypatch)
    assert resume(tmp_path / "run", setting, force=True) == 0
    assert names == []
    record = read(tmp_path / "run/metrics.json")
    if setting.startswith("gate"):
        assert record["stages"]["c"]["validation"]["messages"] == 5
    if setting.startswith("evaluation"):
        assert record["stages"]["c"]["test"]["messages"] == 7


@pytest.mark.slow
def test_a_stage_that_is_not_finished_is_begun_again_with_other_settings(train, says, tmp_path, monkeypatch):
    says(a=0.5, b=0.5, c=0.5)

    def kill(job):
        raise small.Killed

    with monkeypatch.context() as patch:
        honest = pipeline.train_stage
        patch.setattr(pipeline, "train_stage", lambda job: (kill if job.stage.name == "b" else honest)(job))
        with pytest.raises(small.Killed):
            train()
    run = tmp_path / "run"
    assert resume(run, "stages.b.learning_rate=0.02") == 2
    assert resume(run, "stages.b.learning_rate=0.02", force=True) == 0
    assert parents(run) == {"a": None, "b": "a", "c": "b"}
    assert (run / lineage.REPLACED / "b-1").is_dir()


def killed_in(monkeypatch, stage: str) -> None:
    honest = pipeline.train_stage

    def training(job):
        if job.stage.name == stage:
            raise small.Killed
        return honest(job)

    monkeypatch.setattr(pipeline, "train_stage", training)


@pytest.mark.slow
def test_a_forced_run_that_was_killed_goes_on_without_force(train, says, tmp_path, monkeypatch):
    """What its stages began with has changed already: nothing is asked for again. And nothing old is used."""
    says(a=0.5, b=0.5, c=0.5)
    assert train() == 0
    run, changed = tmp_path / "run", "stages.a.learning_rate=0.02"
    for stage, asked in (("a", 2), ("b", 0)):
        with monkeypatch.context() as patch:
            killed_in(patch, stage)
            with pytest.raises(small.Killed):
                resume(run, *([changed] if stage == "a" else []), force=stage == "a")
        assert main(["evaluate", str(run), "--json"]) == asked  # there is no policy of these settings, or a's
    assert resume(run) == 0
    says(a=0.5, b=0.5, c=0.5)
    assert (
        train(stages("learning_rate: 0.02").replace("learning_rate: 1.0e-2, learning", "learning", 1), out="new") == 0
    )
    for name in NAMES:
        assert adapters(run, name) == adapters(tmp_path / "new", name)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["gate.messages=35", "evaluation.max_messages=7"])
def test_a_stage_that_is_not_finished_goes_on_with_what_it_does_not_depend_on(
    setting, train, says, tmp_path, monkeypatch
):
    says(a=0.5, b=0.5, c=0.5)
    with monkeypatch.context() as patch:
        killed_in(patch, "b")
        with pytest.raises(small.Killed):
            train()
    assert resume(tmp_path / "run", setting, force=True) == 0
    assert not (tmp_path / "run" / lineage.REPLACED).exists()


@pytest.mark.slow
def test_a_run_without_lineage_is_made_again_by_force_only(train, says, tmp_path, monkeypatch, capsys):
    says(a=0.5, b=0.5, c=0.5)
    assert train() == 0
    (tmp_path / "run/a" / lineage.LINEAGE).unlink()
    names = trained(monkeypatch)
    assert resume(tmp_path / "run") == 0 and names == []
    capsys.readouterr()
    assert resume(tmp_path / "run", force=True) == 0 and names == ["a"]
    assert "nothing says what it was made from" in capsys.readouterr().err


@pytest.mark.slow
def test_force_checks_a_list_of_stages_as_train_does(train, says, tmp_path, capsys):
    says(a=0.5, b=0.5, c=0.5)
    assert train() == 0
    asks = "{algorithm: grpo, max_steps: 1, rewards: [{function: learned}]}"
    assert resume(tmp_path / "run", f"stages=[{{name: a, {SHORT}}}, {asks}]", force=True) == 2
    assert "needs a stage before it that trains a reward model" in capsys.readouterr().err
    assert resume(tmp_path / "run", "synthetic.messages=99", force=True) == 2
    assert "synthetic cannot change" in capsys.readouterr().err
    code = tmp_path / "code.py"
    code.write_text("raise SystemExit('run!')")
    assert (
        resume(tmp_path / "run", f"stages=[{{algorithm: grpo, rewards: [{{function: '{code}:f'}}]}}]", force=True) == 2
    )


def test_force_is_for_a_run_that_is_there(capsys):
    assert main(["train", "--force"]) == 2
    assert "--force goes with --resume" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["data", "replaced", "base"])
def test_names_that_are_taken(name, capsys, tmp_path):
    assert main(["train", "--out", str(tmp_path / "x"), "--set", f"stages=[{{algorithm: sft, name: {name}}}]"]) == 2
    assert f"no stage can be named {name}" in capsys.readouterr().err


def test_the_rule_travels_with_the_data(tmp_path):
    for name in ("features.parquet", "people.parquet", collect.RULE):
        (tmp_path / name).write_text(name)
    (tmp_path / "data").mkdir()
    collect.adopt(tmp_path, tmp_path / "data")
    assert (tmp_path / "data" / collect.RULE).read_text() == collect.RULE


def test_when_it_may_act_is_chosen_on_validation_mail_and_held_to_on_later_mail(train, tmp_path, capsys):
    """Another kind of calibration trains and scores nothing again."""
    assert train(stages(), "gate.messages=40") == 0
    run = tmp_path / "run"
    said, target = predictions.read_both(run / "c/validation.csv")
    assert len(target) == 40
    assert calibrate.read(run / "c") == calibrate.fit(np.log(said), target, "temperature")
    told = read(run / "metrics.json")["stages"]["c"]["test"]
    rules = acting.read(run / "c")
    assert told["acting"] == json.loads(json.dumps(acting.told(rules))) and set(told["acting"]) == {
        "0.9",
        "0.95",
        "0.99",
    }
    assert told["calibrated"]["nll"] != told["nll"]
    before = adapters(run, "c"), (run / "c/test.csv").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--set", "acting.calibration=isotonic"]) == 0
    assert calibrate.read(run / "c").method == "isotonic"
    assert before == (adapters(run, "c"), (run / "c/test.csv").stat().st_mtime_ns)
    assert "score" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "cut", "no table"])
def test_a_table_of_the_test_split_that_is_lost_is_made_again(damage, train, tmp_path):
    assert train() == 0
    file = tmp_path / "run/c/test.csv"
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"\0" if damage == "no table" else b"".join(whole.splitlines(keepends=True)[:4]))
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 0
    assert file.read_bytes() == whole
