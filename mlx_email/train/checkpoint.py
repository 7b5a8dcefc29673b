"""Checkpoints: folders that are whole or absent, that say what they hold, and that are read only as they were written.

STAGE/step-000120/adapters.safetensors, adapter_config.json   as mlx-lm reads them
                 /reward_head.safetensors                      where a reward model is trained
                 /optimizer.safetensors                        Adam's moments; none at step 0
                 /state.json                                   where the training stands
                 /manifest.json                                size and SHA-256 of each of those (`sealed`)

Step 0 is how the stage began: the reference of its losses, and where a run goes on that was killed before it saved. It
is never removed. A checkpoint is written beside its place and renamed, so that a kill leaves the ones before it and
nothing else; which one is the newest is found by reading them, not from a name that somebody might have left behind.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlx_email import files
from mlx_email.errors import MlxEmailError
from mlx_email.model import lora, reward
from mlx_email.model.arrays import Arrays, fitting
from mlx_email.sealed import MANIFEST, Damaged, read_json, seal, verify

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """One that was verified."""

    folder: Path
    step: int
    state: dict[str, Any]


def folder_of(stage: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return stage / f"step-{step:06d}"


# Writing


def save(
    stage: Path,
    step: int,
    model: nn.Module,
    adapters: lora.Lora,
    base: str,
    optimizer: optim.Optimizer | None,
    state: Mapping[str, Any],
) -> Path:
    """Publish the checkpoint of a step; `optimizer` None at step 0. `state` is JSON.

    Raises MlxEmailError where it cannot be written, or where an array is not finite; then nothing has changed.
    """
    arrays = _parts(model)
    if optimizer is not None:
        # Sorted, since mlx writes arrays in the order in which they came: a restored optimiser's is another.
        arrays[OPTIMIZER] = dict(sorted(dict(tree_flatten(optimizer.state)).items()))
    _refuse_not_finite(arrays, step)
    folder = folder_of(stage, step)
    if step > 0 and not stage.is_dir():  # moved, or its disk taken away: elsewhere it would be of no use
        raise MlxEmailError(f"cannot write {folder}: {stage} is gone")
    if folder.exists() or folder.is_symlink():  # damaged and passed over; the step has now been done again
        files.remove(folder)
    with files.publish(folder) as temporary:
        lora.save(temporary, model, adapters, base)
        for file in arrays.keys() - {lora.ADAPTERS}:
            try:
                mx.save_safetensors(str(temporary / file), arrays[file])
            except RuntimeError as error:  # how mlx reports a full disk
                raise MlxEmailError(f"cannot write {folder / file}: {error}") from error
        files.write_json(temporary / STATE, dict(state))
        seal(temporary, stage=stage.name, step=step)
    return folder


def retain(stage: Path, step: int, keep: int, best: int | None) -> None:
    """After the save of `step`, remove all earlier checkpoints but step 0, the newest `keep` and the best one.

    Later ones are damaged and were passed over; they do not count.
    """
    steps = sorted(held for held in _folders(stage) if held <= step)
    for old in steps[:-keep]:
        if old not in (0, best):
            files.remove(folder_of(stage, old))


def _parts(model: nn.Module) -> dict[str, Arrays]:
    """What is trained, file by file: the adapters, and the head of a reward model."""
    head = reward.attached(model)
    return {lora.ADAPTERS: lora.adapter_arrays(model)} | (
        {} if head is None else {reward.HEAD: reward.head_arrays(head)}
    )


def _refuse_not_finite(arrays: Mapping[str, Arrays], step: int) -> None:
    for held in arrays.values():
        for name, array in held.items():
            if not mx.isfinite(array).all().item():
                raise MlxEmailError(
                    f"step {step}: {name} holds a number that is not finite; nothing was saved: lower the learning rate"
                )


# Reading


def newest(stage: Path, note: Callable[[str], object]) -> Checkpoint | None:
    """The newest checkpoint that is as it was written, as is the best one before it; None where there is none at all.

    Each damaged one is passed over with a `note` that names the file. Raises MlxEmailError, and removes nothing, where
    all are damaged.
    """
    steps = sorted(_folders(stage), reverse=True)
    for step in steps:
        try:
            found = verified(stage, step)
            best = found.state["standing"]["best_step"]
            if best is not None:
                verified(stage, best)  # the stage's result, unless a better one comes
            return found
        except Damaged as error:
            note(f"warning: {error}; going back to an older checkpoint")
    if steps:
        raise MlxEmailError(f"{stage}: every checkpoint is damaged: nothing was removed; start the run again")
    return None


def verified(stage: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, every byte of it compared with its manifest; Damaged, naming the file, otherwise."""
    return whole(folder_of(stage, step), stage=stage.name, step=step)


def whole(folder: Path, **expected: Any) -> Checkpoint:
    """The same of a folder, whose manifest says what is `expected` (stage, step)."""
    said = verify(folder, **expected)
    held, step = said["files"], said.get("step")
    if not isinstance(step, int):
        raise Damaged(f"{folder / MANIFEST} is of no checkpoint")
    needed = {lora.ADAPTERS, lora.ADAPTER_CONFIG, STATE} | ({OPTIMIZER} if step > 0 else set())
    if lacking := needed - held.keys():
        raise Damaged(f"{folder} has no {min(lacking)}")
    state = read_json(folder / STATE)
    if lacking := {"standing", "identity"} - state.keys():
        raise Damaged(f"{folder / STATE} has no {min(lacking)}")
    return Checkpoint(folder, step, state)


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Put a verified checkpoint's adapters into the model and its moments into the optimiser.

    Raises ModelError naming an array that does not fit.
    """
    for file, wanted in _parts(model).items():
        model.update(tree_unflatten(list(fitting(checkpoint.folder / file, wanted).items())))
    if checkpoint.step > 0:
        optimizer.init(model.trainable_parameters())
        held = fitting(checkpoint.folder / OPTIMIZER, dict(tree_flatten(optimizer.state)))
        optimizer.state = tree_unflatten(list(held.items()))


def put_adapters(file: Path, model: nn.Module) -> None:
    """Replace the model's adapters by those of a file; ModelError naming an array that does not fit."""
    model.update(tree_unflatten(list(fitting(file, lora.adapter_arrays(model)).items())))


def _folders(stage: Path) -> list[int]:
    """The steps of a stage's checkpoints, damaged ones included."""
    if not stage.is_dir():
        return []
    named = (NAME.fullmatch(path.name) for path in stage.iterdir() if path.is_dir())
    return list({int(match[1]) for match in named if match})
