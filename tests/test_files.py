"""Files are whole or absent, and a folder has one writer."""

import os
import stat
import subprocess
import sys

import pytest

from mlx_email import files
from mlx_email.errors import MlxEmailError, UserError


def test_write_replaces_in_one_step_and_is_private(tmp_path):
    path = tmp_path / "a.json"
    files.write(path, "old")
    files.write_json(path, {"b": 1.5, "a": "é"})
    assert path.read_text() == '{\n  "a": "é",\n  "b": 1.5\n}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write(path, "old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(MlxEmailError, match="No space left"):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_publish_shows_all_or_nothing(tmp_path):
    target = tmp_path / "deep" / "run"
    with files.publish(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    with pytest.raises(FileNotFoundError), files.publish(tmp_path / "other") as folder:
        (folder / "deeper" / "a").write_text("1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_publish_replaces_nothing(tmp_path):
    (tmp_path / "mine").write_text("1")
    with pytest.raises(UserError, match="not empty"), files.publish(tmp_path):
        pass
    with pytest.raises(UserError, match="cannot write"), files.publish(tmp_path / "mine" / "below"):
        pass


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    program = (
        "import sys, pathlib; from mlx_email import files\n"
        "with files.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=str(holder.pid)), files.locked(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with files.locked(tmp_path):
        pass
