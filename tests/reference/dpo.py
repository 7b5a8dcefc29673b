"""DPO and its relatives in float64, one pair at a time, from the papers' formulas as TRL applies them."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def minus_log_sigmoid(x):
    return np.logaddexp(0, -x)


def pair_loss(loss_type, c, r, length_c, length_r, beta, eps, tau):
    """The loss of one pair from its two log-ratios c, r (nats) and lengths (tokens)."""
    h = beta * (c - r)
    p, q, modulation = sigmoid(h), sigmoid(-h), sigmoid(h / tau)
    formulas = {
        "sigmoid": lambda: minus_log_sigmoid(h),
        "robust": lambda: ((1 - eps) * minus_log_sigmoid(h) - eps * minus_log_sigmoid(-h)) / (1 - 2 * eps),
        "hinge": lambda: max(0.0, 1 - h),
        "ipo": lambda: (c / length_c - r / length_r - 1 / (2 * beta)) ** 2,
        "exo_pair": lambda: p * np.log(p / (1 - eps)) + q * np.log(q / eps),  # KL of (p, q) from (1 - eps, eps)
        "nca_pair": lambda: (
            minus_log_sigmoid(beta * c) + (minus_log_sigmoid(-beta * c) + minus_log_sigmoid(-beta * r)) / 2
        ),
        "bco_pair": lambda: minus_log_sigmoid(beta * c) + minus_log_sigmoid(-beta * r),
        "sppo_hard": lambda: (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2,
        "apo_zero": lambda: 1 - sigmoid(beta * c) + sigmoid(beta * r),
        "apo_down": lambda: sigmoid(beta * c) + 1 - p,
        "discopop": lambda: (1 - modulation) * minus_log_sigmoid(h) + modulation * np.exp(-h),
        "sigmoid_norm": lambda: minus_log_sigmoid(beta * (c / length_c - r / length_r)),
    }
    return formulas[loss_type]()


def loss(loss_type, policy, reference, masks, *, beta=0.1, label_smoothing=0.0, discopop_tau=0.05):
    """The mean over pairs; policy, reference, masks are (chosen, rejected) of (N, C) each. aot: one sort for all."""
    chosen, rejected, losses = [], [], []
    if loss_type == "sft":
        return -np.sum(policy[0] * masks[0]) / np.sum(masks[0])
    for row in range(len(masks[0])):
        m_c, m_r = masks[0][row] > 0, masks[1][row] > 0
        if not (m_c.any() and m_r.any()):
            continue
        p_c, p_r = policy[0][row][m_c].sum(), policy[1][row][m_r].sum()
        f_c, f_r = reference[0][row][m_c].sum(), reference[1][row][m_r].sum()
        if loss_type == "aot":  # samples: the policy's margins and the reference's
            chosen.append(p_c - p_r)
            rejected.append(f_c - f_r)
        elif loss_type == "aot_unpaired":  # samples: log-ratios of chosen and of rejected
            chosen.append(p_c - f_c)
            rejected.append(p_r - f_r)
        else:
            lengths = m_c.sum(), m_r.sum()
            losses.append(pair_loss(loss_type, p_c - f_c, p_r - f_r, *lengths, beta, label_smoothing, discopop_tau))
    for high, low in zip(sorted(chosen), sorted(rejected), strict=True):
        h = beta * (high - low)
        losses.append((1 - label_smoothing) * minus_log_sigmoid(h) + label_smoothing * minus_log_sigmoid(-h))
    return np.mean(losses)
