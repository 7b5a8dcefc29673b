"""Folders with a manifest: what is in them, byte for byte, so that a damaged one is known and never used.

FOLDER/manifest.json   {..., "files": {name: {"bytes": n, "sha256": hex}}, "sha256": of all that}

The files of its folders are named by their paths (`adapter/adapters.safetensors`).
"""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_email import files
from mlx_email.errors import MlxEmailError

MANIFEST = "manifest.json"
FORMAT = 1


class Damaged(MlxEmailError):
    """A sealed folder that is not as it was written; the message names the file."""


def seal(folder: Path, *, manifest: str = MANIFEST, **said: Any) -> None:
    """Write the manifest of the files in `folder`, together with whatever else is to be `said` in it."""
    held = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / manifest)
    whole = {
        **said,
        "format": FORMAT,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
            for path in held
        },
    }
    files.write_json(folder / manifest, {**whole, "sha256": digest(whole)})


def verify(folder: Path, *, manifest: str = MANIFEST, **expected: Any) -> dict[str, Any]:
    """What the manifest says, after every byte of the files has been compared with it.

    Raises Damaged where anything differs, a file lacks, or it does not say what is `expected`. Files that it does not
    name are nobody's business: a Finder may have put them there, and nothing reads them.
    """
    where = folder / manifest
    said = read_json(where)
    seen = said.pop("sha256", None)
    try:
        entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in said["files"].items()}
        if seen != digest(said) or not all(map(_inside, entries)):
            raise Damaged(f"{where} is damaged")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"{where} is damaged ({type(error).__name__})") from error
    for key, value in {"format": FORMAT, **expected}.items():
        if said.get(key) != value:
            raise Damaged(f"{where} belongs to something else: its {key} is {said.get(key)!r}, not {value!r}")
    for name, (size, sha256) in entries.items():
        try:
            good = (folder / name).stat().st_size == size and files.sha256(folder / name) == sha256
        except OSError as error:
            raise Damaged(f"{folder / name} cannot be read: {error.strerror or error}") from error
        if not good:
            raise Damaged(f"{folder / name} is damaged")
    return said


def _inside(name: str) -> bool:
    """Whether a name is a path that stays within its folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and "\0" not in name and ".." not in parts and not PurePosixPath(name).is_absolute()


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value, in hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; Damaged where there is none."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise Damaged(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file} is damaged") from error
    if not isinstance(value, dict):
        raise Damaged(f"{file} is damaged")
    return value
