"""The tools that read the code: one command runs them and the tests alike."""

import ast
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


# No code of data or models is ever run (reliability test 32)

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}  # each can unpickle
CALLS = {"eval", "exec", "__import__", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "torch.load"}


def runs_code(source: str) -> list[str]:
    """What in a Python file could run code that comes from elsewhere, by its line; `mx.eval` is not `eval`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            found += [(node.lineno, name) for name in imported if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [(node.lineno, called)] if called in CALLS else []
            for given in node.keywords:
                risky = given.arg == "allow_pickle" or given.arg == "shell" or given.arg == "trust_remote_code"
                if risky and not (isinstance(given.value, ast.Constant) and given.value.value is False):
                    found.append((node.lineno, f"{given.arg}={ast.unparse(given.value)}"))
    return [f"{line}: {what}" for line, what in sorted(found)]


def test_nothing_runs_code_from_elsewhere():
    files = [path for folder in ("mlx_email", *MAPPED) for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 150
    found = {str(path.relative_to(ROOT)): runs_code(path.read_text()) for path in files}
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "def f():\n    from torch import load",
        "eval(text)",
        "exec(compile(text, '', 'exec'))",
        "yaml.load(text)",
        "torch.load(path)",
        "subprocess.run(text, shell=True)",
        "load(path, trust_remote_code=True)",
        "load(path, trust_remote_code=trusted)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_runs_code_is_seen(planted):
    """The planted faults."""
    assert len(runs_code(planted)) == 1
    assert runs_code("mx.eval(model.parameters())\nsubprocess.run(['ls'], shell=False)\nmodel.eval()") == []
