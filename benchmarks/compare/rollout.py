"""Completions of prompts by sampling, eight of each, beside the rollout of mlx-lm-lora's GRPO and mlx-lm's batches."""

import importlib

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler

from mlx_email.benchmarks.compare import ours, peers
from mlx_email.benchmarks.compare.grpo import TEMPERATURE
from mlx_email.benchmarks.compare.side import Goal, Job, Side, Work
from mlx_email.benchmarks.compare.workload import Sizes, pairs
from mlx_email.model.sample import Sampling, sample


def prompts(sizes: Sizes) -> list[list[int]]:
    return [row.prompt.tolist() for row in pairs(sizes)]


def run_ours(job: Job) -> None:
    policy = ours.policy(job)
    for step in range(job.total):
        found = sample(
            policy,
            prompts(job.sizes),
            group=job.sizes.group,
            max_tokens=job.sizes.completion,
            sampling=Sampling(TEMPERATURE),
            over=lambda tokens: False,  # noqa: ARG005
            seed=step,
        )
        report(job, [completion.tokens for row in found for completion in row])


def run_lora(job: Job) -> None:
    """With the batch size of its command by default, 1: so many rows at a time."""
    roll_lora(job, size=1)


def run_lora_trainer(job: Job) -> None:
    """With that of its trainer's arguments by default."""
    roll_lora(job, size=peers.module("grpo_trainer").GRPOTrainingArgs().batch_size)


def roll_lora(job: Job, size: int) -> None:
    trainer, sizes = peers.module("grpo_trainer"), job.sizes
    policy = peers.policy(job)
    for step in range(job.total):
        mx.random.seed(step)
        options = {"temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "end_token": ""}
        found, _, _ = trainer.generate_grpo(
            policy, peers.TOKENIZER, prompts(sizes), sizes.completion, sizes.group, size, **options
        )
        report(job, [ids.tolist() for ids in found])


def run_batches(job: Job) -> None:
    """Every prompt given as often as it has completions."""
    peers.settle()
    policy, sizes = peers.policy(job), job.sizes
    policy.eval()
    copies = [prompt for prompt in prompts(sizes) for _ in range(sizes.group)]
    # The package's name for it is that of a function too.
    batch_generate = importlib.import_module("mlx_lm.generate").batch_generate
    for step in range(job.total):
        mx.random.seed(step)
        sampler = make_sampler(TEMPERATURE)
        found = batch_generate(
            policy, peers.TOKENIZER, copies, max_tokens=sizes.completion, sampler=sampler, return_token_ids=True
        )
        report(job, found.token_ids or [])


def report(job: Job, completions: list[list[int]]) -> None:
    """The loss, of which there is none, is how many tokens a completion has."""
    lengths = [len(ids) for ids in completions]
    if len(lengths) != job.sizes.pairs * job.sizes.group or set(lengths) != {job.sizes.completion}:
        raise AssertionError(f"{len(lengths)} completions of {set(lengths)} tokens")
    job.pace(float(max(lengths)), sum(lengths))


OURS, LORA, LORA_TRAINER = "ours", "mlx-lm-lora, its command's", "mlx-lm-lora, its trainer's"
BATCHES = "mlx-lm, batch_generate"
WORK = Work(
    sides={
        OURS: Side(run_ours),
        LORA: Side(run_lora, package=peers.MLX_LM_LORA),
        LORA_TRAINER: Side(run_lora_trainer, package=peers.MLX_LM_LORA),
        BATCHES: Side(run_batches),
    },
    goals=(
        Goal("rollout, seconds, 1 row at a time", "seconds", OURS, (LORA,), at_least=3.0),
        Goal("rollout, seconds, 4 rows", "seconds", OURS, (LORA_TRAINER,)),
        Goal("rollout, seconds, mlx-lm's batches", "seconds", OURS, (BATCHES,), at_least=1.5),
        Goal("rollout, peak memory", "peak", OURS, (BATCHES,)),
    ),
    parity=None,
    notes=(
        "a step is a rollout of four prompts, prefill included; every completion has all its tokens",
        "mlx-lm-lora decodes as many rows at a time as its batch size: 1 by its command's default, 4 by its trainer's",
    ),
)
