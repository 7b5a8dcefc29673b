"""What the README says is there is there."""

import re
from pathlib import Path

from mlx_email import config
from mlx_email.cli import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_every_command_is_in_the_readme_and_nothing_else():
    assert set(re.findall(r"mlx-email ([a-z]+)", README)) == set(cli.commands)


def test_ci_runs_the_readme_test_command():
    (command,) = re.findall(r"^uv run --group dev .*pytest$", README, re.MULTILINE)
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert command in lines
    assert f"{command} -m slow" in lines


def test_the_tree_in_the_readme_is_the_tree():
    tree = README.split("## The source tree")[1].split("```")[1]
    folder = ROOT
    for line in tree.strip().splitlines():
        name = line.split()[0]
        folder = ROOT / name if not line.startswith(" ") else folder
        path = folder if not line.startswith(" ") else folder / name
        assert path.exists(), name


def test_the_readme_names_the_settings_that_exist():
    chosen = config.load(None)
    for path in re.findall(r"--set ([a-z_.]+)=", README):
        node = chosen
        for part in path.split("."):
            node = getattr(node, part)


def test_no_placeholder_is_left():
    for name in ("README.md", "CHANGELOG.md", "benchmarks/RESULTS.md"):
        assert not re.findall(r"@[A-Z_]+@", (ROOT / name).read_text()), name
