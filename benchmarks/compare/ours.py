"""Our side: the package's own training loop, called nowhere else in the benchmark."""

import math
from collections.abc import Iterable
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model

from mlx_email.algorithms import Algorithm
from mlx_email.algorithms.record import Context, Prepared
from mlx_email.benchmarks.compare.keep import RATE
from mlx_email.benchmarks.compare.side import Job
from mlx_email.benchmarks.compare.workload import ADAPTER, MODEL
from mlx_email.kernels import compiling
from mlx_email.model import load, lora
from mlx_email.model.batch import Batch
from mlx_email.model.frozen import Frozen
from mlx_email.train.loop import train
from mlx_email.train.optimizer import adamw


def policy(job: Job) -> nn.Module:
    """The workload's model with its adapters, ready to be trained."""
    model, _ = load_model(job.folder / MODEL)
    load.prepare(model)
    lora.load(model, job.folder / ADAPTER)
    return model


def steps(policy: nn.Module, algorithm: Algorithm, batches: Iterable[list[Batch]], job: Job) -> None:
    """Train the policy for the job's steps."""
    results = train(
        policy,
        algorithm,
        None,
        islice(batches, job.total),
        job.keep or adamw(weight_decay=0.0),
        rate=lambda step: RATE,  # noqa: ARG005
        clip=math.inf if job.keep else 1.0,
        seed=0,
        compiled=compiling.by_default(),
    )
    for result in results:
        job.pace(result.loss, result.tokens)


def reference_of(policy: nn.Module) -> Frozen:
    """The base itself, as a reference: zeros for the adapters."""
    return Frozen({name: mx.zeros_like(array) for name, array in lora.adapter_arrays(policy).items()})


def with_reference(
    batch: list[Batch],
    policy: nn.Module,
    settings: None,  # noqa: ARG001
    context: Context,  # noqa: ARG001
) -> Prepared:
    """The `prepare` that scores the reference at every step."""
    columns = [each.arrays for each in batch]
    return Prepared([{**arrays, "ref_logps": reference_of(policy).logps(policy, arrays)} for arrays in columns])
