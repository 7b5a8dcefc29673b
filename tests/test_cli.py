"""The command line: bad input is one clear line and exit 2, nothing half-written; help everywhere."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mlx_email.cli import cli, main


def every_command(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """The commands by what one types: `train`, `models list`."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        inner = isinstance(command, click.Group)
        found |= every_command(command, f"{before}{name} ") if inner else {f"{before}{name}": command}
    return found


COMMANDS = every_command(cli)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments: str, code: int = 2) -> str:
    """Run a command that must fail; gives its one line."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in captured.err
    return line


def leftovers() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def letter(path: str = "letter.eml", body: str = "Can you send me the report today?") -> str:
    Path(path).write_text(f"From: bob@sales.example\nTo: ann@x.example\nSubject: Report\n\n{body}\n")
    return path


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_with_an_example(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: mlx-email {name}" in shown
    assert f"Example: mlx-email {name}" in shown
    undocumented = [
        option.name
        for option in COMMANDS[name].params
        if isinstance(option, click.Option) and not option.help and option.name not in ("split", "seed")
    ]
    assert undocumented == []


def test_the_options_are_these_and_no_others():
    """An option is a promise: adding one changes this list on purpose."""
    options = {name: sorted(p.name for p in command.params) for name, command in COMMANDS.items()}
    assert options == {
        "train": [
            "as_json",
            "config_name",
            "force",
            "model",
            "out",
            "overrides",
            "resume",
            "source",
            "stages",
            "target_accuracy",
            "track",
        ],
        "prepare": ["as_json", "out", "owners", "redact", "source_format", "sources", "workers"],
        "evaluate": ["as_json", "data", "ensemble", "runs", "split"],
        "report": ["run"],
        "predict": [
            "as_json",
            "everything",
            "explain",
            "files",
            "goal",
            "interval",
            "once",
            "owner",
            "run",
            "sender",
            "subject",
            "text",
            "watch",
        ],
        "export": ["as_json", "force", "out", "run", "strategy", "upload_repo"],
        "verify": ["as_json", "paths"],
        "bench": ["as_json", "names", "quick"],
        "synth": ["messages", "noise", "out", "seed"],
    }


def test_help_and_mistakes_answer_without_loading_mlx():
    program = (
        "import sys; from mlx_email.cli import main; main(['train', '--help']); sys.exit('mlx.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_missing_mail(command, capsys):
    assert "nowhere" in refused(capsys, command, "nowhere", "--out", "out")
    assert leftovers() == []


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_an_empty_mailbox(command, capsys):
    Path("box/inbox").mkdir(parents=True)
    assert "box" in refused(capsys, command, "box", "--out", "out")
    assert leftovers() == ["box"]


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_no_labelled_mail(command, capsys):
    Path("box/ann/sent_items").mkdir(parents=True)
    letter("box/ann/sent_items/1.")
    assert "received" in refused(capsys, command, "box", "--out", "out")
    assert leftovers() == ["box"]


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_file_that_is_not_mail(command, capsys):
    Path("notes.txt").write_text("milk, bread")
    assert "notes.txt" in refused(capsys, command, "notes.txt", "--out", "out")
    assert leftovers() == ["notes.txt"]


@pytest.mark.parametrize("model", ["nowhere/at/all", "./box", "letter.eml"])
def test_a_model_that_is_none(model, capsys):
    letter()
    Path("box").mkdir()
    refused(capsys, "train", "--model", model, "--out", "out")
    assert leftovers() == ["box", "letter.eml"]


def test_an_unknown_setting(capsys):
    Path("c.yaml").write_text("modle: tiny\n")
    assert "did you mean model?" in refused(capsys, "train", "--config", "c.yaml", "--out", "out")
    assert "did you mean rank?" in refused(capsys, "train", "--set", "lora.rnk=1", "--out", "out")
    assert "the configuration has sft" in refused(capsys, "train", "--stage", "other", "--out", "out")
    assert "use --model" in refused(capsys, "train", "--set", "model=smollm2", "--out", "out")
    assert "no projection nope" in refused(capsys, "train", "--set", "lora.targets=[nope]", "--out", "out")
    assert "raise it" in refused(capsys, "train", "--set", "max_prompt_tokens=5", "--out", "out")
    assert leftovers() == ["c.yaml"]


@pytest.mark.parametrize("command", [["train"], ["prepare", "box"], ["synth", "--messages", "10"]])
def test_an_unwritable_output(command, capsys):
    main(["synth", "--out", "box", "--messages", "10"])
    capsys.readouterr()
    Path("file").write_text("mine")
    for out in ("file", "file/below"):
        assert out in refused(capsys, *command, "--out", out)
    Path("taken").mkdir()
    Path("taken/mine").write_text("mine")
    assert "taken" in refused(capsys, *command, "--out", "taken")
    assert leftovers() == ["box", "file", "taken"]
    assert Path("taken/mine").read_text() == Path("file").read_text() == "mine"


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_a_folder_that_is_no_run(command, capsys):
    letter()
    rest = {"predict": ["letter.eml"], "export": ["--out", "out"], "evaluate": []}[command]
    assert "not a run folder" in refused(capsys, command, "nowhere", *rest)
    assert leftovers() == ["letter.eml"]


def test_a_wrong_option_or_command(capsys):
    assert "--mesages" in refused(capsys, "synth", "--mesages", "3")
    assert "trian" in refused(capsys, "trian")


@pytest.mark.parametrize("out", [".", "/"])
def test_an_output_that_cannot_be_replaced(out, capsys):
    assert "name a new folder" in refused(capsys, "synth", "--messages", "10", "--out", out)


def test_debug_shows_where(capsys):
    assert main(["--debug", "evaluate", "nowhere"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr("mlx_email.synth.mailbox.write_mailbox", lambda *a, **k: 1 / 0)
    assert "--debug" in refused(capsys, "synth", "--out", "x", code=1)


def test_synth_then_prepare(capsys):
    assert main(["synth", "--out", "box", "--messages", "60", "--noise", "0", "--seed", "3"]) == 0
    assert "accuracy over all of them is 1.000" in capsys.readouterr().out
    assert main(["prepare", "box/maildir", "--out", "table", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["received"] == counts["labelled"] == 60
    assert counts["splits"] == {"test": 10, "train": 40, "validation": 10}
