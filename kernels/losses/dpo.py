"""Direct preference optimisation: pairs of completions, the chosen one up and the rejected one down."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from mlx_email.kernels.compiling import compiled
from mlx_email.kernels.losses.common import Loss, bounded, log_sigmoid, named, number, real_values
from mlx_email.kernels.losses.sft import sft


class _Pairs(NamedTuple):
    """N pairs and the settings. Log-ratio: log(policy / reference), nats, summed over a completion's tokens."""

    chosen: mx.array  # (N,) log-ratio
    rejected: mx.array  # (N,) log-ratio
    chosen_mean: mx.array  # (N,) log-ratio per token
    rejected_mean: mx.array  # (N,) log-ratio per token
    policy_margin: mx.array  # (N,) policy's chosen - rejected log-probability
    reference_margin: mx.array  # (N,) the same of the reference
    counted: mx.array  # (N,) bool: both completions have a token
    beta: mx.array
    smoothing: mx.array
    tau: mx.array

    @property
    def logits(self) -> mx.array:
        """The difference of the implicit rewards: log-odds that chosen is preferred."""
        return self.beta * (self.chosen - self.rejected)


def _robust(p: _Pairs) -> mx.array:
    smoothed = (1 - p.smoothing) * log_sigmoid(p.logits) - p.smoothing * log_sigmoid(-p.logits)
    return -smoothed / (1 - 2 * p.smoothing)


def _exo(p: _Pairs) -> mx.array:
    won, lost = log_sigmoid(p.logits), log_sigmoid(-p.logits)
    return mx.exp(won) * (won - mx.log(1 - p.smoothing)) + mx.exp(lost) * (lost - mx.log(p.smoothing))


def _discopop(p: _Pairs) -> mx.array:
    # Two sigmoids, as 1 - sigmoid loses all digits where it is small.
    logistic = mx.sigmoid(-p.logits / p.tau) * -log_sigmoid(p.logits)
    return logistic + mx.sigmoid(p.logits / p.tau) * mx.exp(-bounded(p.logits))


def _optimal_transport(better: mx.array, worse: mx.array, p: _Pairs) -> mx.array:
    """Compare the sorted values of two samples: the k-th best with the k-th best, whichever pair they come from."""
    # Padding sorts to the end of both; the result's first rows count, as many as there are pairs.
    real = mx.arange(p.counted.size) < p.counted.sum()

    def ordered(values: mx.array) -> mx.array:
        order = mx.argsort(mx.where(p.counted, mx.stop_gradient(values), mx.inf))
        return mx.where(real, values[order], 0.0)

    difference = p.beta * (ordered(better) - ordered(worse))
    smoothed = (1 - p.smoothing) * log_sigmoid(difference) + p.smoothing * log_sigmoid(-difference)
    return mx.where(real, -smoothed, 0.0)


_VARIANTS: dict[str, Callable[[_Pairs], mx.array]] = {  # loss_type -> (N,) losses
    "sigmoid": lambda p: -log_sigmoid(p.logits),  # no label smoothing, as in TRL: `robust` has it
    "robust": _robust,
    "hinge": lambda p: mx.maximum(1 - p.logits, 0.0),
    "ipo": lambda p: mx.square(p.chosen_mean - p.rejected_mean - 1 / (2 * p.beta)),
    "exo_pair": _exo,
    "nca_pair": lambda p: (
        -log_sigmoid(p.beta * p.chosen)
        - 0.5 * log_sigmoid(-p.beta * p.chosen)
        - 0.5 * log_sigmoid(-p.beta * p.rejected)
    ),
    "bco_pair": lambda p: -log_sigmoid(p.beta * p.chosen) - log_sigmoid(-p.beta * p.rejected),
    "sppo_hard": lambda p: mx.square(p.chosen - 0.5 / p.beta) + mx.square(p.rejected + 0.5 / p.beta),
    "aot": lambda p: _optimal_transport(p.policy_margin, p.reference_margin, p),
    "aot_unpaired": lambda p: _optimal_transport(p.chosen, p.rejected, p),
    "apo_zero": lambda p: mx.sigmoid(-p.beta * p.chosen) + mx.sigmoid(p.beta * p.rejected),
    "apo_down": lambda p: mx.sigmoid(p.beta * p.chosen) + mx.sigmoid(-p.logits),
    "discopop": _discopop,
    "sft": lambda p: mx.zeros_like(p.chosen),  # only the metrics: its sum is over tokens, not pairs
    "sigmoid_norm": lambda p: -log_sigmoid(p.beta * (p.chosen_mean - p.rejected_mean)),
}


def _sums(
    loss_type: str,
    policy: tuple[mx.array, mx.array],
    reference: tuple[mx.array, mx.array],
    masks: tuple[mx.array, mx.array],
    settings: tuple[mx.array, mx.array, mx.array],
    beyond: mx.array,  # weight of a completion's tokens beyond the length of the pair's shorter one
) -> Loss:
    lengths = [(mask > 0).sum(axis=-1) for mask in masks]
    counted = (lengths[0] > 0) & (lengths[1] > 0)
    real = [(mask > 0) & counted[..., None] for mask in masks]
    shared = mx.minimum(*lengths)[..., None]
    weights = [mx.where(mx.cumsum(r.astype(mx.int32), axis=-1) > shared, beyond, 1.0) for r in real]
    policy_c, policy_r = (w * real_values(p, r) for w, p, r in zip(weights, policy, real, strict=True))
    reference_c, reference_r = (
        mx.stop_gradient(w * real_values(p, r)) for w, p, r in zip(weights, reference, real, strict=True)
    )
    chosen, rejected = (policy_c - reference_c).sum(axis=-1), (policy_r - reference_r).sum(axis=-1)
    pairs = _Pairs(
        chosen,
        rejected,
        chosen / mx.maximum(lengths[0], 1),
        rejected / mx.maximum(lengths[1], 1),
        policy_c.sum(axis=-1) - policy_r.sum(axis=-1),
        reference_c.sum(axis=-1) - reference_r.sum(axis=-1),
        counted,
        *settings,
    )
    count = counted.sum().astype(mx.float32)
    # A row that is not counted holds zeros by now, so every loss of it is finite. aot's rows are in sorted order.
    losses = _VARIANTS[loss_type](pairs)
    total = (losses if loss_type.startswith("aot") else mx.where(counted, losses, 0.0)).sum()
    reported = {
        "rewards/chosen": pairs.beta * chosen,
        "rewards/rejected": pairs.beta * rejected,
        "rewards/margin": pairs.logits,
        "rewards/accuracy": (chosen > rejected).astype(mx.float32),
    }
    return Loss(total, count, {name: (mx.stop_gradient(values).sum(), count) for name, values in reported.items()})


_COMPILED = {loss_type: compiled(partial(_sums, loss_type)) for loss_type in _VARIANTS}


def dpo(
    policy_chosen: mx.array,
    policy_rejected: mx.array,
    reference_chosen: mx.array,
    reference_rejected: mx.array,
    chosen_mask: mx.array,
    rejected_mask: mx.array,
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    ld_alpha: float | None = None,
) -> Loss:
    """-log sigmoid(beta * (chosen log-ratio - rejected log-ratio)), or one of its fourteen relatives, counted in pairs.

    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7; the relatives and their papers are below. All as in TRL,
    so `sigmoid` ignores label smoothing, `ipo` and `sigmoid_norm` divide log-ratios by completion lengths, `bco_pair`
    has no reward shift. `sft` is the cross-entropy of the chosen completions and is counted in tokens; all others count
    pairs in which both completions have a token.

    With `ld_alpha` in [0, 1] the tokens of a completion beyond the length of its pair's shorter one weigh that much, so
    that length itself is preferred less (LD-DPO, Liu et al. 2024, arXiv 2409.06411); None: 1.

    Shapes: log-probabilities (N, C) in nats; masks (N, C), float or bool, 1 on completion tokens; chosen and rejected
    may differ in C. The reference is a constant.
    Sums of micro-batches add up to the batch's, but for `aot` and `aot_unpaired`, which sort over the rows they see.
    Metrics, over pairs: rewards/chosen and /rejected (beta * log-ratio), /margin, /accuracy (chosen above rejected).

    Raises ValueError for an unknown loss_type and for a setting outside what its formula allows.

    | loss_type | source |
    |---|---|
    | robust | Chowdhury et al. 2024, arXiv 2403.00409; 0 <= label_smoothing < 0.5 |
    | hinge | Zhao et al. 2023, arXiv 2305.10425 |
    | ipo | Azar et al. 2023, arXiv 2310.12036, eq. 17; per token |
    | exo_pair | Ji et al. 2024, arXiv 2402.00856, eq. 16; 0 < label_smoothing < 1 |
    | nca_pair | Chen et al. 2024, arXiv 2402.05369 |
    | bco_pair | Jung et al. 2024, arXiv 2404.04656 |
    | sppo_hard | Wu et al. 2024, arXiv 2405.00675 |
    | aot, aot_unpaired | Melnyk et al. 2024, arXiv 2406.05882 |
    | apo_zero, apo_down | D'Oosterlinck et al. 2024, arXiv 2408.06266 |
    | discopop | Lu et al. 2024, arXiv 2406.08414 |
    | sigmoid_norm | Lambert et al. 2024 (Tulu 3), arXiv 2411.15124 |

    At the start policy and reference agree and the loss is ln 2; here the policy is 1 nat up on the chosen completion:

    >>> half, more = mx.log(mx.array([[0.5, 0.5]])), mx.log(mx.array([[0.5, 0.5]])) + mx.array([[1.0, 0.0]])
    >>> round(dpo(half, half, half, half, mx.ones((1, 2)), mx.ones((1, 2))).total.item(), 5)
    0.69315
    >>> loss = dpo(more, half, half, half, mx.ones((1, 2)), mx.ones((1, 2)), beta=0.5)
    >>> round(loss.total.item(), 5), loss.count.item(), loss.metrics["rewards/margin"][0].item()
    (0.47408, 1.0, 0.5)
    """
    sums = named(_COMPILED, loss_type, "loss_type")
    if loss_type in ("ipo", "sppo_hard") and not beta > 0:
        raise ValueError(f"beta {beta}: {loss_type} divides by it, it must be above 0")
    if loss_type == "exo_pair" and not 0 < label_smoothing < 1:
        raise ValueError(f"label_smoothing {label_smoothing}: exo_pair takes its logarithm, it must be in (0, 1)")
    if loss_type == "robust" and not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing {label_smoothing}: robust divides by 1 - 2 of it, it must be in [0, 0.5)")
    if ld_alpha is not None and not 0 <= ld_alpha <= 1:
        raise ValueError(f"ld_alpha {ld_alpha}: it must be in [0, 1]")
    loss = sums(
        (policy_chosen, policy_rejected),
        (reference_chosen, reference_rejected),
        (chosen_mask, rejected_mask),
        (number(beta), number(label_smoothing), number(discopop_tau)),
        number(1.0 if ld_alpha is None else ld_alpha),
    )
    if loss_type == "sft":
        total, count, _ = sft(policy_chosen, chosen_mask)
        return Loss(total, count, loss.metrics)
    return loss
