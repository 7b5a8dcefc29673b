"""Whether what the program wrote is as it was written: runs, stages, checkpoints, tables, exported models.

What has a SHA-256 is compared byte for byte: checkpoints, results of stages, tables, exported models. Records without
one (configuration, metrics, verdicts) are read as their readers read them, and compared with what else says the same.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mlx_email import sealed
from mlx_email.errors import UserError
from mlx_email.export import bundle
from mlx_email.model import gguf, lora, reward
from mlx_email.sealed import MANIFEST, Damaged
from mlx_email.train import checkpoint
from mlx_email.verify import run, tables
from mlx_email.verify.findings import Finding, line, looked_at, plain, refuse

__all__ = ["Finding", "check", "line", "plain", "refuse"]


def check(path: Path) -> list[Finding]:
    """Everything of ours at a path, or in the folders of it; UserError where there is nothing."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    found = list(_of(path))
    if not found and path.is_dir():
        found = [finding for child in sorted(path.iterdir()) for finding in _of(child)]
    if not found:
        raise UserError(f"{path} is nothing that mlx-email writes: name a run, a checkpoint, a table or an export")
    return found


def _of(path: Path) -> Iterator[Finding]:
    """By its marks, of which most kinds have several: a file that lacks is damage, and not another kind."""
    if path.is_file():
        if path.name in tables.TABLES:
            yield looked_at("table", path, tables.check_table)
    elif bundle.is_exported(path) or _has_card(path):
        yield looked_at("exported model", path, bundle.read)
    elif run.is_run(path):
        yield from run.check_run(path)
    elif _is_checkpoint(path):
        yield looked_at("checkpoint", path, checkpoint.whole)
    elif run.is_stage(path):
        yield from run.check_stage(path)
    elif any((path / name).is_file() for name in (reward.HEAD, reward.HEAD_CONFIG)):
        yield looked_at("reward model", path, reward.about)
    elif tables.is_prepared(path):
        yield looked_at("tables", path, tables.check_folder)
    elif (path / MANIFEST).is_file():
        converted = (path / "config.json").is_file()  # a model in the cache
        yield looked_at(
            "converted model" if converted else "sealed folder", path, _converted if converted else sealed.verify
        )


def _converted(folder: Path) -> None:
    if (name := gguf.damaged_file(folder)) is not None:
        raise Damaged(f"{folder / name} is damaged")


def _has_card(folder: Path) -> bool:
    """Whether a folder has a model card of ours: then its mlx_email.json was lost."""
    with contextlib.suppress(OSError):
        card = (folder / bundle.CARD).read_text(errors="replace")
        return (folder / "config.json").is_file() and "\n- mlx-email\n" in card[:2000]
    return False


def _is_checkpoint(folder: Path) -> bool:
    held = (lora.ADAPTERS, lora.ADAPTER_CONFIG, checkpoint.OPTIMIZER, MANIFEST)
    named = bool(checkpoint.NAME.fullmatch(folder.name)) and any((folder / name).is_file() for name in held)
    return named or (folder / checkpoint.STATE).is_file()
