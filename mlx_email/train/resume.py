"""Whether a run may go on from a checkpoint: it may where it would give what a run never interrupted gives."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from mlx_email import files
from mlx_email.config import Config
from mlx_email.errors import ConfigError, DataError, ModelError
from mlx_email.labels.prepare import FEATURES
from mlx_email.model import source
from mlx_email.model.load import Base

# What may change between two sessions of a run: how long, how often, how it is computed and measured; not what is
# learned from what. Paths in the configuration, stages by any name.
MAY_CHANGE = (
    ("compile",),
    ("gradient_checkpointing",),
    ("keep_checkpoints",),
    ("memory",),
    ("target_accuracy",),
    ("acting",),
    *(
        ("stages", "*", name)
        for name in ("epochs", "max_steps", "log_every", "save_every", "validate_every", "patience", "samples_every")
    ),
)


def environment() -> dict[str, Any]:
    """What a result may depend on besides the configuration and the data."""
    return {
        "mlx_email": version("mlx-email"),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        # Small products of MKL are summed in an order that depends on its threads, whatever MKL_CBWR says.
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": os.environ.get("MKL_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS"),
        "mkl_cbwr": os.environ.get("MKL_CBWR"),
    }


def identity(base: Base, data: Path, config: Config) -> dict[str, Any]:
    """What a checkpoint belongs to: the settings, the base model and the labelled table (a run's data folder)."""
    settings = msgspec.to_builtins(config)
    return {"settings": settings, **fingerprints(base, data), "environment": environment()}


def fingerprints(base: Base, data: Path) -> dict[str, str]:
    """The base model and the labelled table, each as a SHA-256; DataError where there is no table."""
    if not (data / FEATURES).is_file():
        raise DataError(f"{data} has no {FEATURES}")
    return {"model": str(base.folder), "base": source.fingerprint(base.folder), "data": files.sha256(data / FEATURES)}


def refuse_changes(then: dict[str, Any], now: dict[str, Any], run: Path, stage: str | None) -> list[str]:
    """Compare two identities of a run; of its stages' settings only those of `stage`, None: of none. Gives what differs
    in the environment, where the same result is only likely.

    Raises ConfigError naming the setting, ModelError or DataError where something else is trained than before.
    """
    refuse_settings(_of_stage(then["settings"], stage), _of_stage(now["settings"], stage), run)
    refuse_others(then, now, run)
    changed = differences(then["environment"], now["environment"])
    return [f"{'.'.join(path)} was {was}, is {is_now}" for path, was, is_now in changed]


# What no stage's result depends on: where the model is (what it is has a SHA-256), what the table was made from (it has
# one too), how a step is computed, which policies are gone on with and when they may act.
ELSEWHERE = (
    "model",
    "synthetic",
    "stages",
    "memory",
    "keep_checkpoints",
    "compile",
    "gradient_checkpointing",
    "gate",
    "acting",
    "target_accuracy",
)


def deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration as plain values what every stage's result depends on, its own settings apart."""
    held = {name: value for name, value in settings.items() if name not in ELSEWHERE}
    measured = {name: value for name, value in settings["evaluation"].items() if name != "max_messages"}
    return {**held, "evaluation": measured}


def _of_stage(settings: dict[str, Any], stage: str | None) -> dict[str, Any]:
    """What one stage's result depends on; None: what all do."""
    return {**deciding(settings), "stages": [each for each in settings["stages"] if each["name"] == stage]}


def refuse_settings(then: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """ConfigError naming a setting that a run may not change; both are configurations as plain values."""
    for path, was, is_now in differences(then, now):
        if not may_change(path):
            raise ConfigError(f"{run}: {'.'.join(path)} was {was!r} and is {is_now!r}: a run goes on as it was begun")


def refuse_others(then: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """ModelError or DataError where the `fingerprints` in two mappings differ."""
    if then["base"] != now["base"]:
        raise ModelError(f"{run}: the base model {now['model']} is not the one it was begun with")
    if then["data"] != now["data"]:
        raise DataError(f"{run}: data/{FEATURES} is not the table it was begun with")


def may_change(path: tuple[str, ...]) -> bool:
    """Whether a setting may change between two sessions; its path in the configuration, stages by their name."""
    return any(
        len(path) >= len(allowed) and all(a in ("*", p) for p, a in zip(path, allowed, strict=False))
        for allowed in MAY_CHANGE
    )


def differences(a: Any, b: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """The leaves where two trees of plain values differ, by path; stages go by their name."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and all(isinstance(x, dict) for x in (*a, *b)):
        a, b = ({str(x.get("name", i)): x for i, x in enumerate(tree)} for tree in (a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), (*path, key))
    elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
        yield path, a, b
