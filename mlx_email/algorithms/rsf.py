"""Rejection-sampling fine-tuning: supervised on the best of one's own completions. G = the kept ones of a prompt.

Source: RAFT (Dong et al. 2023, arXiv 2304.06767), algorithm 1. What is sampled and kept: `train.rejection`.
"""

from mlx_email.algorithms.actions import measure
from mlx_email.algorithms.record import Algorithm
from mlx_email.algorithms.sft import loss

RSF = Algorithm(loss=loss, measure=measure)
