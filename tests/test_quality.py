"""The tools that read the code: one command runs them and the tests alike."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("kernels", "configs", "benchmarks")  # folders of the repository that are installed inside the package


@pytest.fixture(scope="module")
def installed_layout(tmp_path_factory) -> Path:
    """The package as a wheel lays it out, since the tools do not know setuptools' package-dir."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mlx_email", tree / "mlx_email", ignore=ignore)
    for name in MAPPED:
        shutil.copytree(ROOT / name, tree / "mlx_email" / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def check(*command: str, where: Path = ROOT) -> None:
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(where)}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_ruff_lint():
    check("ruff", "check", "--no-cache", ".")


def test_ruff_format():
    check("ruff", "format", "--no-cache", "--check", ".")


def test_types(installed_layout):
    check("ty", "check", "--error-on-warning", "--python", sys.prefix, "mlx_email", where=installed_layout)


def test_import_arrows(installed_layout):
    check("lint-imports", "--no-cache", where=installed_layout)


def test_an_arrow_against_the_grain_is_seen(installed_layout, tmp_path):
    """The planted fault: the mail layer importing the model."""
    tree = tmp_path / "tree"
    shutil.copytree(installed_layout, tree)
    (tree / "mlx_email" / "mail" / "wrong.py").write_text("from mlx_email.model import load\n")
    with pytest.raises(AssertionError, match="BROKEN"):
        check("lint-imports", "--no-cache", where=tree)


def test_dependencies_are_used_and_declared():
    check("deptry", ".")
