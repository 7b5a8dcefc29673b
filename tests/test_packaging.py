"""What is installed is what the repository holds, editable or from a wheel, and nothing named `kernels` beside it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import importlib.util
import mlx_email.kernels.losses as losses
from mlx_email import config
from mlx_email.kernels.logprob import linear_logprob
assert importlib.util.find_spec("kernels") is None, "a top-level kernels is importable"
assert "quickstart" in config.shipped()
print(losses.__file__)
"""


def python(*arguments: str, where: Path, path: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, *arguments], cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_here(tmp_path):
    python("-c", PROBE, where=tmp_path)


def test_a_checkout_on_the_path_offers_no_kernels_either():
    assert "mlx_email.kernels" in python(
        "-c", "try:\n import kernels\nexcept ModuleNotFoundError as error:\n print(error)", where=ROOT
    )
    assert python("-c", "import transformers, mlx_lm, mlx_email.kernels.losses; print('ok')", where=ROOT) == "ok\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs", "build", "*.egg-info", ".*cache")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv, to build a wheel")
    subprocess.run([uv, "build", "--wheel", "-q", "-o", folder, folder / "source"], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data(wheel, tmp_path):
    names = zipfile.ZipFile(wheel).namelist()
    assert "mlx_email/kernels/losses/sft.py" in names
    assert "mlx_email/configs/quickstart.yaml" in names
    assert "mlx_email/model/tiny/model.safetensors" in names
    assert not [name for name in names if name.startswith(("kernels", "tests", "configs"))]
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "mlx_email").rglob("*.py")}
    assert {name for name in packages if f"{name}/__init__.py" not in names} == set()


@pytest.mark.slow
def test_the_wheel_works_without_the_development_packages(wheel, tmp_path):
    uv = shutil.which("uv")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run = [uv, "run", "-q", "--isolated", "--no-project", "--python", sys.executable, "--with", str(wheel)]

    def inside(*command: str) -> str:
        done = subprocess.run([*run, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "/mlx_email/kernels/losses" in inside("python", "-c", PROBE)
    assert "Usage: mlx-email" in inside("mlx-email", "--help")
    assert "best possible accuracy" in inside("mlx-email", "synth", "--out", "box", "--messages", "50")
    assert "No module named" in inside("python", "-c", "try:\n import pytest\nexcept ImportError as e:\n print(e)")
