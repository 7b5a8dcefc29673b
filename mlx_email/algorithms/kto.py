"""Kahneman-Tversky optimisation. G = 1 completion a prompt, with the number `desirable`: 1, or 0 where it is not.

Its point of reference, KL, is estimated on completions that belong to other prompts: the step's completions, moved on
by one prompt over all its micro-batches.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_email.algorithms.record import Algorithm, Arrays, Context, Prepared, always
from mlx_email.config import Kto
from mlx_email.kernels import losses
from mlx_email.model.batch import Batch
from mlx_email.model.frozen import Frozen


def prepare(batch: list[Batch], policy: nn.Module, settings: Kto, context: Context) -> Prepared:
    """Adds `kl` (1,): the mean log-ratio, policy to reference, of completions after prompts that they do
    not belong to, nats a completion; 0 where a step has only one prompt, or the loss does not ask for it."""
    columns, reference = [each.arrays for each in batch], context.reference
    if not asks_for_kl(settings) or (rotated := rotate(columns)) is None:
        return Prepared([{**arrays, "kl": mx.zeros((1,))} for arrays in columns])
    if reference is None:
        raise AssertionError("KTO asks for the reference policy")
    now = Frozen.of(policy)  # in eval mode, as the reference
    sums = mx.array(0.0)
    for arrays in rotated:
        sums = sums + (now.logps(policy, arrays) - reference.logps(policy, arrays)).sum()
        mx.eval(sums)
    kl = (sums / sum(arrays["completion_mask"].any(axis=-1).sum() for arrays in columns))[None]
    mx.eval(kl)
    return Prepared([{**arrays, "kl": kl} for arrays in columns])


def asks_for_kl(settings: Kto) -> bool:
    """Whether the loss has the point of reference."""
    return settings.loss_type == "kto"


def rotate(batch: list[Arrays]) -> list[Arrays] | None:
    """The micro-batches with every prompt followed by the completion of the nearest example before it that has another
    prompt, the first one's by the last's; rows of padding stay empty. None where all have the same prompt."""
    masks = [np.array(arrays["completion_mask"]) > 0 for arrays in batch]  # (B, 1, C)
    tokens = [np.array(arrays["completions"]) for arrays in batch]
    places = [(number, row) for number, mask in enumerate(masks) for row in np.flatnonzero(mask.any(axis=(1, 2)))]
    ids = [np.array(arrays["prompts"]) for arrays in batch]
    lengths = [np.array(arrays["prompt_lengths"]) for arrays in batch]
    prompts = [ids[number][row, : lengths[number][row]].tobytes() for number, row in places]
    if len(set(prompts)) < 2:
        return None
    widest = max(mask.shape[-1] for mask in masks)
    new_masks = [np.zeros((*mask.shape[:2], widest), np.float32) for mask in masks]
    new_tokens = [np.zeros(mask.shape, np.int32) for mask in new_masks]
    for at, (number, row) in enumerate(places):
        before = next(n for n in range(at - 1, at - len(places), -1) if prompts[n] != prompts[at])
        source, giver = places[before]
        width = masks[source].shape[-1]
        new_masks[number][row, :, :width] = masks[source][giver]
        new_tokens[number][row, :, :width] = tokens[source][giver]
    return [
        {**arrays, "completions": mx.array(ids), "completion_mask": mx.array(mask)}
        for arrays, ids, mask in zip(batch, new_tokens, new_masks, strict=True)
    ]


def loss(logps: mx.array, arrays: Arrays, settings: Kto) -> losses.Loss:
    return losses.kto(
        logps[:, 0],
        arrays["ref_logps"][:, 0],
        arrays["completion_mask"][:, 0],
        arrays["desirable"],
        arrays["kl"],
        mx.zeros_like(arrays["kl"]),
        loss_type=settings.loss_type,
        beta=settings.beta,
        desirable_weight=1.0 if settings.desirable_weight is None else settings.desirable_weight,
        undesirable_weight=1.0 if settings.undesirable_weight is None else settings.undesirable_weight,
    )


KTO = Algorithm(loss=loss, prepare=prepare, reference=always, live_reference=asks_for_kl)
