"""Supervised fine-tuning on rows of mail's lengths, beside mlx-lm's own LoRA trainer."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.tuner import trainer
from mlx_lm.tuner.datasets import CacheDataset

from mlx_email.algorithms.sft import SFT
from mlx_email.benchmarks.compare import ours, peers
from mlx_email.benchmarks.compare.side import Goal, Job, Side, Work
from mlx_email.benchmarks.compare.workload import Sizes, demonstrations
from mlx_email.model.batch import Example
from mlx_email.train.batches import plan, steps

PAD = 0


def run_ours(job: Job) -> None:
    examples = demonstrations(job.sizes)
    if job.keep:
        examples = [_with_pad(example) for example in examples[: job.sizes.batch]]
    cut = plan(examples, job.sizes.batch)
    warming = islice(steps(examples, cut, 1, seed=0), job.warmup)
    # Repetitions are whole epochs: lengths differ from step to step.
    ours.steps(ours.policy(job), SFT, chain(warming, steps(examples, cut, 1, seed=0, start=cut.batches)), job)


def run_peer(job: Job) -> None:
    examples = demonstrations(job.sizes)[: job.sizes.batch if job.keep else None]
    rows = _Rows({"prompt": row.prompt.tolist(), "completion": row.completions[0].tolist()} for row in examples)
    tokens: list[int] = []

    def batches(*args: Any, **options: Any) -> Iterator[tuple[mx.array, mx.array]]:
        options["loop"] = False
        epochs = [trainer.iterate_batches(*args, **options) for _ in range(job.repetitions)]
        for batch, lengths in chain(islice(trainer.iterate_batches(*args, **options), job.warmup), *epochs):
            tokens.append(int((lengths[:, 1] - lengths[:, 0]).sum().item()))
            yield batch, lengths

    peers.settle()
    np.random.seed(0)  # what it shuffles with
    trainer.train(
        peers.policy(job),
        peers.optimizer(job),
        CacheDataset(rows),
        args=trainer.TrainingArgs(
            **peers.settings(job, job.sizes.batch),
            # Its default frees all cached memory after every step, which costs time on a GPU.
            clear_cache_threshold=1 << 50,
        ),
        iterate_batches=batches,
        training_callback=peers.EachStep(job, lambda: tokens[-1]),
    )


def _with_pad(example: Example) -> Example:
    """With one token of padding to be predicted after the answer, as mlx-lm's mask has it."""
    return replace(example, completions=tuple(np.append(ids, np.int32(PAD)) for ids in example.completions))


class _Rows(list):
    """As mlx-lm's CompletionsDataset: rows are dictionaries, `process` gives (tokens, length of the prompt)."""

    def process(self, row: dict[str, list[int]]) -> tuple[list[int], int]:
        return row["prompt"] + row["completion"], len(row["prompt"])


def _epoch(sizes: Sizes) -> int:
    return plan(demonstrations(sizes), sizes.batch).batches


OURS, PEER = "ours", "mlx-lm"
WORK = Work(
    sides={
        OURS: Side(run_ours, steps=_epoch),
        PEER: Side(run_peer, steps=lambda sizes: sizes.rows // sizes.batch),
    },
    goals=(
        Goal("SFT, real supervised tokens/s", "speed", OURS, (PEER,), at_least=2.5),
        Goal("SFT, peak memory", "peak", OURS, (PEER,)),
    ),
    parity=(OURS, PEER),
    repetitions=lambda sizes: sizes.epochs,
    notes=(
        "a repetition is an epoch; tokens are those of the answers, counted alike on both sides",
        "mlx-lm trains on one token of padding a row; for the parity that token is added to our answers",
    ),
)
