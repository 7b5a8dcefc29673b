"""Group-relative policy optimisation and its family: sampled completions, weighted by how much better they were."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from mlx_email.kernels.compiling import compiled
from mlx_email.kernels.losses.common import Loss, bounded, named, number, real_values


class _Settings(NamedTuple):
    """Numbers as arrays: the compiled function is the same for all their values."""

    beta: mx.array
    low: mx.array  # epsilon_low
    high: mx.array  # epsilon_high
    delta: mx.array  # infinite when there is none
    slots: mx.array  # max_completion_length
    total_tokens: mx.array | None
    temperature_up: mx.array  # sapo's, of positive advantages
    temperature_down: mx.array  # and of the others


class _Sampled(NamedTuple):
    """N completions of C tokens; ratio is policy / old, one a token or one a completion."""

    policy: mx.array  # (N, C) log-probabilities, nats, 0 where masked
    ratio: mx.array  # (N, C) or (N, 1)
    advantages: mx.array  # (N, 1)
    real: mx.array  # (N, C) bool
    tokens: mx.array  # float32, how many are real. One array: of two alike mx.compile loses one (IndexError)
    settings: _Settings

    @property
    def completions(self) -> mx.array:
        return self.real.any(axis=-1).sum().astype(mx.float32)

    @property
    def total_tokens(self) -> mx.array:
        return self.tokens if self.settings.total_tokens is None else self.settings.total_tokens


def _clipped(s: _Sampled) -> mx.array:
    inside = mx.clip(s.ratio, 1 - s.settings.low, 1 + s.settings.high)
    return -mx.minimum(mx.minimum(s.ratio, s.settings.delta) * s.advantages, inside * s.advantages)


def _truncated(s: _Sampled) -> mx.array:
    return -mx.stop_gradient(mx.minimum(s.ratio, s.settings.high)) * s.advantages * s.policy


def _gated(s: _Sampled) -> mx.array:
    temperature = mx.where(s.advantages > 0, s.settings.temperature_up, s.settings.temperature_down)
    return -mx.sigmoid(temperature * (s.ratio - 1)) * (4 / temperature) * s.advantages


def _outside(s: _Sampled) -> mx.array:
    """Whose gradient the clip took away: wanted up although already likelier, down although already unlikelier."""
    too_high = (s.advantages > 0) & (s.ratio > 1 + s.settings.high)
    return too_high | ((s.advantages < 0) & (s.ratio < 1 - s.settings.low))


def _beyond(s: _Sampled) -> mx.array:
    return (s.advantages > 0) & (s.ratio > s.settings.high)


def _none(s: _Sampled) -> mx.array:
    return mx.zeros_like(s.ratio, dtype=mx.bool_)


class _Variant(NamedTuple):
    loss: Callable[[_Sampled], mx.array]  # of each token, or (N, 1) of all tokens of a completion
    clipped: Callable[[_Sampled], mx.array]  # bool, of the same shape
    per_token: bool  # whether a completion weighs one whatever its length, or each of its tokens does
    count: Callable[[_Sampled], mx.array]


_VARIANTS = {
    "grpo": _Variant(_clipped, _outside, False, lambda s: s.completions),
    "bnpo": _Variant(_clipped, _outside, True, lambda s: s.tokens),
    "dr_grpo": _Variant(_clipped, _outside, True, lambda s: s.completions * s.settings.slots),
    "dapo": _Variant(_clipped, _outside, True, lambda s: s.total_tokens),
    "cispo": _Variant(_truncated, _beyond, True, lambda s: s.total_tokens),
    "sapo": _Variant(_gated, _none, False, lambda s: s.completions),
    "luspo": _Variant(_clipped, _outside, True, lambda s: s.completions),
}


def _k3(log_ratio: mx.array) -> mx.array:
    """The k3 estimate of KL(p || q) at a sample of p, from log q - log p: never negative."""
    log_ratio = bounded(log_ratio)
    return mx.exp(log_ratio) - log_ratio - 1


def _sums(
    loss_type: str,
    level: str,
    policy: mx.array,
    old: mx.array | None,
    reference: mx.array | None,
    mask: mx.array,
    advantages: mx.array,
    settings: _Settings,
) -> Loss:
    real = mask > 0
    lengths = real.sum(axis=-1, keepdims=True)
    policy = real_values(policy, real)
    log_ratio = policy - mx.stop_gradient(policy if old is None else real_values(old, real))
    mean = log_ratio.sum(axis=-1, keepdims=True) / mx.maximum(lengths, 1)
    ratio = mx.exp(bounded(mean if level == "sequence" else log_ratio))
    tokens = real.sum().astype(mx.float32)
    sampled = _Sampled(policy, ratio, real_values(advantages[..., None], lengths > 0), real, tokens, settings)

    variant = _VARIANTS[loss_type]
    losses = mx.where(real, variant.loss(sampled), 0.0)
    reported = {"clip_fraction": variant.clipped(sampled).astype(mx.float32), "kl/old": _k3(-log_ratio)}
    if reference is not None:
        # Of masked tokens it is k3 of 0 and 0: nothing.
        reported["kl/ref"] = _k3(mx.stop_gradient(real_values(reference, real)) - policy)
        losses = losses + settings.beta * reported["kl/ref"]
    if not variant.per_token:
        losses = losses / mx.maximum(lengths, 1)
    count = variant.count(sampled)
    sums = {name: mx.stop_gradient(mx.where(real, values, 0.0)).sum() for name, values in reported.items()}
    return Loss(losses.sum(), count, {name: (total, tokens) for name, total in sums.items()})


_COMPILED = {
    level: {loss_type: compiled(partial(_sums, loss_type, level)) for loss_type in _VARIANTS}
    for level in ("token", "sequence")
}


def grpo(
    policy: mx.array,
    old: mx.array | None,
    reference: mx.array | None,
    mask: mx.array,
    advantages: mx.array,
    *,
    loss_type: str = "grpo",
    importance_sampling_level: str = "token",
    beta: float = 0.0,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    max_completion_length: int | None = None,
    total_tokens: float | mx.array | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
) -> Loss:
    """-min(ratio * A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) * A) + beta * KL(policy || reference) a token.

    Ratio is policy / old of a token, or for importance_sampling_level "sequence" exp of the completion's mean
    log-ratio (GSPO: Zheng et al. 2025, arXiv 2507.18071). KL is the k3 estimate. Exponents are bounded at +-20.

    Shapes: log-probabilities (N, C) in nats; mask (N, C), float or bool, 1 on completion tokens; advantages (N,).
    `old` and `reference` are constants. Without `old` it is the policy itself: ratios are 1 and carry the gradient.
    `reference` may be None when beta is 0.

    | loss_type | a token's loss, and what of its own | count | source |
    |---|---|---|---|
    | grpo | clipped; completions weigh the same | completions | Shao et al. 2024, arXiv 2402.03300, eq. 3 |
    | bnpo | clipped | tokens | TRL, where each micro-batch has its own mean |
    | dr_grpo | clipped | completions * max_completion_length | Liu et al. 2025, arXiv 2503.20783 |
    | dapo | clipped | total_tokens | Yu et al. 2025, arXiv 2503.14476, eq. 8 |
    | cispo | -A * min(ratio, epsilon_high), constant, * policy | total_tokens | MiniMax 2025, arXiv 2506.13585, eq. 4 |
    | sapo | -A * 4 / T * sigmoid(T * (ratio - 1)), T by A's sign | completions | Gao et al. 2025, arXiv 2511.20347 |
    | luspo | clipped; completions weigh by length | completions | Liu et al. 2026, arXiv 2602.05261 |

    Completions without a token count nowhere. `delta` is an upper bound on the unclipped ratio (INTELLECT-2: arXiv
    2505.07291) and, like epsilon_low, concerns the clipped ones only. cispo's epsilon_high is the bound itself.
    `max_completion_length` is dr_grpo's alone.
    `total_tokens` is by default the mask's sum, and sums of micro-batches then add up to the batch's. When given it is
    the count as it stands: give each micro-batch its share, or the whole once and add the micro-batches' values.
    Metrics, over tokens: clip_fraction, kl/old (k3) and, with a reference, kl/ref.

    Left out: with a loss per token TRL's luspo averages over padding too, and completions without a token add to TRL's
    counts of completions; here neither contributes.

    Raises ValueError for an unknown loss_type or level, dr_grpo without max_completion_length, beta without reference,
    and advantages that are not one a completion.

    Two completions, ratios 1.25 (clipped at 1.2) and 0.8, advantages 1 and -1: (-1.2 + 0.8) / 2:

    >>> policy, old = mx.log(mx.array([[0.5], [0.4]])), mx.log(mx.array([[0.4], [0.5]]))
    >>> loss = grpo(policy, old, None, mx.ones((2, 1)), mx.array([1.0, -1.0]))
    >>> round((loss.total / loss.count).item(), 5), loss.metrics["clip_fraction"][0].item()
    (-0.2, 1.0)
    """
    sums = named(named(_COMPILED, importance_sampling_level, "importance_sampling_level"), loss_type, "loss_type")
    if loss_type == "dr_grpo" and max_completion_length is None:
        raise ValueError("max_completion_length: dr_grpo divides by it, give the longest completion's number of tokens")
    if beta != 0 and reference is None:
        raise ValueError(f"beta {beta}: the KL term needs the reference's log-probabilities, reference is None")
    if advantages.shape != policy.shape[:-1]:  # it would be stretched over the batch without a word
        raise ValueError(
            f"advantages of shape {advantages.shape} for log-probabilities {policy.shape}: not one a completion"
        )
    settings = _Settings(
        beta=number(beta),
        low=number(epsilon_low),
        high=number(epsilon_high),
        delta=number(math.inf if delta is None else delta),
        slots=number(1 if max_completion_length is None else max_completion_length),
        total_tokens=None if total_tokens is None else number(total_tokens),
        temperature_up=number(sapo_temperature_pos),
        temperature_down=number(sapo_temperature_neg),
    )
    return sums(policy, old, reference, mask, advantages, settings)
