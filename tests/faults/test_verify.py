"""`verify` knows every kind of artefact, and finds it damaged wherever one byte of it differs (reliability test 43)."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import exports
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small

from mlx_email import exporting, files, sealed, verify
from mlx_email.cli import main
from mlx_email.errors import UserError
from mlx_email.export import bundle
from mlx_email.progress import Progress

SHORT = "max_steps: 2, batch_size: 2, accumulation: 1, validate_every: null, save_every: 1"
STAGES = (
    f"[{{algorithm: sft, {SHORT}}}, {{algorithm: reward, {SHORT}}}, {{algorithm: dpo, {SHORT}}}, "
    f"{{algorithm: rsf, prompts: 4, samples: 2, keep: 1, {SHORT}}}]"
)
SETTINGS = (
    "lora.rank=2",
    "max_prompt_tokens=160",
    "evaluation.max_messages=4",
    "evaluation.validation_messages=4",
    "gate.messages=4",
    "target_accuracy=null",
    f"stages={STAGES}",
)


@pytest.fixture(scope="module")
def folder(table, tmp_path_factory) -> Path:
    """A folder with `table`, `model`, `run`, and exports of it: `merged`, `beside`."""
    folder = tmp_path_factory.mktemp("verify")
    shutil.copytree(table, folder / "table")
    exports.write_model(folder / "model")
    chosen = [part for each in SETTINGS for part in ("--set", each)]
    where = ["--model", str(folder / "model"), "--out", str(folder / "run"), "--json"]
    assert main(["train", str(folder / "table"), *where, *chosen]) == 0
    for out, strategy in (("merged", "bf16"), ("beside", "adapter")):
        exporting.export(folder / "run", folder / out, Progress(quiet=True), strategy=strategy, force=True)
    return folder


ARTEFACTS = {
    "run": "run",
    "run/sft": "stage",
    "run/reward": "stage",
    "run/dpo/step-000001": "checkpoint",
    "run/reward/step-000002": "checkpoint",
    "run/dpo/reference/train-000000": "sealed folder",
    "run/rsf-1/kept/000000": "sealed folder",
    "run/data": "tables",
    "run/data/features.parquet": "table",
    "table": "tables",
    "table/messages.parquet": "table",
    "table/people.parquet": "table",
    "merged": "exported model",
    "beside": "exported model",
}


def damages(path: Path) -> list[str]:
    return [finding.damage for finding in verify.check(path) if finding.damage is not None]


def good(path: Path) -> bool:
    """Whether something of ours is there, and whole."""
    try:
        return not damages(path)
    except UserError:
        return False


@pytest.mark.parametrize("name", ARTEFACTS)
def test_what_is_as_it_was_written_is_good(name, folder):
    found = verify.check(folder / name)
    assert found[0].kind == ARTEFACTS[name] and [finding.damage for finding in found if finding.damage] == []


def test_all_of_a_run_is_looked_at(folder):
    kinds = Counter(finding.kind for finding in verify.check(folder / "run"))
    stages = [name for name in ("sft", "reward", "dpo", "rsf-1") if (folder / "run" / name).is_dir()]
    assert kinds["stage"] == len(stages) >= 3
    assert kinds["checkpoint"] == len(list((folder / "run").glob("*/step-*")))
    assert kinds["sealed folder"] >= 2 and kinds["tables"] == kinds["run"] == 1


def test_a_folder_of_artefacts_is_looked_into(folder, capsys):
    assert main(["verify", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["kind"] for each in found} > {"run", "exported model", "tables"}
    assert all(each["ok"] for each in found)


# Damage


def sealed_files(folder: Path) -> list[Path]:
    """Every file of which a SHA-256 is known."""
    run = folder / "run"
    named = [
        *run.glob("*/step-*/*"),
        *run.glob("*/reference/*/*"),
        *run.glob("*/kept/*/*"),
        *run.glob("*/adapters.safetensors"),
        *run.glob("*/adapter_config.json"),
        *run.glob("*/reward_head.safetensors"),
        *run.glob("*/validation.csv"),
        *(run / "data").iterdir(),
        *(folder / "table").iterdir(),
        *(folder / "merged").rglob("*"),
        *(folder / "beside").rglob("*"),
    ]
    return sorted(path for path in named if path.is_file())


def kind_of(path: Path, folder: Path) -> tuple[str, str]:
    """Files of one kind are damaged alike: one of each is enough."""
    parts = path.relative_to(folder).parts
    inner = "checkpoint" if any(part.startswith("step-") for part in parts) else parts[0]
    return inner, "/".join(parts[-2:]) if "adapter" in parts else parts[-1]


def top(path: Path, folder: Path) -> Path:
    """The smallest artefact that a file is of."""
    return next(parent for parent in path.parents if parent.is_relative_to(folder) and good(parent))


def each_kind(folder: Path) -> list[Path]:
    return list({kind_of(path, folder): path for path in sealed_files(folder)}.values())


def flipped(path: Path, rng: random.Random, count: int) -> list[tuple[int, bytes]]:
    """The file with one bit of it changed, at random places."""
    data = path.read_bytes()
    places = [rng.randrange(len(data)) for _ in range(count if data else 0)]
    return [(at, data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]) for at in places]


def assert_found(folder: Path, count: int) -> None:
    """Whatever is done to one file of each kind is found, by the file's name or its manifest's."""
    rng, kinds = random.Random(0), each_kind(folder)
    assert len(kinds) > 20
    for path in kinds:
        artefact, whole = top(path, folder), path.read_bytes()
        for at, data in flipped(path, rng, count):
            path.write_bytes(data)
            assert not good(artefact), f"{path} at {at}"
        for data in {b"", whole[: len(whole) // 2]} - {whole}:
            path.write_bytes(data)
            assert not good(artefact), f"{path} cut"
        path.unlink()
        if artefact.name not in ("table", "data") or path.name.endswith(".parquet"):  # tables may come without the rest
            assert not good(artefact), f"{path} removed"
        path.write_bytes(whole)
        assert good(artefact), path


def test_a_flipped_bit_a_cut_and_a_lost_file_are_found(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("model"))
    assert_found(copy, 2)


@pytest.mark.slow
def test_any_flipped_bit_is_found(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("model"))
    assert_found(copy, 30)


RECORDS = (
    "config.yaml",
    "environment.json",
    "metrics.json",
    "sft/stage.json",
    "sft/lineage.json",
    "sft/gate.json",
    "sft/metrics.json",
    "sft/validation.csv",
    "sft/test.csv",
    "sft/calibration.json",
    "sft/acting.json",
    "reward/reward_head.json",
)


MADE_AGAIN = ("sft/gate.json", "sft/calibration.json", "sft/acting.json")  # by the next `train --resume`


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_is_lost_or_cut_is_found(name, folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    whole = (run / name).read_bytes()
    for data in (whole[: len(whole) // 2], b"\0" + whole, b"[1]"):
        (run / name).write_bytes(data)
        assert any(name.rpartition("/")[2] in said for said in damages(run)), (name, data[:20])
    (run / name).unlink()
    if name not in MADE_AGAIN:
        assert damages(run), name


CHANGES = {
    "metrics.json": ('"final": "', '"final": "x'),
    "sft/metrics.json": ('"accuracy": ', '"accuracy": 1'),
    "sft/gate.json": ('"macro_f1": 0', '"macro_f1": 1'),
    "sft/stage.json": ('"sha256": "', '"sha256": "0'),
    "dpo/lineage.json": ('"parent_adapter": "', '"parent_adapter": "0'),
    "sft/test.csv": ("True", "False"),
    "environment.json": ('"data": "', '"data": "0'),
    "events.jsonl": ('{"time"', '["time"'),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_record_that_says_something_else_is_found(name, folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    text = (run / name).read_text()
    was, becomes = CHANGES[name]
    if name == "sft/test.csv" and was not in text:
        was, becomes = becomes, was
    assert was in text
    (run / name).write_text(text.replace(was, becomes, 1))
    assert damages(run)


def test_a_parent_that_was_trained_again_by_force_is_no_damage(folder, tmp_path):
    """Its earlier result lies aside; that of a stage with a longer name is not its."""
    run = shutil.copytree(folder / "run", tmp_path / "run")
    parent = json.loads((run / "dpo/lineage.json").read_bytes())["parent"]
    file = run / "dpo/lineage.json"
    lineage = json.loads(file.read_bytes())
    for name, good in ((f"{parent}-2", True), (f"{parent}-x-1", False)):
        aside = run / "replaced" / name
        aside.mkdir(parents=True)
        (aside / "adapters.safetensors").write_bytes(name.encode())
        held = files.sha256(aside / "adapters.safetensors")
        file.write_text(json.dumps(lineage | {"inputs": lineage["inputs"] | {"parent_adapter": held}}))
        assert bool(damages(run)) != good


def test_a_torn_last_event_is_no_damage(folder, tmp_path):
    """A kill leaves it, and every reader leaves it out."""
    run = shutil.copytree(folder / "run", tmp_path / "run")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert not damages(run)


def test_a_run_that_was_interrupted_is_good(table, tmp_path):
    small.train_until(tmp_path / "run", 8)
    found = verify.check(tmp_path / "run/sft/step-000006")
    assert [finding.damage for finding in found] == [None]


@pytest.mark.parametrize("name", ["model-2.safetensors", "evil.py", "adapter/more.safetensors", "chat_template.jinja"])
def test_an_unknown_file_in_an_exported_model_is_found(name, folder, tmp_path):
    """mlx-lm reads what it finds."""
    out = shutil.copytree(folder / "beside", tmp_path / "out")
    (out / name).write_bytes(b"x")
    assert [name in said for said in damages(out)] == [True]
    (out / name).unlink()
    (out / ".gitattributes").write_text("")
    assert not damages(out)


def test_a_manifest_that_names_another_place_is_refused(folder, tmp_path):
    """Sealed as it should be, but of a file outside."""
    out = shutil.copytree(folder / "merged", tmp_path / "out")
    (tmp_path / "secret").write_text("x")
    said = json.loads((out / bundle.ABOUT).read_bytes())
    said.pop("sha256")
    for name in ("../secret", str(tmp_path / "secret"), ""):
        held = said | {"files": said["files"] | {name: {"bytes": 1, "sha256": files.sha256(tmp_path / "secret")}}}
        (out / bundle.ABOUT).write_text(json.dumps({**held, "sha256": sealed.digest(held)}))
        assert [bundle.ABOUT in each for each in damages(out)] == [True]


def test_a_reward_model_by_itself(folder, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    names = ("reward_head.safetensors", "reward_head.json", "adapters.safetensors", "adapter_config.json")
    for name in names:
        shutil.copy(folder / "run/reward" / name, alone)
    assert [(found.kind, found.damage) for found in verify.check(alone)] == [("reward model", None)]
    for name in names:
        whole = (alone / name).read_bytes()
        if name != "reward_head.json":
            for _, data in flipped(alone / name, random.Random(1), 5):
                (alone / name).write_bytes(data)
                assert damages(alone), name
        (alone / name).unlink()
        assert damages(alone), name
        (alone / name).write_bytes(whole)


def test_a_converted_model_in_the_cache(tmp_path):
    """As `model.gguf` leaves it: its manifest is of another form."""
    cached = small.write_model(tmp_path / "cached")
    sums = {path.name: files.sha256(path) for path in cached.iterdir()}
    files.write_json(cached / "manifest.json", {"source": "0" * 64, "files": sums})
    assert [(found.kind, found.damage) for found in verify.check(tmp_path)] == [("converted model", None)]
    for path in sorted(cached.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        assert [path.name in said for said in damages(cached)] == [True]
        path.write_bytes(whole)


def test_baselines_of_another_table_are_found(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    data = json.loads((run / "environment.json").read_bytes())["data"]
    for said, wrong in ((data, False), (data[::-1], True)):
        (run / "baselines.json").write_text(json.dumps({"data": said, "measured": {}}))
        assert bool(damages(run)) == wrong


@pytest.mark.slow
@pytest.mark.parametrize("column", ["action", "date", "history_kept"])
def test_a_table_with_other_columns_is_found(column, folder, tmp_path):
    """Without a manifest too: the columns, their types and the labels are looked at."""
    copy = shutil.copytree(folder / "table", tmp_path / "table")
    (copy / "manifest.json").unlink()
    assert not damages(copy)
    for name in ("features.parquet", "messages.parquet"):
        table = pq.read_table(copy / name)
        pq.write_table(table.drop_columns([column]), copy / name)
        assert column in damages(copy / name)[0]
        at = table.schema.get_field_index(column)
        pq.write_table(table.set_column(at, column, pa.array(["x"] * len(table))), copy / name)
        assert damages(copy / name)
        pq.write_table(table, copy / name)
        assert not damages(copy / name)


# The command


def test_the_command_says_what_is_damaged(folder, tmp_path, capsys):
    out = shutil.copytree(folder / "merged", tmp_path / "out")
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out == f"ok       exported model  {out}\n"
    (out / "config.json").write_text("{}")
    assert main(["verify", str(folder / "merged"), str(out)]) == 1
    said = capsys.readouterr()
    first, second = said.out.splitlines()
    assert first.startswith("ok") and second.startswith("damaged") and "config.json is damaged" in second
    assert said.err.count("\n") == 1 and "1 of 2" in said.err
    assert main(["verify", str(out), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["ok"] is False


def test_nothing_of_ours_is_no_damage(folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "other.parquet").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "absent", folder / "model"):
        assert main(["verify", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
