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

import mlx_email  # noqa: F401  loads the fast BLAS, which must come before mlx

# isort: split
import click
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.qwen2 import Model, ModelArgs
from mlx_lm.utils import quantize_model
from tokenizers import Tokenizer

from mlx_email.errors import UserError
from mlx_email.synth import tokenizer as tiny_tokenizer
from mlx_email.synth.lessons import Turn, lessons

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
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
PEAK_RATE, WARM_UP = 2e-3, 0.03  # of AdamW; the share of the time in which the rate rises
WEIGHT_DECAY, CLIP = 0.05, 1.0


def encode(tokenizer: Tokenizer, turns: list[Turn]) -> tuple[list[int], list[bool]]:
    """Token ids of a ChatML conversation, and which of them are an answer's (its end token included)."""
    ids: list[int] = []
    answered: list[bool] = []

    def add(text: str, learn: bool) -> None:
        tokens = tokenizer.encode(text).ids
        ids.extend(tokens)
        answered.extend([learn] * len(tokens))

    for turn in turns:
        add(f"<|im_start|>user\n{turn.question}<|im_end|>\n<|im_start|>assistant\n", False)
        add(f"{turn.answer}<|im_end|>", True)
        add("\n", False)
    return ids, answered


def batches(tokenizer: Tokenizer, rng: Random) -> Iterator[tuple[mx.array, mx.array]]:
    """Inputs (B, L), padded, and the flat positions (N,) in them after which a token is to be learnt."""
    source = lessons(rng)
    while True:
        pool = []
        for turns in islice(source, POOL):
            ids, answered = encode(tokenizer, turns)
            pool.append((ids, [True] * len(ids) if rng.random() < READ_WHOLE else answered))
        pool.sort(key=lambda item: len(item[0]))
        starts = list(range(0, POOL, BATCH))
        rng.shuffle(starts)
        for start in starts:
            rows = pool[start : start + BATCH]
            width = max(len(ids) for ids, _ in rows)
            tokens = np.zeros((BATCH, width), np.int32)
            learn = np.zeros((BATCH, width), bool)
            for line, (ids, chosen) in enumerate(rows):
                tokens[line, : len(ids)] = ids
                learn[line, : len(ids)] = chosen
            learn[:, 0] = False  # nothing comes before it
            yield mx.array(tokens), mx.array(np.flatnonzero(learn) - 1)


def loss_of(model: Model, tokens: mx.array, positions: mx.array) -> mx.array:
    """Mean cross-entropy in nats; only the positions to be learnt meet the vocabulary."""
    hidden = model.model(tokens)
    hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
    logits = model.model.embed_tokens.as_linear(hidden)
    return nn.losses.cross_entropy(logits, tokens.reshape(-1)[positions + 1], reduction="mean")


def rate(progress: float) -> float:
    """Learning rate after a share `progress` of the time: linear warm-up, then a cosine to a hundredth."""
    if progress < WARM_UP:
        return PEAK_RATE * progress / WARM_UP
    share = min(1.0, (progress - WARM_UP) / (1 - WARM_UP))
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def train(tokenizer: Tokenizer, minutes: float, seed: int) -> Model:
    """A float32 model after `minutes` of lessons."""
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(CONFIG))
    mx.eval(model.parameters())
    optimizer = optim.AdamW(learning_rate=0.0, weight_decay=WEIGHT_DECAY, betas=[0.9, 0.98], bias_correction=True)
    step_of = nn.value_and_grad(model, loss_of)
    begin = time.monotonic()
    step = tokens_seen = 0
    recent: list[float] = []
    for tokens, positions in batches(tokenizer, Random(f"pretrain {seed}")):
        elapsed = time.monotonic() - begin
        if elapsed > minutes * 60:
            break
        optimizer.learning_rate = rate(elapsed / (minutes * 60))
        loss, gradient = step_of(model, tokens, positions)
        gradient, _ = optim.clip_grad_norm(gradient, CLIP)
        optimizer.update(model, gradient)
        mx.eval(loss, model.parameters(), optimizer.state)
        step += 1
        tokens_seen += tokens.size
        recent.append(loss.item())
        if step % 100 == 0:
            speed = tokens_seen / (time.monotonic() - begin)
            mean = sum(recent[-100:]) / 100
            click.echo(f"{elapsed / 60:5.1f} min  step {step:5d}  loss {mean:.4f}  {speed:.0f} tokens/s", err=True)
    return model


def save(model: Model, tokenizer: Tokenizer, out: Path) -> None:
    """Quantise `model` and write the folder."""
    end, pad = (tokenizer.token_to_id(token) for token in (tiny_tokenizer.IM_END, tiny_tokenizer.PAD))
    config = {**CONFIG, "eos_token_id": end, "pad_token_id": pad}
    model, config = quantize_model(model, config, GROUP_SIZE, BITS)
    mx.save_safetensors(str(out / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
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
    texts = (f"{turn.question}\n{turn.answer}\n" for turns in conversations for turn in turns)
    tokenizer = tiny_tokenizer.learn(texts, CONFIG["vocab_size"])
    save(train(tokenizer, minutes, seed), tokenizer, out)


if __name__ == "__main__":
    main()
