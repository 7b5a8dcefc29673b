"""Group-relative policy optimisation: completions are sampled, judged, and made likelier the better they are than the
others of their prompt.

`prepare` is the rollout: G completions of each prompt of the step, and what a reward function says of each. Groups that
are all worth the same teach nothing; they are left out, and micro-batches that have no other are not run at all.
"""

import time
from collections.abc import Sequence
from functools import partial
from itertools import chain

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_email.algorithms.actions import measure
from mlx_email.algorithms.record import Algorithm, Context, Prepared
from mlx_email.config import Grpo, Sampled
from mlx_email.kernels import losses
from mlx_email.model.batch import Arrays, Batch, Example
from mlx_email.model.frozen import Frozen
from mlx_email.model.render import is_over
from mlx_email.model.sample import Completion, Sampling, sample
from mlx_email.rewards.judge import Judged, sample_of

ROWS = 128  # completions that are decoded side by side, at most: it bounds the memory of a rollout, whatever the step
EQUAL = 1e-6  # rewards of a group that differ by less, in units of their size, are the same number


def roll(
    examples: Sequence[Example], policy: nn.Module, settings: Sampled, group: int, context: Context
) -> tuple[list[list[Completion]], list[list[Judged]]]:
    """`group` completions of each example's prompt, and what each is worth."""
    if context.renderer is None or context.judge is None:
        raise AssertionError("sampling asks for a renderer and a judge")
    completions: list[list[Completion]] = []
    at_once = max(ROWS // group, 1)
    for start in range(0, len(examples), at_once):
        completions += sample(
            policy,
            [example.prompt.tolist() for example in examples[start : start + at_once]],
            group=group,
            max_tokens=settings.max_tokens,
            sampling=Sampling(settings.temperature, settings.top_p, settings.top_k, settings.min_p),
            over=partial(is_over, context.renderer),
            seed=(context.seed + start) % 2**64,
            progress=context.rolling,
        )
    samples = [
        sample_of(context.renderer, example.about, example.prompt, each.tokens, ended=each.ended)
        for example, row in zip(examples, completions, strict=True)
        for each in row
    ]
    judged = context.judge(samples)
    return completions, [judged[start : start + group] for start in range(0, len(judged), group)]


def prepare(batch: list[Batch], policy: nn.Module, settings: Grpo, context: Context) -> Prepared:
    """Samples completions in place of the examples' own, and adds advantages (B, G) and sampler_logps (B, G, C), with
    several updates old_logps, and with a KL term ref_logps."""
    started = time.perf_counter()
    examples = [example for each in batch for example in each.examples]
    completions, judged = roll(examples, policy, settings, settings.group_size, context)
    seconds = time.perf_counter() - started
    rewards = np.array([[each.reward for each in group] for group in judged], np.float32)  # (prompts, G)
    useful = np.ptp(rewards, axis=1) > EQUAL * np.maximum(np.abs(rewards).max(axis=1), 1.0)
    advantages = np.where(useful[:, None], advantages_of(rewards, settings), 0.0)
    longest = max(len(each.tokens) for each in chain(*completions))
    width = settings.max_tokens if context.compiled else longest  # of the prompts there are several shapes already
    columns = []
    at = 0
    for each in batch:
        rows = slice(at, at + len(each.examples))
        at = rows.stop
        if useful[rows].any():
            columns.append(_columns(each, completions[rows], advantages[rows], useful[rows], width, settings))
    if settings.updates > 1:
        policy_now = Frozen.of(policy)
        columns = [{**arrays, "old_logps": policy_now.logps(policy, arrays)} for arrays in columns]
    if asks_for_reference(settings):
        if context.reference is None:
            raise AssertionError("a KL term asks for the reference policy")
        columns = [{**arrays, "ref_logps": context.reference.logps(policy, arrays)} for arrays in columns]
    return Prepared(columns, _said(completions, judged, useful, seconds), list(chain(*judged)))


def advantages_of(rewards: np.ndarray, settings: Grpo) -> np.ndarray:
    """(prompts, G) from rewards of that shape; the statistics of a batch are of all of it."""
    flat, group, kind = mx.array(rewards.reshape(-1)), rewards.shape[1], settings.advantages or "group"
    found = losses.leave_one_out(flat, group) if kind == "rloo" else losses.group_advantages(flat, group, scale=kind)
    return np.array(found).reshape(rewards.shape)


def _columns(
    batch: Batch,
    completions: Sequence[Sequence[Completion]],
    advantages: np.ndarray,
    useful: np.ndarray,
    width: int,
    settings: Grpo,
) -> Arrays:
    rows, group = len(batch.arrays["prompt_lengths"]), settings.group_size
    tokens = np.zeros((rows, group, width), np.int32)
    mask, logps = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, np.float32)
    padded = np.zeros((rows, group), np.float32)
    padded[: len(advantages)] = advantages
    for row, of_prompt in enumerate(completions):
        for branch, each in enumerate(of_prompt):
            length = len(each.tokens)
            tokens[row, branch, :length] = each.tokens
            logps[row, branch, :length] = each.logps
            mask[row, branch, :length] = useful[row] and (each.ended or not settings.mask_truncated)
    return {
        "prompts": batch.arrays["prompts"],
        "prompt_lengths": batch.arrays["prompt_lengths"],
        "completions": mx.array(tokens),
        "completion_mask": mx.array(mask),
        "advantages": mx.array(padded),
        "sampler_logps": mx.array(logps),
    }


def _said(
    completions: Sequence[Sequence[Completion]], judged: Sequence[Sequence[Judged]], useful: np.ndarray, seconds: float
) -> dict[str, float]:
    """What a rollout was like."""
    flat, everything = list(chain(*completions)), list(chain(*judged))
    tokens = [len(each.tokens) for each in flat]
    rewards = np.array([[each.reward for each in group] for group in judged])
    return {
        "reward": float(rewards.mean()),
        "reward/std": float(rewards.std(axis=1, ddof=1).mean()),  # within groups
        **{f"reward/{name}": float(np.mean([each.parts[name] for each in everything])) for name in everything[0].parts},
        "rollout/kept": float(useful.mean()),  # share of the groups that teach something
        "rollout/dropped": float((~useful).sum()),
        "rollout/tokens": float(np.mean(tokens)),  # a completion
        "rollout/truncated": float(np.mean([not each.ended for each in flat])),
        "rollout/entropy": sum(sum(each.entropies) for each in flat) / sum(tokens),  # nats a token
        "rollout/tokens_per_second": sum(tokens) / max(seconds, 1e-9),  # prompts and judging included
    }


def loss(logps: mx.array, arrays: Arrays, settings: Grpo) -> losses.Loss:
    def rows(array: mx.array) -> mx.array:
        return array.reshape(-1, array.shape[-1])

    policy, mask = rows(logps), rows(arrays["completion_mask"])
    old, reference = (rows(arrays[name]) if name in arrays else None for name in ("old_logps", "ref_logps"))
    found = losses.grpo(
        policy,
        old,
        reference,
        mask,
        arrays["advantages"].reshape(-1),
        loss_type=settings.loss_type,
        importance_sampling_level=settings.importance_sampling_level,
        beta=settings.beta,
        epsilon_low=settings.epsilon_low,
        epsilon_high=settings.high,
        delta=settings.delta,
        max_completion_length=settings.max_tokens,
        sapo_temperature_pos=settings.sapo_temperature_pos,
        sapo_temperature_neg=settings.sapo_temperature_neg,
    )
    # How far what the sampler computed is from what the loss takes as the old policy; of the first update's.
    gap = mx.where(mask > 0, mx.abs((policy if old is None else old) - rows(arrays["sampler_logps"])), 0.0)
    # The count is the loss's own: of two outputs that are computed alike mx.compile loses one (IndexError).
    gaps = mx.stop_gradient(gap.sum()), found.metrics["clip_fraction"][1]
    return found._replace(metrics={**found.metrics, "gap": gaps})


def asks_for_reference(settings: Grpo) -> bool:
    """Whether the loss has a KL term."""
    return settings.beta > 0


def updates(settings: Grpo) -> int:
    """Steps with one rollout."""
    return settings.updates


GRPO = Algorithm(loss=loss, prepare=prepare, updates=updates, live_reference=asks_for_reference, measure=measure)
