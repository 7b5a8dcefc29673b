"""Killed at any operation on the file system, an export leaves no folder or a whole one (reliability test 42)."""

import contextlib
import shutil
import signal
from pathlib import Path

import exports
import pytest
import small

from mlx_email import exporting, files
from mlx_email.errors import MlxEmailError
from mlx_email.export import bundle
from mlx_email.progress import Progress

STRATEGIES = ("requantise8", "adapter")


@pytest.fixture(scope="module")
def run(table, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("to export")
    exports.write_model(folder / "model")
    return exports.write_run(folder / "run", table, folder / "model")


def export(run: Path, out: Path, strategy: str) -> None:
    exporting.export(run, out, Progress(quiet=True), strategy=strategy, force=True)


def seen_while(run: Path, out: Path, strategy: str, monkeypatch) -> list[bool]:
    """Whether the folder was there, and whole, at each operation of an export."""
    found: list[bool] = []

    def look(where: str) -> None:
        if not found or found[-1] != out.exists():
            found.append(out.exists())
            if out.exists():
                bundle.read(out)

    with monkeypatch.context() as watching:
        small.watch(watching.setattr, look)
        export(run, out, strategy)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_at_every_operation_the_folder_is_absent_or_whole(strategy, run, tmp_path, monkeypatch):
    assert seen_while(run, tmp_path / "out", strategy, monkeypatch) == [False, True]
    assert small.temporaries(tmp_path) == []


def test_a_folder_filled_in_its_place_would_be_seen(run, tmp_path, monkeypatch):
    """The planted fault."""

    @contextlib.contextmanager
    def in_place(folder, **_):
        folder.mkdir(parents=True)
        yield folder

    monkeypatch.setattr(files, "publish", in_place)
    with pytest.raises(MlxEmailError, match=bundle.ABOUT):
        seen_while(run, tmp_path / "out", STRATEGIES[0], monkeypatch)


def test_an_error_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "seal", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        export(run, tmp_path / "out", "adapter")
    assert list(tmp_path.iterdir()) == []


KILL = """
import os, signal, sys
from pathlib import Path
import small
from mlx_email import exporting
from mlx_email.progress import Progress
run, out, at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
seen = 0
def count(where):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
small.watch(setattr, count)
exporting.export(run, out, Progress(quiet=True), strategy="requantise8", force=True)
print(seen)
"""


@pytest.mark.slow
def test_killed_at_every_operation(warm, run, tmp_path):
    """What it leaves hidden is removed by the next export beside it."""
    out = tmp_path / "out"
    counting = warm.run(KILL, run, out, 0)
    assert counting.wait() == 0, counting.said
    whole = []
    for at in range(1, int(counting.said) + 1, 3):
        shutil.rmtree(out, ignore_errors=True)
        assert warm.run(KILL, run, out, at).wait() == -signal.SIGKILL
        whole.append(out.exists())
        if out.exists():
            bundle.read(out)
    assert whole == sorted(whole) and not whole[0]
    shutil.rmtree(out, ignore_errors=True)
    export(run, out, "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
