"""What the optimisers of all sides share, and one that only looks at the gradient."""

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

RATE = 1e-5  # of learning


class Keep(optim.Optimizer):
    """Moves nothing and keeps the gradient in its state, so that it comes out of a compiled step too."""

    def __init__(self) -> None:
        super().__init__()
        self.learning_rate = RATE

    def init_single(self, parameter: mx.array, state: dict) -> None:
        state["gradient"] = mx.zeros_like(parameter)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        state["gradient"] = gradient
        return parameter

    def gradients(self) -> dict[str, mx.array]:
        """The last step's, by the parameter's name."""
        arrays = dict(tree_flatten(self.state))
        ending = ".gradient"
        return {name.removesuffix(ending): array for name, array in arrays.items() if name.endswith(ending)}
