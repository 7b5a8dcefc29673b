"""Makes the tiny model that ships with the package: `python -m mlx_email.synth.pretrain --out DIR`.

A Qwen2 of about a million parameters learns `lessons` from scratch, in float32, for some minutes of wall-clock; then
its matrices become 4-bit ones and it is saved as an mlx-lm folder. The scales stay float32: on the CPU backend half
precision is a thousand times slower. Two runs differ, since the number of steps depends on the machine.
"""

import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import mlx_email  # noqa: F401  loads the fast BLAS, which must come before mlx

# isort: split
import click
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.qwen2 import Model, ModelArgs
from mlx_lm.utils import quantize_model
from tokenizers import Tokenizer

from mlx_email.errors import UserError
from mlx_email.synth import tokenizer as tiny_tokenizer
from mlx_email.synth.lessons import CHOICES, Lesson, lessons, said_of

VOCABULARY = 2048
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 384,
    "num_attention_heads": 2,  # few: exp is slow on the CPU backend, and attention takes one a head, pair of tokens
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
GROUP_SIZE, BITS = 32, 4
TOKENIZER_LESSONS = 6000  # conversations that the tokenizer is learnt from
POOL, BATCH = 512, 8  # conversations sorted by length at a time; in a batch
READ_WHOLE = 0.1  # share of conversations whose every token is learnt, not the answers alone
PEAK_RATE, WARM_UP = 2.5e-3, 0.03  # of AdamW; the share of the time in which the rate rises
WEIGHT_DECAY, CLIP = 0.05, 1.0
READING_WEIGHT = 2.0  # of the readers' loss beside that of the tokens


class Encoded(NamedTuple):
    """A ChatML conversation as token ids."""

    ids: list[int]
    answered: list[bool]  # of the answers, their end tokens included
    before_action: int  # position of the token after which the action is said
    facts: list[int]  # index into CHOICES[key], for every key in order


class Batch(NamedTuple):
    """Some lessons, padded on the right to the longest."""

    tokens: mx.array  # (B, L)
    positions: mx.array  # (N,) flat positions after which a token is to be learnt
    before_action: mx.array  # (B,) flat positions
    facts: mx.array  # (B, 6)


class Readers(nn.Module):
    """Linear heads that say each fact from a hidden state; thrown away after pre-training."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = [nn.Linear(CONFIG["hidden_size"], len(choices)) for choices in CHOICES.values()]

    def __call__(self, hidden: mx.array) -> list[mx.array]:
        hidden = mx.fast.rms_norm(hidden, None, 1e-6)
        return [head(hidden) for head in self.heads]


class Pupil(nn.Module):
    """What is trained: the model, and the heads that make it gather what it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.language = Model(ModelArgs.from_dict(CONFIG))
        self.readers = Readers()


def encode(tokenizer: Tokenizer, lesson: Lesson) -> Encoded:
    """Token ids of a lesson's conversation, and what is to be learnt where."""
    ids: list[int] = []
    answered: list[bool] = []

    def add(text: str, learn: bool) -> None:
        tokens = tokenizer.encode(text).ids
        ids.extend(tokens)
        answered.extend([learn] * len(tokens))

    for turn in lesson.turns:
        add(f"<|im_start|>user\n{turn.question}<|im_end|>\n<|im_start|>assistant\n", False)
        add(f"{turn.answer}<|im_end|>", True)
        add("\n", False)
    right = said_of(lesson.facts)
    facts = [CHOICES[key].index(right[key]) for key in CHOICES]
    return Encoded(ids, answered, answered.index(True) + len(tokenizer.encode("Action:").ids) - 1, facts)


def batches(tokenizer: Tokenizer, rng: Random) -> Iterator[Batch]:
    """Batches of lessons of similar length, without end."""
    source = lessons(rng)
    while True:
        pool = sorted((encode(tokenizer, lesson) for lesson in islice(source, POOL)), key=lambda one: len(one.ids))
        starts = list(range(0, POOL, BATCH))
        rng.shuffle(starts)
        for start in starts:
            rows = pool[start : start + BATCH]
            width = max(len(row.ids) for row in rows)
            tokens = np.zeros((BATCH, width), np.int32)
            learn = np.zeros((BATCH, width), bool)
            for line, row in enumerate(rows):
                tokens[line, : len(row.ids)] = row.ids
                learn[line, : len(row.ids)] = True if rng.random() < READ_WHOLE else row.answered
            learn[:, 0] = False  # nothing comes before it
            before_action = np.array([row.before_action for row in rows]) + width * np.arange(BATCH)
            yield Batch(
                mx.array(tokens),
                mx.array(np.flatnonzero(learn) - 1),
                mx.array(before_action),
                mx.array(np.array([row.facts for row in rows])),
            )


def loss_of(pupil: Pupil, batch: Batch) -> tuple[mx.array, mx.array]:
    """Mean cross-entropy of the tokens to be learnt, and the readers' mean over facts, both in nats.

    Only the positions to be learnt meet the vocabulary. The readers look before the last layer, which is then left
    for what is to be done with the facts.
    """
    model = pupil.language.model
    hidden = model.embed_tokens(batch.tokens)
    mask = create_attention_mask(hidden, None)
    for layer in model.layers[:-1]:
        hidden = layer(hidden, mask)
    size = hidden.shape[-1]
    said = pupil.readers(hidden.reshape(-1, size)[batch.before_action])
    losses = [nn.losses.cross_entropy(logits, batch.facts[:, number]) for number, logits in enumerate(said)]
    reading = mx.stack(losses).mean()
    hidden = model.norm(model.layers[-1](hidden, mask))
    logits = model.embed_tokens.as_linear(hidden.reshape(-1, size)[batch.positions])
    writing = nn.losses.cross_entropy(logits, batch.tokens.reshape(-1)[batch.positions + 1], reduction="mean")
    return writing + READING_WEIGHT * reading, mx.stack([writing, reading])


def rate(progress: float) -> float:
    """Learning rate after a share `progress` of the time: linear warm-up, then a cosine to a hundredth."""
    if progress < WARM_UP:
        return PEAK_RATE * progress / WARM_UP
    share = min(1.0, (progress - WARM_UP) / (1 - WARM_UP))
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def train(tokenizer: Tokenizer, minutes: float, seed: int) -> Model:
    """A float32 model after `minutes` of lessons."""
    mx.random.seed(seed)
    pupil = Pupil()
    mx.eval(pupil.parameters())
    optimizer = optim.AdamW(learning_rate=0.0, weight_decay=WEIGHT_DECAY, betas=[0.9, 0.98], bias_correction=True)
    step_of = nn.value_and_grad(pupil, loss_of)
    begin = time.monotonic()
    tokens_seen = 0
    recent: list[np.ndarray] = []
    for step, batch in enumerate(batches(tokenizer, Random(f"pretrain {seed}")), start=1):
        elapsed = time.monotonic() - begin
        if elapsed > minutes * 60:
            break
        optimizer.learning_rate = rate(elapsed / (minutes * 60))
        (_, parts), gradient = step_of(pupil, batch)
        gradient, _ = optim.clip_grad_norm(gradient, CLIP)
        optimizer.update(pupil, gradient)
        mx.eval(parts, pupil.parameters(), optimizer.state)
        tokens_seen += batch.tokens.size
        recent.append(np.array(parts))
        if step % 100 == 0:
            speed = tokens_seen / (time.monotonic() - begin)
            writing, reading = np.mean(recent[-100:], axis=0)
            line = f"{elapsed / 60:5.1f} min  step {step:5d}  writing {writing:.4f}  reading {reading:.4f}"
            click.echo(f"{line}  {speed:.0f} tokens/s", err=True)
    return pupil.language


def save(model: Model, tokenizer: Tokenizer, out: Path) -> None:
    """Quantise `model` and write the folder."""
    end, pad = (tokenizer.token_to_id(token) for token in (tiny_tokenizer.IM_END, tiny_tokenizer.PAD))
    config = {**CONFIG, "eos_token_id": end, "pad_token_id": pad}
    quantized, config = quantize_model(model, config, GROUP_SIZE, BITS)
    mx.save_safetensors(str(out / "model.safetensors"), dict(tree_flatten(quantized.parameters())), {"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    tiny_tokenizer.save(tokenizer, out)


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the model.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=15.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(out: Path, minutes: float, seed: int) -> None:
    """Pre-train the tiny model on synthetic mail and write it to --out as an mlx-lm folder."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not an empty folder: name a new one")
    out.mkdir(parents=True, exist_ok=True)
    conversations = islice(lessons(Random(f"tokenizer {seed}")), TOKENIZER_LESSONS)
    texts = (f"{turn.question}\n{turn.answer}\n" for lesson in conversations for turn in lesson.turns)
    tokenizer = tiny_tokenizer.learn(texts, VOCABULARY)
    save(train(tokenizer, minutes, seed), tokenizer, out)


if __name__ == "__main__":
    main()
