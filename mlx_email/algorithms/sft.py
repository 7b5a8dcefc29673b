"""Supervised fine-tuning: imitate what the owner did. G = 1 completion a prompt, the demonstrated answer."""

from typing import Any

import mlx.core as mx

from mlx_email.algorithms.record import Algorithm, Arrays
from mlx_email.kernels import losses


def loss(logps: mx.array, arrays: Arrays, settings: Any) -> losses.Loss:  # noqa: ARG001 - SFT has no coefficients
    return losses.sft(logps, arrays["completion_mask"])


SFT = Algorithm(loss=loss)
