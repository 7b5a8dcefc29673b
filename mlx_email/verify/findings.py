"""What a check found, and how it is told."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_email.errors import MlxEmailError


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    kind: str
    path: Path
    damage: str | None  # None: it is as it was written


def looked_at(kind: str, path: Path, work: Callable[[Path], object]) -> Finding:
    """What `work` finds at a path: whatever it raises is damage."""
    try:
        work(path)
    except OSError as error:
        return Finding(kind, path, f"{error.filename or path} cannot be read: {error.strerror or error}")
    except Exception as error:  # a damaged file can fail its reader in any way
        said = " ".join(str(error).split())
        return Finding(
            kind, path, said if isinstance(error, MlxEmailError) else f"{path}: {type(error).__name__} {said}"
        )
    return Finding(kind, path, None)


def line(finding: Finding) -> str:
    """A finding in words."""
    if finding.damage is None:
        return f"ok       {finding.kind:14s}  {finding.path}"
    return f"damaged  {finding.kind:14s}  {finding.path}: {finding.damage}"


def plain(finding: Finding) -> dict[str, Any]:
    """A finding as JSON has it."""
    return {**asdict(finding), "path": str(finding.path), "ok": finding.damage is None}


def refuse(found: Sequence[Finding]) -> None:
    """MlxEmailError where something is damaged."""
    damaged = [finding for finding in found if finding.damage is not None]
    if damaged:
        raise MlxEmailError(f"{len(damaged)} of {len(found)} damaged; the first: {damaged[0].damage}")
