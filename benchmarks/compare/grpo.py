"""The update of group relative policy optimisation on given completions, beside mlx-lm-lora's trainer."""

from itertools import repeat
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_email.algorithms import Algorithm
from mlx_email.algorithms.record import Arrays
from mlx_email.benchmarks.compare import ours, peers
from mlx_email.benchmarks.compare.side import Goal, Job, Side, Work
from mlx_email.benchmarks.compare.workload import Sizes, group, rewards
from mlx_email.kernels import losses
from mlx_email.kernels.losses import Loss
from mlx_email.model.batch import collate

BETA, EPSILON = 0.1, 1e-4  # the peer's defaults
TEMPERATURE = 0.8


def loss(logps: mx.array, arrays: Arrays, settings: None) -> Loss:  # noqa: ARG001
    def rows(array: mx.array) -> mx.array:
        return array.reshape(-1, array.shape[-1])

    return losses.grpo(
        rows(logps),
        None,  # the first update after a rollout: the old policy is the policy, as the peer takes for granted
        rows(arrays["ref_logps"]),
        rows(arrays["completion_mask"]),
        arrays["advantages"],
        beta=BETA,
        epsilon_low=EPSILON,
        epsilon_high=EPSILON,
    )


def run_ours(job: Job) -> None:
    sizes = job.sizes
    batch = collate([group(sizes)], 1, sizes.prompt, sizes.completion)
    batch.arrays["advantages"] = advantages(sizes)
    ours.steps(ours.policy(job), Algorithm(loss=loss, prepare=ours.with_reference), repeat([batch]), job)


def advantages(sizes: Sizes) -> mx.array:
    """As the peer makes them: over the population's standard deviation, where TRL and we take the sample's."""
    values = np.array(rewards(sizes))
    return mx.array((values - values.mean()) / (values.std() + 1e-4), mx.float32)


def run_peer(job: Job, *, at_once: bool = False, sampled: bool = False) -> None:
    """`sampled`: with its own rollout; else it is handed completions where it would sample them."""
    trainer = peers.module("grpo_trainer")
    sizes, row = job.sizes, group(job.sizes)
    completions = [mx.array(ids) for ids in row.completions]
    rollout = (completions, [""] * sizes.group, [0] * sizes.group)
    if not sampled:
        setattr(trainer, "generate_grpo", lambda **_: rollout)  # noqa: B010 - a type checker knows no such attribute

    def objective(*args: Any, **options: Any) -> Any:
        return trainer.grpo_loss(*args, **options)

    def given(**_: Any) -> list[float]:
        return rewards(sizes)

    trainer.train_grpo(
        peers.policy(job),
        peers.base(job),
        peers.TOKENIZER,
        peers.optimizer(job),
        [(row.prompt.tolist(), [], "", "")],
        reward_funcs=[given],
        args=trainer.GRPOTrainingArgs(
            **peers.settings(job, batch_size=1),
            group_size=sizes.group,
            beta=BETA,
            epsilon=EPSILON,
            max_completion_length=sizes.completion,
            temperature=TEMPERATURE,
        ),
        end_answer_token="",
        # It cuts the group into micro-batches of as many rows as there are prompts, but for a loss not its own.
        loss_fn=objective if at_once else trainer.grpo_loss,
        training_callback=peers.EachStep(job, lambda: sizes.group * sizes.completion),
    )


def run_peer_at_once(job: Job) -> None:
    run_peer(job, at_once=True)


OURS, SINGLE, AT_ONCE = "ours", "mlx-lm-lora, 1 row a micro-batch", "mlx-lm-lora, all rows in one"
WORK = Work(
    sides={
        OURS: Side(run_ours),
        SINGLE: Side(run_peer, package=peers.MLX_LM_LORA),
        AT_ONCE: Side(run_peer_at_once, package=peers.MLX_LM_LORA),
    },
    goals=(
        Goal("GRPO, seconds an update", "seconds", OURS, (SINGLE, AT_ONCE), at_least=8.0),
        Goal("GRPO, peak memory", "peak", OURS, (AT_ONCE,), at_least=4.0),
        Goal("GRPO, the same beyond weights", "beyond", OURS, (AT_ONCE,)),
        Goal("GRPO, peak, 1 row a micro-batch", "peak", OURS, (SINGLE,)),
    ),
    parity=(OURS, AT_ONCE),
    notes=(
        "the update only, on one prompt and given completions; the faster of the peer's two ways counts",
        "the reference is scored in every update on both sides; the peer holds a second copy of the model for it",
    ),
)
