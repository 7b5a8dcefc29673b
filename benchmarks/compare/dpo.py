"""Direct preference optimisation on pairs that share a prompt, beside mlx-lm-lora's trainer."""

from itertools import repeat

import mlx.core as mx

from mlx_email.algorithms import Algorithm
from mlx_email.algorithms.record import Arrays
from mlx_email.benchmarks.compare import ours, peers
from mlx_email.benchmarks.compare.side import Goal, Job, Side, Work
from mlx_email.benchmarks.compare.workload import pairs
from mlx_email.kernels import losses
from mlx_email.kernels.losses import Loss
from mlx_email.model.batch import collate

BETA = 0.1  # the default of all sides


def loss(logps: mx.array, arrays: Arrays, settings: None) -> Loss:  # noqa: ARG001
    reference, mask = arrays["ref_logps"], arrays["completion_mask"]
    return losses.dpo(
        logps[:, 0],
        logps[:, 1],
        reference[:, 0],
        reference[:, 1],
        mask[:, 0],
        mask[:, 1],
        loss_type="sigmoid",
        beta=BETA,
    )


def run_ours(job: Job, *, cached: bool = False) -> None:
    sizes = job.sizes
    batch = collate(pairs(sizes), sizes.pairs, sizes.prompt, sizes.completion)
    policy = ours.policy(job)
    algorithm = Algorithm(loss=loss, prepare=ours.with_reference)
    if cached:
        batch.arrays["ref_logps"] = ours.reference_of(policy).logps(policy, batch.arrays)
        algorithm = Algorithm(loss=loss)
    ours.steps(policy, algorithm, repeat([batch]), job)


def run_cached(job: Job) -> None:
    run_ours(job, cached=True)


def run_peer(job: Job) -> None:
    trainer = peers.module("dpo_trainer")
    sizes = job.sizes
    rows = [
        {
            "chosen": [*row.prompt.tolist(), *row.completions[0].tolist()],
            "rejected": [*row.prompt.tolist(), *row.completions[1].tolist()],
            "chosen_prompt_length": len(row.prompt),
            "rejected_prompt_length": len(row.prompt),
        }
        for row in pairs(sizes)
    ]
    trainer.train_dpo(
        peers.policy(job),
        peers.base(job),
        peers.optimizer(job),
        rows,
        args=trainer.DPOTrainingArgs(**peers.settings(job, sizes.pairs), beta=BETA),
        training_callback=peers.EachStep(job, lambda: 2 * sizes.pairs * sizes.completion),
    )


OURS, CACHED, PEER = "ours", "ours, reference cached", "mlx-lm-lora"
WORK = Work(
    sides={OURS: Side(run_ours), CACHED: Side(run_cached), PEER: Side(run_peer, package=peers.MLX_LM_LORA)},
    goals=(
        Goal("DPO, seconds a step", "seconds", CACHED, (PEER,), at_least=4.0),
        Goal("DPO, reference in every step", "seconds", OURS, (PEER,)),
        Goal("DPO, peak memory", "peak", OURS, (PEER,)),
    ),
    parity=(OURS, PEER),
    notes=(
        "the peer scores the reference in every step; our DPO stage does it once an example, before the first step, "
        "which is not in the first line; in the second both do it in every step",
    ),
)
