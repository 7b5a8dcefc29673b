"""The five actions of each prompt scored exactly, beside generating an answer to it, which says one of them."""

import importlib

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from mlx_email.benchmarks.compare import ours, peers
from mlx_email.benchmarks.compare.rollout import prompts
from mlx_email.benchmarks.compare.side import Goal, Job, Side, Work
from mlx_email.benchmarks.compare.workload import FIRST_TOKEN, Sizes
from mlx_email.labels.schema import ACTIONS
from mlx_email.model.batch import collate, example
from mlx_email.model.forward import completion_logps

LINE = 5  # tokens of an action's line, as most tokenizers have it


def lines(sizes: Sizes) -> list[list[int]]:
    """Of each action, one token a line apart from the others."""
    rng = np.random.default_rng(5)
    return [rng.integers(FIRST_TOKEN, sizes.vocabulary, LINE).tolist() for _ in ACTIONS]


def run_ours(job: Job) -> None:
    policy, sizes = ours.policy(job), job.sizes
    policy.eval()
    examples = [example("", prompt, *lines(sizes)) for prompt in prompts(sizes)]
    batch = collate(examples, len(examples), sizes.prompt, LINE).arrays
    inputs = [batch[name] for name in ("prompts", "prompt_lengths", "completions", "completion_mask")]
    for _ in range(job.total):
        logps = completion_logps(policy, *inputs, gradient=False).sum(axis=-1)
        job.pace(float(logps.mean()), logps.size)


def run_peer(job: Job) -> None:
    """Greedily, one prompt after another, as its command does."""
    peers.settle()
    policy = peers.policy(job)
    policy.eval()
    for _ in range(job.total):
        found = [
            [int(token) for token, _ in generate_step(mx.array(prompt), policy, max_tokens=job.sizes.completion)]
            for prompt in prompts(job.sizes)
        ]
        report(job, found)


def run_batches(job: Job) -> None:
    """All prompts side by side."""
    peers.settle()
    policy = peers.policy(job)
    policy.eval()
    batch_generate = importlib.import_module("mlx_lm.generate").batch_generate
    for _ in range(job.total):
        found = batch_generate(
            policy, peers.TOKENIZER, prompts(job.sizes), max_tokens=job.sizes.completion, return_token_ids=True
        )
        report(job, found.token_ids or [])


def report(job: Job, answers: list[list[int]]) -> None:
    """The loss, of which there is none, is how many tokens an answer has."""
    lengths = [len(ids) for ids in answers]
    if len(lengths) != job.sizes.pairs or set(lengths) != {job.sizes.completion}:
        raise AssertionError(f"{len(lengths)} answers of {set(lengths)} tokens")
    job.pace(float(max(lengths)), sum(lengths))


OURS, PEER, BATCHES = "ours", "mlx-lm, one after another", "mlx-lm, batch_generate"
WORK = Work(
    sides={OURS: Side(run_ours), PEER: Side(run_peer), BATCHES: Side(run_batches)},
    goals=(
        Goal("scoring five actions, seconds", "seconds", OURS, (PEER,), at_least=8.0),
        Goal("scoring, seconds, batches", "seconds", OURS, (BATCHES,)),
        Goal("scoring, peak memory", "peak", OURS, (PEER,)),
    ),
    parity=None,
    notes=("a step is four prompts; what is generated says one action, without its probability",),
)
