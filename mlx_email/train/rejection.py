"""The best of what a policy says: sampled, judged and kept before a stage's first step, as data.

STAGE/kept/000000/kept.jsonl, manifest.json   64 prompts a part, in the order of the training examples

A line a completion: {"message_id", "user", "prompt", "completion": token ids, "text", "reward", "parts": {...}}. A part
is published whole: a kill costs one part. What is drawn is a function of the policy, the seed and the part.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy as np

from mlx_email import files
from mlx_email.algorithms import Context
from mlx_email.algorithms.grpo import roll
from mlx_email.config import Rsf
from mlx_email.errors import NothingToLearnError
from mlx_email.model import lora
from mlx_email.model.batch import Example
from mlx_email.rewards.judge import Judged
from mlx_email.sealed import Damaged, digest, seal, verify
from mlx_email.train.loop import derived_seed
from mlx_email.train.memory import exhausted

PART = 64
FOLDER, LINES, COUNTS = "kept", "kept.jsonl", "counts.json"

# Names of what is counted.
SAMPLES, KEPT, TWICE, CUT, BELOW = "samples", "kept", "said twice", "cut at max_tokens", "below the threshold"

# The settings that decide what is kept; the others may change when a run goes on.
DECIDES = (
    "batch_size",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "rewards",
    "samples",
    "keep",
    "threshold",
)


class Kept(msgspec.Struct, frozen=True):
    """A completion that was kept."""

    message_id: str
    user: str
    prompt: tuple[int, ...]  # token ids
    completion: tuple[int, ...]
    text: str
    reward: float
    parts: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a stage trains on, and how it came about."""

    examples: list[Example]  # a prompt with its kept completions, those that lack without a token
    counts: Counter[str]


def selection(
    stage: Path,
    policy: nn.Module,
    examples: Sequence[Example],
    settings: Rsf,
    context: Context,
    seed: int,
    progress: Callable[[int, float], object] = lambda prompts, share: None,  # noqa: ARG005
) -> Selection:
    """Sample `settings.samples` completions of each example's prompt by the policy as it is, and keep the best; read
    what is there already. `progress`: with how many more prompts are done, and the share of samples kept so far.

    Raises NothingToLearnError where nothing is kept.
    """
    if not examples:
        return Selection([], Counter())
    of = _digest_of(policy)
    counts: Counter[str] = Counter()
    found: list[Example] = []
    for start in range(0, len(examples), PART):
        part = examples[start : start + PART]
        folder = stage / FOLDER / f"{start:06d}"
        by_prompt, counted = _part(folder, policy, part, settings, context, derived_seed(seed, start), of)
        counts += counted
        for example, kept in zip(part, by_prompt, strict=True):
            if kept:
                ids = [np.array(each.completion, np.int32) for each in kept]
                missing = [np.zeros(0, np.int32)] * (settings.keep - len(ids))
                found.append(dataclasses.replace(example, completions=(*ids, *missing)))
        progress(len(part), counts[KEPT] / max(counts[SAMPLES], 1))
    if not found:
        raise NothingToLearnError(
            f"{settings.name}: none of {counts[SAMPLES]} samples is worth keeping: lower the threshold"
        )
    return Selection(found, counts)


def read(folder: Path) -> Iterator[Kept]:
    """The completions that a stage kept, from its `kept` folder. Raises Damaged where they are not as written."""
    for part in sorted(path for path in folder.iterdir() if path.name.isdigit()):
        verify(part)
        for line in (part / LINES).read_bytes().splitlines():
            yield msgspec.json.decode(line, type=Kept)


def best(judged: Sequence[Judged], settings: Rsf) -> tuple[list[Judged], Counter[str]]:
    """The up to `settings.keep` samples of a prompt that are worth most, the first drawn of equal ones; none twice,
    none that was cut, none below the threshold. And how many were left out for what."""
    counts = Counter({SAMPLES: len(judged)})
    seen: set[bytes] = set()
    kept = []
    for each in sorted(judged, key=lambda each: -each.reward):
        if not each.sample.ended:
            counts[CUT] += 1
        elif settings.threshold is not None and each.reward < settings.threshold:
            counts[BELOW] += 1
        elif each.sample.tokens.tobytes() in seen:
            counts[TWICE] += 1
        elif len(kept) < settings.keep:
            seen.add(each.sample.tokens.tobytes())
            kept.append(each)
    counts[KEPT] = len(kept)
    return kept, counts


def _digest_of(policy: nn.Module) -> str:
    """Of the adapters as they are."""
    found = hashlib.sha256()
    for name, array in sorted(lora.adapter_arrays(policy).items()):
        found.update(name.encode())
        found.update(np.array(array.astype(mx.float32)).tobytes())
    return found.hexdigest()


def _part(
    folder: Path,
    policy: nn.Module,
    part: Sequence[Example],
    settings: Rsf,
    context: Context,
    seed: int,
    of: str,
) -> tuple[list[list[Kept]], Counter[str]]:
    """A part's kept completions by prompt, and what was counted; sampled and published where they are not there."""
    told = {name: value for name, value in msgspec.to_builtins(settings).items() if name in DECIDES}
    about = digest([of, seed, told, [example.prompt.tolist() for example in part]])
    try:
        verify(folder, of=about)
    except Damaged:
        if folder.exists():
            files.remove(folder)
        with exhausted("sampling"):
            kept, counts = _sampled(policy, part, settings, context, seed)
        with files.publish(folder) as temporary:
            end = context.renderer.end if context.renderer else ()
            lines = [_line(example, each, end) for example, row in zip(part, kept, strict=True) for each in row]
            files.write(temporary / LINES, "".join(lines))
            files.write_json(temporary / COUNTS, {"prompts": [len(row) for row in kept], "counts": dict(counts)})
            seal(temporary, of=about)
    said = json.loads((folder / COUNTS).read_bytes())
    lines = iter([msgspec.json.decode(line, type=Kept) for line in (folder / LINES).read_bytes().splitlines()])
    return [[next(lines) for _ in range(count)] for count in said["prompts"]], Counter(said["counts"])


def _sampled(
    policy: nn.Module, part: Sequence[Example], settings: Rsf, context: Context, seed: int
) -> tuple[list[list[Judged]], Counter[str]]:
    """By length, `batch_size` prompts at a time: all rows of a batch are decoded side by side."""
    kept: dict[int, list[Judged]] = {}
    counts: Counter[str] = Counter()
    order = sorted(range(len(part)), key=lambda index: len(part[index].prompt))
    for start in range(0, len(order), settings.batch_size):
        taken = order[start : start + settings.batch_size]
        around = dataclasses.replace(context, seed=derived_seed(seed, start))
        _, judged = roll([part[index] for index in taken], policy, settings, settings.samples, around)
        for index, group in zip(taken, judged, strict=True):
            kept[index], counted = best(group, settings)
            counts += counted
    return [kept[index] for index in range(len(part))], counts


def _line(example: Example, judged: Judged, end: tuple[int, ...]) -> str:
    """`end` takes the place of the line after the last one, by which an answer may have ended too: to imitate that
    would be to forget how to end."""
    row, tokens = judged.sample.row, judged.sample.tokens.tolist()
    if judged.sample.text.endswith("\n"):
        tokens[-1:] = end
    written: dict[str, Any] = {
        "message_id": row.message_id,
        "user": row.user,
        "prompt": example.prompt.tolist(),
        "completion": tokens,
        "text": judged.sample.text,
        "reward": judged.reward,
        "parts": dict(judged.parts),
    }
    return json.dumps(written, ensure_ascii=False) + "\n"
