"""Token ids to padded arrays: the columns that the forward path takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

Arrays = dict[str, mx.array]  # the columns of a micro-batch


@dataclass(frozen=True)
class Example:
    """One prompt with its G completions, as token ids: 4 bytes each, where a list of numbers takes 36."""

    id: str  # the message's id, to name it in an error
    prompt: np.ndarray  # (p,) int32
    completions: tuple[np.ndarray, ...]  # G of (c,) int32
    reference: tuple[np.ndarray, ...] | None = None  # G of (c,) float32: log-probabilities under the reference, nats
    # What an algorithm wants to know besides, such as {"desirable": 1.0}: the same names and shapes in all examples.
    numbers: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    about: Any = None  # whatever else its algorithm's `prepare` wants to know
    # The step that takes it, from 0, where steps are not drawn: all examples have one then, and none is left out.
    turn: int | None = None


def example(
    identity: str,
    prompt: Sequence[int],
    *completions: Sequence[int],
    numbers: Mapping[str, float | Sequence[float]] | None = None,
    about: Any = None,
    turn: int | None = None,
) -> Example:
    """An example from lists of token ids."""
    ids = tuple(np.array(ids, np.int32) for ids in completions)
    return Example(identity, np.array(prompt, np.int32), ids, numbers=numbers or {}, about=about, turn=turn)


@dataclass(frozen=True)
class Batch:
    """A micro-batch: B prompts with G completions each. Rows of padding have length 1 and an all-zero mask.

    `arrays` holds prompts (B, P) int32, prompt_lengths (B,) int32, completions (B, G, C) int32 and completion_mask
    (B, G, C) float32; where the examples have a reference, ref_logps (B, G, C) float32, 0 where masked; and a column
    (B, ...) float32 for each of their numbers, 0 in rows of padding. An algorithm's `prepare` adds columns of its own.
    """

    examples: tuple[Example, ...]  # the real rows
    arrays: Arrays

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the real rows."""
        return tuple(example.id for example in self.examples)


def collate(examples: Sequence[Example], rows: int, prompt_width: int, completion_width: int) -> Batch:
    """Pad examples to one shape (rows, prompt_width) and (rows, G, completion_width); missing rows are masked."""
    branches = len(examples[0].completions)
    prompts = np.zeros((rows, prompt_width), np.int32)
    lengths = np.ones(rows, np.int32)  # a padding row keeps one position, since each row needs a last one
    completions = np.zeros((rows, branches, completion_width), np.int32)
    mask = np.zeros((rows, branches, completion_width), np.float32)
    reference = np.zeros((rows, branches, completion_width), np.float32)
    for row, example in enumerate(examples):
        lengths[row] = len(example.prompt)
        prompts[row, : lengths[row]] = example.prompt
        for branch, completion in enumerate(example.completions):
            completions[row, branch, : len(completion)] = completion
            mask[row, branch, : len(completion)] = 1
        for branch, logps in enumerate(example.reference or ()):
            reference[row, branch, : len(logps)] = logps
    numbers = {
        name: np.zeros((rows, *np.shape(value)), np.float32) for name, value in sorted(examples[0].numbers.items())
    }
    for name, column in numbers.items():
        column[: len(examples)] = [example.numbers[name] for example in examples]
    return Batch(
        examples=tuple(examples),
        arrays={
            "prompts": mx.array(prompts),
            "prompt_lengths": mx.array(lengths),
            "completions": mx.array(completions),
            "completion_mask": mx.array(mask),
            **({} if examples[0].reference is None else {"ref_logps": mx.array(reference)}),
            **{name: mx.array(column) for name, column in numbers.items()},
        },
    )
