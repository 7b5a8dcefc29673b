"""The reward model: a backbone with adapters, and heads that read a number from a completion's last token.

FOLDER/adapters.safetensors, adapter_config.json   the backbone's adapters, as mlx-lm reads them
      /reward_head.safetensors                     the heads
      /reward_head.json                            what they are, and of which base

With several heads (members), the mean of their numbers is the reward and their spread says how sure it is.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_email import files
from mlx_email.errors import ModelError
from mlx_email.model import forward, lora, source
from mlx_email.model.arrays import fitting, read
from mlx_email.model.batch import Example, collate, example
from mlx_email.model.dropout import Dropout
from mlx_email.model.frozen import Frozen
from mlx_email.model.load import Base

HEAD = "reward_head.safetensors"
HEAD_CONFIG = "reward_head.json"
ATTRIBUTE = "reward_head"  # of a model whose head is being trained


@dataclass(frozen=True)
class HeadKind:
    """What a head is made of."""

    kind: str  # "linear", or "mlp": linear to half the width, GELU, dropout, linear to 1
    width: int  # of the hidden states
    members: int = 1
    dropout: float = 0.0  # of the mlp


class RewardHead(nn.Module):
    """Hidden states (..., D) to rewards (..., members), float32. Members begin differently and share nothing."""

    def __init__(self, kind: HeadKind) -> None:
        super().__init__()
        self.kind = kind
        self.members = [_member(kind) for _ in range(kind.members)]

    def __call__(self, hidden: mx.array) -> mx.array:
        hidden = hidden.astype(mx.float32)
        return mx.concatenate([member(hidden) for member in self.members], axis=-1)


def _member(kind: HeadKind) -> nn.Module:
    if kind.kind == "linear":
        return nn.Linear(kind.width, 1, bias=False)
    half = max(kind.width // 2, 1)
    return nn.Sequential(nn.Linear(kind.width, half), nn.GELU(), Dropout(kind.dropout), nn.Linear(half, 1))


def new_head(kind: HeadKind, seed: int) -> RewardHead:
    """A head whose numbers are a function of the seed."""
    mx.random.seed(seed)
    head = RewardHead(kind)
    mx.eval(head.parameters())
    return head


def attach(model: nn.Module, head: RewardHead) -> None:
    """Make the head a part of the model, to be trained, saved and restored with its adapters."""
    setattr(model, ATTRIBUTE, head)


def detach(model: nn.Module) -> None:
    """Undo `attach`."""
    with suppress(AttributeError):
        delattr(model, ATTRIBUTE)


def attached(model: nn.Module) -> RewardHead | None:
    """The head that is a part of the model, if one is."""
    return model.get(ATTRIBUTE)


def head_arrays(head: RewardHead) -> dict[str, mx.array]:
    """A head's arrays by their names in a model that it is attached to."""
    return {f"{ATTRIBUTE}.{name}": array for name, array in dict(tree_flatten(head.parameters())).items()}


def rewards(model: nn.Module, head: nn.Module, arrays: dict[str, mx.array]) -> mx.array:
    """The rewards (B, G, members) of a batch's completions, each read at its last real token; float32.

    Prompts are computed once, as in `forward.completion_logps`. A completion without a token is read at its prompt's
    last token.
    """
    completions = mx.pad(arrays["completions"], [(0, 0), (0, 0), (0, 1)])  # the forward path drops the last column
    path = forward.shared_hidden if forward.shares_prompts(model) else forward.full_hidden
    hidden = path(model, arrays["prompts"], arrays["prompt_lengths"], completions)  # (B, G, C + 1, D)
    last = (arrays["completion_mask"] > 0).sum(axis=-1)
    return head(mx.take_along_axis(hidden, last[..., None, None], axis=2)[:, :, 0])


@dataclass(frozen=True)
class RewardModel:
    """A trained reward model on a base that others use too: its adapters are lent to it while it scores."""

    model: nn.Module
    adapters: Frozen
    head: RewardHead

    def score(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread (standard deviation) over the members, each (G,), of a prompt's completions (token ids)."""
        scored = self.score_all([example("", prompt, *completions)], batch_size=1)[0]
        return scored.mean(axis=-1), scored.std(axis=-1)

    def score_all(self, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Every member's reward of every completion, (N, G, members) float32; all examples have G completions."""
        order = sorted(range(len(examples)), key=lambda index: _length(examples[index]))
        found = np.empty((len(examples), len(examples[0].completions), len(self.head.members)), np.float32)
        self.head.eval()
        with self.adapters.lent_to(self.model):
            for start in range(0, len(order), batch_size):
                taken = order[start : start + batch_size]
                found[taken] = np.array(rewards(self.model, self.head, _batch([examples[i] for i in taken])))
        return found


def _length(example: Example) -> int:
    return len(example.prompt) + max(map(len, example.completions))


def _batch(examples: Sequence[Example]) -> dict[str, mx.array]:
    longest = max(len(each.prompt) for each in examples)
    widest = max(len(ids) for each in examples for ids in each.completions)
    return collate(examples, len(examples), longest, max(widest, 1)).arrays


def describe(folder: Path, kind: HeadKind, base: str) -> None:
    """Write what the reward model in a folder is; `base`: the fingerprint of the base model it belongs to."""
    about = {"kind": kind.kind, "width": kind.width, "members": kind.members, "dropout": kind.dropout, "base": base}
    sums = {name: files.sha256(folder / name) for name in (HEAD, lora.ADAPTERS, lora.ADAPTER_CONFIG)}
    files.write_json(folder / HEAD_CONFIG, {**about, "sha256": sums})


def about(folder: Path) -> tuple[HeadKind, str]:
    """What the reward model in a folder is, and the fingerprint of its base, after every byte of it has been compared
    with reward_head.json. Raises ModelError naming the file that lacks or differs."""
    if not (folder / HEAD_CONFIG).is_file():
        raise ModelError(f"{folder} holds no reward model: it has no {HEAD_CONFIG}")
    said: dict[str, Any] = source.read_object(folder / HEAD_CONFIG)
    for name in (HEAD, lora.ADAPTERS, lora.ADAPTER_CONFIG):
        there = (folder / name).is_file() and files.sha256(folder / name)
        if not there or said.get("sha256", {}).get(name) != there:
            raise ModelError(f"{folder / name} is damaged: it is not what {HEAD_CONFIG} says")
    try:
        kind = HeadKind(said["kind"], said["width"], said["members"], said["dropout"])
        shapes = {name: array.shape for name, array in head_arrays(RewardHead(kind)).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / HEAD_CONFIG} does not describe a head: {error}") from error
    if {name: array.shape for name, array in read(folder / HEAD).items()} != shapes:
        raise ModelError(f"{folder / HEAD_CONFIG} does not describe the head in {HEAD}")
    return kind, str(said.get("base"))


def load(base: Base, folder: Path) -> RewardModel:
    """The reward model of a stage's folder. The base has adapters of the same kind, or none yet; then it gets idle ones
    (of DoRA those of the reward model).

    Raises ModelError where the folder holds none, is damaged, or belongs to another base model.
    """
    kind, of = about(folder)
    if of != source.fingerprint(base.folder):
        raise ModelError(f"{folder}: its reward model belongs to another base model than {base.folder}")
    head = RewardHead(kind)
    held = fitting(folder / HEAD, head_arrays(head))
    head.update(tree_unflatten([(name.removeprefix(f"{ATTRIBUTE}."), array) for name, array in held.items()]))
    fresh = not lora.adapter_arrays(base.model)
    if fresh:
        lora.load(base.model, folder)
    lora.same_kind(base.model, source.read_object(folder / lora.ADAPTER_CONFIG))
    adapters = Frozen(fitting(folder / lora.ADAPTERS, lora.adapter_arrays(base.model)))
    if fresh:  # the base goes on as the base
        Frozen({n: mx.zeros_like(a) if n.endswith("lora_b") else a for n, a in adapters.arrays.items()}).put_on(
            base.model
        )
    return RewardModel(base.model, adapters, head)
