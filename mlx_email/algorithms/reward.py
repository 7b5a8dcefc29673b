"""The reward model. G completions a prompt: the better one, then those it should be ahead of, each by its `margin`.

Where there are fewer, the missing ones have no token and count nothing.
"""

from collections.abc import Generator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from mlx_email.algorithms.record import Algorithm, Arrays
from mlx_email.config import Reward
from mlx_email.errors import ModelError
from mlx_email.kernels import losses
from mlx_email.model import lora, reward
from mlx_email.model.forward import width
from mlx_email.model.frozen import Frozen


def forward(policy: nn.Module, arrays: Arrays, gradient: bool) -> mx.array:  # noqa: ARG001 - the same either way
    """Rewards (B, G, members)."""
    return reward.rewards(policy, policy.reward_head, arrays)


def loss(rewards: mx.array, arrays: Arrays, settings: Reward) -> losses.Loss:
    real = arrays["completion_mask"].any(axis=-1)  # (B, G)
    chosen, rejected = mx.broadcast_arrays(rewards[:, :1], rewards[:, 1:])  # (B, G - 1, members)
    return losses.bradley_terry(
        chosen,
        rejected,
        margin=mx.broadcast_to(arrays["margin"][..., None], rejected.shape),
        center_rewards_coefficient=settings.center_rewards_coefficient,
        mask=mx.broadcast_to((real[:, :1] & real[:, 1:])[..., None], rejected.shape),
    )


def head_kind(model: nn.Module, settings: Reward) -> reward.HeadKind:
    """What the settings ask for on this model."""
    dropout = settings.head_dropout if settings.head == "mlp" else 0.0
    return reward.HeadKind(settings.head, width(model), settings.members, dropout)


def refuse(model: nn.Module, settings: Reward) -> None:
    """ModelError where the settings do not suit the model."""
    if (settings.trained_layers or 0) > len(model.layers):
        raise ModelError(f"trained_layers={settings.trained_layers}: this model has {len(model.layers)} layers")


@contextmanager
def fitting(model: nn.Module, settings: Reward, seed: int) -> Generator[None]:
    """A fresh head on the model, and the layers frozen that are not to be trained; afterwards the policy is as it was:
    a reward model is trained beside it."""
    policy = Frozen.of(model)
    refuse(model, settings)
    reward.attach(model, reward.new_head(head_kind(model, settings), seed))
    lora.train_last_layers(model, settings.trained_layers)
    try:
        yield
    finally:
        reward.detach(model)
        lora.train_last_layers(model, None)
        policy.put_on(model)


REWARD = Algorithm(loss=loss, forward=forward, fitting=fitting, policy=False)
