"""What stands for mlx-lm's caches in the two passes of `forward`: a prompt's keys and values, and its branches."""

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask

from mlx_email.errors import ModelError
from mlx_email.kernels import attention

Mask = mx.array | str | None  # as mlx-lm hands it to attention: bool or additive, "causal", nothing hidden
Pair = tuple[mx.array, mx.array]  # keys and values


class PromptCache:
    """A layer's cache of the prompt pass: it only remembers. Not a list of chunks and not a buffer, so autodiff sees
    the very arrays that attention used."""

    offset = 0

    def __init__(self, window: int | None = None) -> None:
        self.window = window  # how many positions its layer looks back; None: all of them
        self.keys: mx.array | None = None  # (B, H, P, head size)
        self.values: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str | None:
        """The causal mask of n positions as mlx-lm's own caches give it; padding stands behind what is real."""
        window = window_size or self.window
        if n == 1:
            return None
        if return_array or (window is not None and n > window):
            return create_causal_mask(n, window_size=window)
        return "causal"

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
        """Attention of its layer, (B, H, n, F), by `kernels.attention`."""
        return attention.attention(queries, keys, values, scale=scale, mask=mask)

    def arrays(self) -> list[mx.array]:
        """The keys and values it holds; for `checkpointing`, which must see them as inputs and outputs of a layer."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def hold(self, arrays: list[mx.array]) -> None:
        """The other way: take what `arrays` of another cache gave."""
        self.keys, self.values = arrays or (None, None)

    def empty(self) -> "PromptCache":
        """One like it that holds nothing."""
        return PromptCache(self.window)


class BranchCache:
    """A layer's cache of the branch pass: G branches a prompt, each seeing its prompt and its own past."""

    def __init__(self, prompt: PromptCache, offset: mx.array) -> None:
        self.prompt = prompt
        self.offset = offset  # (B * G,): the prompts' lengths, where rotary positions go on
        self.parts: tuple[Pair, Pair] | None = None  # keys and values of the prompts, and of the branches alone
        self.joined: Pair | None = None  # of each branch with its prompt before it

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.prompt.keys is None or self.prompt.values is None:
            raise ModelError("this model hands no keys to its cache: its architecture is not supported")
        self.parts = (self.prompt.keys, self.prompt.values), (keys, values)
        self.joined = _joined(self.prompt.keys, keys), _joined(self.prompt.values, values)
        return self.joined

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Mask) -> mx.array:
        """Attention of its layer, (B * G, H, n, F). What was joined above is then never computed: MLX is lazy."""
        if self.parts is None or self.joined is None or not isinstance(mask, mx.array):
            raise ModelError("attention of branches needs their keys and their mask")
        if keys is not self.joined[0] or values is not self.joined[1]:  # the model has changed them
            return attention.attention(queries, keys, values, scale=scale, mask=mask)
        return attention.branched(queries, *self.parts, scale=scale, mask=mask)

    def make_mask(self, n: int, return_array: bool = True, window_size: int | None = None) -> mx.array:  # noqa: ARG002
        """(B * G, 1, n, P + n) bool: the prompt without its padding, then causal; within the window if there is one."""
        if self.prompt.keys is None:
            raise ModelError("the branch pass needs the prompt pass before it")
        window = window_size or self.prompt.window
        width = self.prompt.keys.shape[2]
        prompt_at = mx.arange(width)
        branch_at = self.offset[:, None] + mx.arange(n)[None]  # (B * G, n): true positions
        seen = prompt_at[None] < self.offset[:, None]  # (B * G, P)
        in_prompt = mx.broadcast_to(seen[:, None, :], (seen.shape[0], n, width))
        in_branch = mx.broadcast_to(create_causal_mask(n)[None], (seen.shape[0], n, n))
        mask = mx.concatenate([in_prompt, in_branch], axis=-1)
        if window is not None:
            key_at = mx.concatenate([mx.broadcast_to(prompt_at[None], seen.shape), branch_at], axis=1)
            mask = mask & (branch_at[:, :, None] - key_at[:, None, :] < window)
        return mask[:, None]

    def arrays(self) -> list[mx.array]:
        """The prompt's keys and values."""
        return self.prompt.arrays()

    def hold(self, arrays: list[mx.array]) -> None:
        self.prompt.hold(arrays)

    def empty(self) -> "BranchCache":
        return BranchCache(self.prompt.empty(), self.offset)


def _joined(prompt: mx.array, branch: mx.array) -> mx.array:
    """Each prompt before each of its branches: (B, H, P, E) and (B * G, H, n, E) -> (B * G, H, P + n, E)."""
    own = mx.unflatten(branch, 0, (prompt.shape[0], -1))
    # Broadcast, not repeated: of more than one prompt that would be a second copy.
    shared = mx.broadcast_to(prompt[:, None], (*own.shape[:2], *prompt.shape[1:]))
    return mx.concatenate([shared, own], axis=3).flatten(0, 1)
