"""Sixteen completions of one prompt, as rejection sampling asks for them, beside sixteen generations of mlx-lm's."""

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

from mlx_email.benchmarks.compare import ours, peers
from mlx_email.benchmarks.compare.grpo import TEMPERATURE
from mlx_email.benchmarks.compare.side import Goal, Job, Side, Work
from mlx_email.benchmarks.compare.workload import group
from mlx_email.model.sample import Sampling, sample

SAMPLES = 16


def run_ours(job: Job) -> None:
    policy, prompt = ours.policy(job), group(job.sizes).prompt.tolist()
    for step in range(job.total):
        (found,) = sample(
            policy,
            [prompt],
            group=SAMPLES,
            max_tokens=job.sizes.completion,
            sampling=Sampling(TEMPERATURE),
            over=lambda tokens: False,  # noqa: ARG005
            seed=step,
        )
        report(job, [completion.tokens for completion in found])


def run_peer(job: Job) -> None:
    peers.settle()
    policy, prompt = peers.policy(job), mx.array(group(job.sizes).prompt)
    policy.eval()
    sampler = make_sampler(TEMPERATURE)
    for step in range(job.total):
        mx.random.seed(step)
        tokens = [
            [int(token) for token, _ in generate_step(prompt, policy, max_tokens=job.sizes.completion, sampler=sampler)]
            for _ in range(SAMPLES)
        ]
        report(job, tokens)


def report(job: Job, completions: list[list[int]]) -> None:
    """The loss, of which there is none, is how many tokens a completion has."""
    lengths = [len(ids) for ids in completions]
    if len(lengths) != SAMPLES or set(lengths) != {job.sizes.completion}:
        raise AssertionError(f"{len(lengths)} completions of {set(lengths)} tokens")
    job.pace(float(max(lengths)), sum(lengths))


OURS, PEER = "ours", "mlx-lm, one after another"
WORK = Work(
    sides={OURS: Side(run_ours), PEER: Side(run_peer)},
    goals=(Goal("16 samples of a prompt, seconds", "seconds", OURS, (PEER,), at_least=4.0),),
    parity=None,
    notes=("prefill included; every completion has all its tokens",),
)
