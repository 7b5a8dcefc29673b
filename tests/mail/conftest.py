"""Trees of invented mail, as a folder, a tar, a compressed tar and a zip."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Pack = Callable[[dict[str, bytes], str], Path]


@pytest.fixture
def pack(tmp_path) -> Pack:
    """Packs files, given by their names, in the way named; in the order in which a folder is walked."""

    def make(files: dict[str, bytes], way: str) -> Path:
        root = tmp_path / f"in-{way}"
        root.mkdir()
        if way == "folder":
            for name, data in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(data)
            return root
        path = root / f"box.{way}"
        if way == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
            return path
        with tarfile.open(path, "w:gz" if way == "tar.gz" else "w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make
