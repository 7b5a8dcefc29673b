"""A whole step of group relative policy optimisation, beside mlx-lm-lora's trainer: rollout, reference, update."""

import dataclasses
from itertools import repeat

import mlx.nn as nn

from mlx_email.algorithms import Algorithm
from mlx_email.algorithms.record import Context, Prepared
from mlx_email.benchmarks.compare import grpo, ours, peers
from mlx_email.benchmarks.compare.side import Goal, Job, Side, Work
from mlx_email.benchmarks.compare.workload import group
from mlx_email.model.batch import Batch, collate, example
from mlx_email.model.sample import Sampling, sample


def run_ours(job: Job) -> None:
    sizes, row = job.sizes, group(job.sizes)

    def prepare(batch: list[Batch], policy: nn.Module, settings: None, context: Context) -> Prepared:
        found = sample(
            policy,
            [row.prompt.tolist()],
            group=sizes.group,
            max_tokens=sizes.completion,
            sampling=Sampling(grpo.TEMPERATURE),
            over=lambda tokens: False,  # noqa: ARG005
            seed=context.seed,
        )
        sampled = example("", row.prompt.tolist(), *(completion.tokens for completion in found[0]))
        made = collate([sampled], 1, sizes.prompt, sizes.completion)
        made.arrays["advantages"] = grpo.advantages(sizes)
        return ours.with_reference([dataclasses.replace(batch[0], arrays=made.arrays)], policy, settings, context)

    given = collate([row], 1, sizes.prompt, sizes.completion)
    ours.steps(ours.policy(job), Algorithm(loss=grpo.loss, prepare=prepare), repeat([given]), job)


def run_peer(job: Job, *, at_once: bool = False) -> None:
    grpo.run_peer(job, at_once=at_once, sampled=True)


def run_peer_at_once(job: Job) -> None:
    run_peer(job, at_once=True)


OURS, SINGLE, AT_ONCE = "ours", "mlx-lm-lora, its defaults", "mlx-lm-lora, all rows in one"
WORK = Work(
    sides={
        OURS: Side(run_ours),
        SINGLE: Side(run_peer, package=peers.MLX_LM_LORA),
        AT_ONCE: Side(run_peer_at_once, package=peers.MLX_LM_LORA),
    },
    goals=(Goal("GRPO, seconds a whole step", "seconds", OURS, (SINGLE, AT_ONCE), at_least=5.0),),
    parity=None,
    notes=(
        "rollout of eight completions of one prompt, the reference's score of them, update; rewards are given",
        "the faster of the peer's two ways counts",
    ),
)
