"""What the reference thinks of every completion: computed once per example, before the first step, and kept.

STAGE/reference/train-000000/logps.safetensors, manifest.json   256 examples a part

The reference is the base with the adapters that the stage began with (its checkpoint of step 0), so these numbers are
constants of the stage. A part is published whole: a kill costs one part, and a row that was never computed does not
exist. What lies outside a completion is NaN, which no loss could take for a log-probability.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlx_email import files
from mlx_email.errors import MlxEmailError
from mlx_email.model import lora
from mlx_email.model.arrays import fitting
from mlx_email.model.batch import Example, collate
from mlx_email.model.forward import completion_logps
from mlx_email.model.frozen import Frozen
from mlx_email.sealed import Damaged, digest, seal, verify
from mlx_email.train import checkpoint
from mlx_email.train.memory import exhausted

PART = 256
LOGPS = "logps.safetensors"


def reference_of(stage: Path, model: nn.Module) -> Frozen:
    """The policy as a stage began: the adapters of its checkpoint of step 0, which exists."""
    return Frozen(fitting(checkpoint.verified(stage, 0).folder / lora.ADAPTERS, lora.adapter_arrays(model)))


def with_reference(
    stage: Path, kind: str, model: nn.Module, examples: Sequence[Example], batch_size: int
) -> list[Example]:
    """The examples with their reference log-probabilities, read where they were computed before.

    `kind` ("train", "validation") names the parts. The stage's checkpoint of step 0 exists; the model's adapters are
    the same afterwards.
    """
    found: dict[int, tuple[np.ndarray, ...]] = {}
    began = checkpoint.verified(stage, 0).folder / lora.ADAPTERS
    of = files.sha256(began)
    with reference_of(stage, model).lent_to(model):
        for start in range(0, len(examples), PART):
            # By length within a part only: more examples make more parts and leave these as they are.
            indices = sorted(range(len(examples))[start : start + PART], key=lambda index: len(examples[index].prompt))
            part = [examples[index] for index in indices]
            folder = stage / "reference" / f"{kind}-{start:06d}"
            for index, logps in zip(indices, _part(folder, model, of, part, batch_size), strict=True):
                found[index] = logps
    return [dataclasses.replace(example, reference=found[index]) for index, example in enumerate(examples)]


def _part(
    folder: Path, model: nn.Module, of: str, part: Sequence[Example], batch_size: int
) -> list[tuple[np.ndarray, ...]]:
    """A part's log-probabilities under the adapters whose SHA-256 is `of`, an array (c,) a completion; computed and
    published where they are not there whole."""
    tokens = [[example.prompt.tolist(), *(ids.tolist() for ids in example.completions)] for example in part]
    about = digest([of, tokens])
    try:
        verify(folder, examples=about)
        rows = load_file(folder / LOGPS)["logps"]
    except Damaged:
        if folder.exists():
            files.remove(folder)
        with exhausted("the reference's log-probabilities"):
            rows = _computed(model, part, batch_size)
        with files.publish(folder) as temporary:
            try:
                save_file({"logps": rows}, temporary / LOGPS)
            except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
                raise MlxEmailError(f"cannot write {folder / LOGPS}: {error}") from error
            seal(temporary, examples=about)
    return [
        tuple(row[: len(ids)] for row, ids in zip(rows[number], example.completions, strict=True))
        for number, example in enumerate(part)
    ]


def _computed(model: nn.Module, part: Sequence[Example], batch_size: int) -> np.ndarray:
    """(examples, G, C) float32, NaN outside the completions."""
    longest = max(len(ids) for example in part for ids in example.completions)
    rows = np.full((len(part), len(part[0].completions), longest), np.nan, np.float32)
    for start in range(0, len(part), batch_size):
        taken = part[start : start + batch_size]
        arrays = collate(taken, len(taken), max(len(example.prompt) for example in taken), longest).arrays
        logps = completion_logps(
            model,
            arrays["prompts"],
            arrays["prompt_lengths"],
            arrays["completions"],
            arrays["completion_mask"],
            gradient=False,
        )
        known = np.array(arrays["completion_mask"] > 0)
        rows[start : start + len(taken)][known] = np.array(logps)[known]
    mx.clear_cache()
    return rows
