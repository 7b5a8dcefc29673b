"""Arrays from files, read only as what they are meant to be."""

from pathlib import Path

import mlx.core as mx

from mlx_email.errors import ModelError
from mlx_email.model.source import vet_safetensors

Arrays = dict[str, mx.array]


def fitting(file: Path, wanted: Arrays) -> Arrays:
    """The arrays of a file; ModelError where they are not finite, or have not the names, shapes and types `wanted`."""
    held = read(file)
    for name in sorted(held.keys() | wanted.keys()):
        if name not in held:
            raise ModelError(f"{file} has no {name}")
        if name not in wanted:
            raise ModelError(f"{file} has {name}, which this model has not")
        ours, theirs = wanted[name], held[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise ModelError(f"{file}: {name} is {theirs.dtype} {theirs.shape}, not {ours.dtype} {ours.shape}")
        if not mx.isfinite(theirs).all().item():
            raise ModelError(f"{file}: {name} holds a number that is not finite")
    return held


def read(file: Path) -> Arrays:
    """The arrays of a safetensors file, read now: mx.load only maps it, and what replaces it later would be read."""
    vet_safetensors(file)  # mlx trusts a header
    try:
        arrays = mx.load(str(file))
        mx.eval(arrays)
    except RuntimeError as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    return arrays  # ty: ignore[invalid-explicit-return] - a dict for safetensors
