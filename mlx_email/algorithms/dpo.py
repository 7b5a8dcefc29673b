"""Direct preference optimisation. G = 2 completions a prompt: the chosen answer, then the rejected one."""

import mlx.core as mx

from mlx_email.algorithms.record import Algorithm, Arrays, always
from mlx_email.config import Dpo
from mlx_email.kernels import losses


def loss(logps: mx.array, arrays: Arrays, settings: Dpo) -> losses.Loss:
    reference, mask = arrays["ref_logps"], arrays["completion_mask"]
    return losses.dpo(
        logps[:, 0],
        logps[:, 1],
        reference[:, 0],
        reference[:, 1],
        mask[:, 0],
        mask[:, 1],
        loss_type=settings.loss_type,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        discopop_tau=settings.discopop_tau,
        ld_alpha=settings.ld_alpha,
    )


DPO = Algorithm(loss=loss, reference=always)
