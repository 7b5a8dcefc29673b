"""A stage to train in a second: a small random model and examples of random tokens."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from mlx_lm.models import qwen2

from mlx_email import config
from mlx_email.model import lora
from mlx_email.model.batch import example
from mlx_email.model.load import Base, prepare
from mlx_email.train.session import Job


def small_model():
    mx.random.seed(11)
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            vocab_size=53,
        )
    )
    prepare(model)
    return model


def random_examples(count: int, seed: int = 3):
    rng = np.random.default_rng(seed)
    return [
        example(
            f"m{seed}-{i}", rng.integers(0, 53, rng.integers(1, 30)).tolist(), rng.integers(0, 53, 1 + i % 7).tolist()
        )
        for i in range(count)
    ]


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """A job in a folder, with settings of its stage and of the configuration changed."""

    def make(run: Path, *, held_out=12, stage=None, **changes) -> Job:
        run.mkdir(exist_ok=True)
        adapters = lora.Lora(rank=4, alpha=8.0, dropout=0.1, targets=("q_proj", "down_proj"))
        chosen = config.Sft(
            **{
                "batch_size": 3,
                "accumulation": 2,
                "max_steps": 10,
                "learning_rate": 1e-2,
                "log_every": 1,
                **(stage or {}),
            }
        )
        settings = msgspec.structs.replace(config.Config(stages=(chosen,)), **changes)
        model = small_model()
        lora.apply(model, adapters, seed=5)
        return Job(
            run=run,
            base=Base(model, None, {}, Path()),
            config=settings,
            stage=chosen,
            adapters=adapters,
            parent=None,
            examples=random_examples(20),
            held_out=random_examples(held_out, seed=4),
            identity={"settings": msgspec.to_builtins(settings), "base": "", "data": "", "environment": {}},
            on_step=lambda *_: None,
            note=said.append,
        )

    said: list[str] = []
    make.said = said
    return make
