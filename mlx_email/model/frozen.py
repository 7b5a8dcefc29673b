"""A model's adapters as they were at one moment, lent to it while something is computed under them.

So a reference policy or a reward model needs no second copy of the base: only the small arrays are held twice.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_email.model import lora
from mlx_email.model.forward import completion_logps


@dataclass(frozen=True)
class Frozen:
    """Adapter arrays by name. They never change: training replaces a model's arrays and writes into none."""

    arrays: dict[str, mx.array]

    @classmethod
    def of(cls, model: nn.Module) -> "Frozen":
        """The adapters that the model has now."""
        return cls(lora.adapter_arrays(model))

    def put_on(self, model: nn.Module) -> None:
        """Replace the model's adapters by these."""
        model.update(tree_unflatten(list(self.arrays.items())))

    @cached_property
    def idle(self) -> bool:
        """Whether they change nothing, as fresh LoRA adapters: then they need not run. DoRA's have a length too."""
        dora = any(name.endswith(".m") for name in self.arrays)
        grown = [array.any() for name, array in self.arrays.items() if name.endswith(".lora_b")]
        return not dora and not any(found.item() for found in grown)

    @contextmanager
    def lent_to(self, model: nn.Module) -> Generator[None]:
        """Let the model have these adapters, in eval mode, and give it back what it had."""
        before, training = Frozen.of(model), model.training
        self.put_on(model)
        model.eval()
        try:
            with lora.bypassed(model) if self.idle else nullcontext():
                yield
        finally:
            before.put_on(model)
            model.train(training)

    def logps(self, model: nn.Module, arrays: dict[str, mx.array]) -> mx.array:
        """Log-probabilities (B, G, C) of a batch's completions under these adapters, without gradient."""
        with self.lent_to(model):
            logps = completion_logps(
                model,
                arrays["prompts"],
                arrays["prompt_lengths"],
                arrays["completions"],
                arrays["completion_mask"],
                gradient=False,
            )
            mx.eval(logps)
        return logps
