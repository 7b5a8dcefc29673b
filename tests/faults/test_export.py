"""What is exported says what the trained policy says; whichever way of merging does that and is the smallest."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import exports
import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from mlx_email import exporting, trained
from mlx_email.cli import main
from mlx_email.evaluate import calibrate
from mlx_email.export import bundle, card, choice, fuse, hub
from mlx_email.measure import predict
from mlx_email.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with `table`, `model` (4 bits) and `run`."""
    folder = tmp_path_factory.mktemp("export")
    assert main(["synth", "--out", str(folder / "box"), "--messages", "360"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "table")]) == 0
    exports.write_model(folder / "model")
    exports.write_run(folder / "run", folder / "table", folder / "model")
    return folder


@pytest.fixture(scope="module")
def run(folder) -> Path:
    return folder / "run"


@pytest.fixture(scope="module")
def record(folder, run) -> dict:
    """Of an export into `folder / "out"`."""
    return exporting.export(run, folder / "out", QUIET)


@pytest.fixture(scope="module")
def exported(folder, run) -> dict[str, Path]:
    """An export of each strategy, made whatever it is worth."""
    found = {name: folder / f"as-{name}" for name in ("requantise", "requantise8", "bf16", "adapter")}
    for name, out in found.items():
        exporting.export(run, out, QUIET, strategy=name, force=True)
    return found


def output(capsys, *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


# The gate


def test_a_small_adapter_is_not_rounded_away(folder, record):
    found = {each["strategy"]: each for each in record["candidates"]}
    assert list(found) == ["requantise", "requantise8", "bf16", "adapter"]
    assert found["requantise"]["agreement"]["same_action"] < choice.PASS
    assert found["adapter"]["agreement"] | {"messages": 0} == {
        "messages": 0,
        "same_action": 1.0,
        "mean_difference": 0.0,
        "largest_difference": 0.0,
    }
    passed = [each for each in found.values() if each["agreement"]["same_action"] >= choice.PASS]
    assert record["strategy"] == min(passed, key=lambda each: each["megabytes"])["strategy"] != "requantise"
    written = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file()) / 1e6
    assert record["megabytes"] == pytest.approx(written)
    text = (folder / "out" / bundle.CARD).read_text()
    for name, each in found.items():
        assert f"| {name} | {each['megabytes']:.1f} | {each['agreement']['same_action']:.1%} |" in text


@pytest.mark.slow
def test_without_the_gate_it_would_be(run, tmp_path, monkeypatch):
    """The planted fault."""
    monkeypatch.setattr(choice, "PASS", 0.0)
    assert exporting.export(run, tmp_path / "out", QUIET)["strategy"] == "requantise"


def test_a_strategy_that_does_not_agree_is_refused_with_its_number(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--strategy", "requantise"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "requantise" in said and "%" in said and "--force" in said
    assert not out.exists() and list(tmp_path.iterdir()) == []
    assert "requantise was taken" in output(capsys, "export", run, "--out", out, "--strategy", "requantise", "--force")


def test_the_smallest_that_passes_is_taken():
    def candidate(strategy: str, megabytes: float, same: float) -> dict:
        return {"strategy": strategy, "megabytes": megabytes, "agreement": {"same_action": same}}

    found = [candidate("a", 1, 0.98), candidate("b", 3, 1.0), candidate("c", 2, 0.99), candidate("d", 4, 1.0)]
    assert choice.choose(found, force=False)["strategy"] == "c"
    assert choice.choose(found[:1], force=True)["strategy"] == "a"
    for few in (found[:1], [found[0], candidate("e", 1, 0.5)]):
        with pytest.raises(choice.UserError, match=r"98\.0%"):
            choice.choose(few, force=len(few) > 1)


@pytest.mark.slow
def test_a_dense_base_stays_dense(folder, tmp_path, capsys):
    model = exports.write_model(tmp_path / "model", bits=None)
    run = exports.write_run(tmp_path / "run", folder / "table", model)
    capsys.readouterr()
    record = json.loads(output(capsys, "export", run, "--out", tmp_path / "out", "--json"))
    assert [each["strategy"] for each in record["candidates"]] == ["dense", "adapter"]
    assert record["strategy"] == "dense"
    assert {array.dtype for array in mx.load(str(tmp_path / "out/model.safetensors")).values()} == {mx.bfloat16}
    assert main(["export", str(run), "--out", str(tmp_path / "x"), "--strategy", "requantise8"]) == 2
    assert "take dense, adapter" in capsys.readouterr().err


@pytest.mark.slow
def test_eight_bits_are_not_offered_twice(folder, tmp_path):
    model = exports.write_model(tmp_path / "model", bits=8)
    run = exports.write_run(tmp_path / "run", folder / "table", model)
    record = exporting.export(run, tmp_path / "out", QUIET)
    assert [each["strategy"] for each in record["candidates"]] == ["requantise", "bf16", "adapter"]
    assert record["strategy"] == "requantise"


def test_the_upload_is_of_the_whole_folder(folder, run, tmp_path, monkeypatch, capsys):
    uploaded = []
    monkeypatch.setattr(hub, "upload", lambda out, repo: uploaded.append((sorted(p.name for p in out.iterdir()), repo)))
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--upload-repo", "nobody"]) == 2
    assert "org/name" in capsys.readouterr().err and not out.exists()
    arguments = ["--strategy", "adapter", "--upload-repo", "ann/mail", "--json"]
    assert "uploaded" in json.loads(output(capsys, "export", run, "--out", out, *arguments))
    assert uploaded == [(sorted(path.name for path in out.iterdir()), "ann/mail")]


# What is written is what was measured (reliability test 41)

RESCORE = """
import sys
from pathlib import Path
import mlx_email
import exports, numpy as np
from mlx_email import trained
from mlx_email.measure import predict
from mlx_email.progress import Progress
run, out, *folders = map(Path, sys.argv[1:])
rows = exports.rows(run)
np.savez(out, **{each.name: predict(trained.open_policy(each), rows, Progress(quiet=True)) for each in folders})
"""


@pytest.mark.slow
def test_a_fresh_process_predicts_what_was_measured(run, exported, tmp_path):
    """100 messages, to the last bit, however it was merged; and the way it was merged makes a difference."""
    policy, rows = trained.open_policy(run), exports.rows(run)
    assert len(rows) == 100
    stored = fuse.stored_types(policy.base.folder)
    command = [sys.executable, "-c", RESCORE, run, tmp_path / "said.npz", *exported.values()]
    subprocess.run(command, check=True, timeout=120, env=_environment())
    said = np.load(tmp_path / "said.npz")
    for name, out in exported.items():
        with fuse.merged(policy.base, name, stored):
            np.testing.assert_array_equal(said[out.name], predict(policy, rows, QUIET), err_msg=name)
    assert not np.array_equal(said["as-requantise"], said["as-adapter"])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.slow
def test_the_types_are_those_of_the_base(folder, exported):
    """The CPU computes in float32; the files are as small as the base's."""
    for name, out in exported.items():
        arrays = mx.load(str(out / "model.safetensors"))
        assert {array.dtype for array in arrays.values()} == {mx.bfloat16, mx.uint32}, name
    sizes = [(out / "model.safetensors").stat().st_size for out in exported.values()]
    assert sizes[0] < sizes[1] < sizes[2]
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (exported["adapter"] / name).read_bytes() == (folder / "model" / name).read_bytes()


# Evaluation


@pytest.mark.slow
def test_an_export_is_evaluated_like_its_run(folder, run, exported, capsys):
    arguments = ["--data", folder / "table", "--split", "validation", "--json"]
    configuration = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(configuration.replace("max_messages: 4", "max_messages: null"))
    of_run, of_export, *_ = json.loads(output(capsys, "evaluate", run, exported["adapter"], *arguments))
    assert of_export.pop("run") == str(exported["adapter"]) and of_run.pop("run")
    of_run.pop("acting", None)  # rules for acting stay with the run
    assert of_export == of_run
    (run / "config.yaml").write_text(configuration)
    assert main(["evaluate", str(exported["adapter"])]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_export_is_not_used(exported, tmp_path, capsys):
    out = shutil.copytree(exported["bf16"], tmp_path / "out")
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    assert main(["evaluate", str(out), "--data", str(tmp_path)]) == 1
    assert "model.safetensors is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_calibration_goes_with_it(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    calibrate.write(copy / "sft", calibrate.Calibration("temperature", temperature=1.5, messages=40))
    exporting.export(copy, tmp_path / "out", QUIET, strategy="adapter")
    held = bundle.read(tmp_path / "out").calibration
    assert msgspec.convert(held, calibrate.Calibration) == calibrate.read(copy / "sft") != calibrate.NONE


# The card


def test_the_card_says_what_it_is_worth(folder, run, record):
    text = (folder / "out" / bundle.CARD).read_text()
    measured = json.loads((run / "metrics.json").read_bytes())
    test = measured["stages"]["sft"]["test"]
    low, high = test["accuracy_interval"]
    assert f"| accuracy | {test['accuracy']:.3f} (95% interval {low:.3f} to {high:.3f}) |" in text
    assert f"| macro-F1 | {test['macro_f1']:.3f} |" in text
    assert f"| always the most frequent action | {measured['test']['baselines']['majority']:.3f} |" in text
    assert json.loads((run / "environment.json").read_bytes())["data"] in text
    assert "- `learning_rate`: 0.01" in text and "\nlicense: other\n" in text and "a local model" in text


def test_no_mail_and_no_name_is_in_it(folder, run, record):
    """In every text of the folder but the tokenizer's: no owner, sender, subject, id, nor path of this machine."""
    assert secrets_in(folder / "out", secrets_of(run, folder)) == []
    (folder / "leak").mkdir()
    (folder / "leak/README.md").write_text(f"# Of {pq.read_table(run / 'data/people.parquet')['user'][0]}")
    assert secrets_in(folder / "leak", secrets_of(run, folder)) != []


def secrets_of(run: Path, folder: Path) -> set[str]:
    rows = pq.read_table(run / "data/features.parquet").to_pylist()
    found = {row[name] for row in rows for name in ("user", "from", "subject", "message_id", "thread_id")}
    return {secret for secret in {*found, str(folder), folder.name} if len(secret) > 3}


def secrets_in(folder: Path, secrets: set[str]) -> list[str]:
    texts = [*folder.glob("*.json"), *folder.glob("*.md"), *folder.glob("adapter/*")]
    held = [path.read_bytes().decode(errors="replace") for path in texts if not path.name.startswith("tokenizer")]
    return [secret for text in held for secret in secrets if secret in text]


@pytest.mark.slow
def test_nor_where_the_adapter_lies_beside(folder, run, exported):
    assert secrets_in(exported["adapter"], secrets_of(run, folder)) == []
    assert "--adapter-path DIR/adapter" in (exported["adapter"] / bundle.CARD).read_text()


LICENSES = {
    "---\nlicense: mit\n---\n": "mit",
    "---\nlicense: apache-2.0\ntags: [x]\n---\n# Model": "apache-2.0",
    "---\nlicense: [a, b]\n---\n": "other",
    "---\nlicense: 'a\n\n# b'\n---\n": "other",
    "---\nlicense: !!python/object:os.system\n---\n": "other",
    "license: mit": "other",
    "---\n- a\n---\n": "other",
    "": "other",
}


@pytest.mark.parametrize("readme", LICENSES)
def test_the_licence_is_that_of_the_base(readme, tmp_path):
    (tmp_path / "README.md").write_text(readme)
    assert card.license_of("org/name", tmp_path) == LICENSES[readme]


def test_the_licence_of_a_model_without_a_readme(tmp_path):
    assert card.license_of("org/name", tmp_path) == "other"
    assert card.license_of("smollm2", tmp_path) == "apache-2.0"
    (tmp_path / "config.json").write_text('{"license": "bsd"}')
    assert card.license_of("org/name", tmp_path) == "bsd"


def test_the_card_holds_no_path_of_a_setting():
    assert card._plain({"rewards": [{"function": "/home/ann/mine.py:score", "weight": 1.0}]}) == {
        "rewards": [{"function": "mine.py:score", "weight": 1.0}]
    }
    paths = ("/Users/x/Ann Smith/rewards.py:score", r"C:\Ann Smith\x\rewards.py:score", "/a\nb/rewards.py:score")
    assert [card._plain(path) for path in paths] == ["rewards.py:score"] * 3
    assert card._plain("a linear schedule") == "a linear schedule"


def test_no_file_says_where_the_base_lay(folder, run, tmp_path):
    """Nothing else is lost of the files that said it; the others stay as they are, to the byte."""
    base, adapter = shutil.copytree(folder / "model", tmp_path / "base"), run / "sft"
    said = {name: json.loads((base / name).read_bytes()) for name in bundle.NAMED}
    for name, value in said.items():
        held = {"_name_or_path": "/home/ann/base", **value, "name_or_path": "/home/ann/base"}
        (base / name).write_text(json.dumps(held))
    for source, clean in ((base, False), (folder / "model", True)):
        out = tmp_path / f"out-{clean}"
        out.mkdir()
        bundle.copy_with_adapter(source, adapter, out, "a local model")
        assert {name: json.loads((out / name).read_bytes()) for name in bundle.NAMED} == said
        same = [name for name in bundle.NAMED if (out / name).read_bytes() == (source / name).read_bytes()]
        assert same == (list(bundle.NAMED) if clean else [])
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "config.json").write_text((base / "config.json").read_text())  # as `fuse.write` may leave it
    bundle.copy_beside(base, merged)
    assert not [path for path in merged.iterdir() if b"/home/ann" in path.read_bytes()]


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("dora", [False, True])
def test_scales_that_are_bytes_are_no_type_to_compute_in(mode, dora):
    """The merged layer is near the one with its adapter, and is what comes back from the types it is written in."""
    group, bits = {"mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}[mode]
    mx.random.seed(3)
    linear = nn.Linear(64, 32, bias=False).to_quantized(group, bits, mode=mode)
    module = (DoRALinear if dora else LoRALinear).from_base(linear, r=2, scale=1.0)
    module.lora_b = mx.random.normal(module.lora_b.shape)
    x = mx.random.normal((5, 64))
    expected = module(x)
    for strategy, off in (("requantise", 0.2), ("requantise8", 0.02), ("bf16", 0.02)):
        types = fuse.Types(lambda: mx.bfloat16)
        layer, _ = fuse._fused("layer", module, strategy, types)
        assert mx.linalg.norm(layer(x) - expected) < off * mx.linalg.norm(expected), strategy
        for name, array in layer.parameters().items():
            on_disk = array.astype(fuse._type(f"layer.{name}", array, types))
            assert array.dtype != mx.bfloat16 and mx.array_equal(on_disk.astype(array.dtype), array), (strategy, name)
