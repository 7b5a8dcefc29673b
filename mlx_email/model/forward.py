"""The one path from token ids to log-probabilities: a prompt is computed once and its completions branch off it.

*Prompt pass*: the B prompts run once; each layer's cache object keeps the keys and values it is handed, inside the
autodiff graph. *Branch pass*: the B*G completions run against those, at the positions where their prompts really end.
*Head*: only completion positions meet the vocabulary. Gradients flow through both passes and are exact.

It needs only mlx-lm's cache protocol (`offset`, `update_and_fetch`, `make_mask`), so mlx-lm's models run unchanged.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlx_email.errors import ModelError
from mlx_email.kernels.logprob import Head, linear_logprob


class PromptCache:
    """A layer's cache of the prompt pass: it only remembers. Not a list of chunks and not a buffer, so autodiff sees
    the very arrays that attention used."""

    offset = 0

    def __init__(self) -> None:
        self.keys: mx.array | None = None  # (B, H, P, head size)
        self.values: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        return keys, values


class BranchCache:
    """A layer's cache of the branch pass: G branches a prompt, each seeing its prompt and its own past."""

    def __init__(self, prompt: PromptCache, prompt_lengths: mx.array, branches: int) -> None:
        self.prompt = prompt
        self.branches = branches
        self.offset = mx.repeat(prompt_lengths, branches)  # (B * G,): rotary positions go on where the prompt ends

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return self._joined(self.prompt.keys, keys), self._joined(self.prompt.values, values)

    def _joined(self, prompt: mx.array | None, branch: mx.array) -> mx.array:
        if prompt is None:
            raise ModelError("this model hands no keys to its cache: its architecture is not supported")
        return mx.concatenate([mx.repeat(prompt, self.branches, axis=0), branch], axis=2)

    def make_mask(self, n: int, return_array: bool = True, window_size: int | None = None) -> mx.array:  # noqa: ARG002
        """(B * G, 1, n, P + n) bool: the prompt without its padding, then causal; within the window if there is one."""
        if self.prompt.keys is None:
            raise ModelError("the branch pass needs the prompt pass before it")
        width = self.prompt.keys.shape[2]
        prompt_at = mx.arange(width)
        branch_at = self.offset[:, None] + mx.arange(n)[None]  # (B * G, n): true positions
        seen = prompt_at[None] < self.offset[:, None]  # (B * G, P)
        in_prompt = mx.broadcast_to(seen[:, None, :], (seen.shape[0], n, width))
        in_branch = mx.broadcast_to(create_causal_mask(n)[None], (seen.shape[0], n, n))
        mask = mx.concatenate([in_prompt, in_branch], axis=-1)
        if window_size is not None:
            key_at = mx.concatenate([mx.broadcast_to(prompt_at[None], seen.shape), branch_at], axis=1)
            mask = mask & (branch_at[:, :, None] - key_at[:, None, :] < window_size)
        return mask[:, None]


def completion_logps(
    model: nn.Module,
    prompts: mx.array,
    prompt_lengths: mx.array,
    completions: mx.array,
    completion_mask: mx.array,
    *,
    gradient: bool = True,
) -> mx.array:
    """Log-probability of every completion token given its prompt and the completion before it.

    Shapes: prompts (B, P) int, right-padded; prompt_lengths (B,); completions (B, G, C) int, right-padded;
    completion_mask (B, G, C), float or bool -> (B, G, C) float32, nats; 0 where masked.
    With `gradient=False` what only the backward pass needs is not computed.

    Raises ModelError for a model whose layers keep anything but plain keys and values.
    """
    body, head = split(model)
    batch, branches, length = completions.shape
    caches = [PromptCache() for _ in plain_caches(model)]
    prompt_hidden = body(prompts, cache=caches)  # (B, P, D)

    # The first completion token is predicted from the last real prompt position, the others from their predecessor.
    last = mx.take_along_axis(prompt_hidden, (prompt_lengths - 1)[:, None, None], axis=1)  # (B, 1, D)
    hidden = mx.broadcast_to(last[:, None], (batch, branches, 1, last.shape[-1]))
    if length > 1:
        inputs = completions[..., :-1].reshape(batch * branches, length - 1)
        branch_hidden = body(inputs, cache=[BranchCache(cache, prompt_lengths, branches) for cache in caches])
        hidden = mx.concatenate([hidden, branch_hidden.reshape(batch, branches, length - 1, -1)], axis=2)

    flat = hidden.reshape(batch * branches * length, -1)
    logps = linear_logprob(flat, head, completions.reshape(-1), gradient=gradient).reshape(completions.shape)
    # where, not a product: whatever stands at a masked position must not turn a zero into a nan.
    return mx.where(completion_mask.astype(mx.bool_), logps, 0.0)


def split(model: nn.Module) -> tuple[nn.Module, Head]:
    """A model's body (token ids -> normalised hidden states) and its vocabulary head, tied or not."""
    body = getattr(model, "model", None)
    if body is None or not hasattr(body, "embed_tokens"):
        raise ModelError(f"{type(model).__module__}: no body with embed_tokens: its architecture is not supported")
    return body, model.lm_head if "lm_head" in model else body.embed_tokens


def plain_caches(model: nn.Module) -> Sequence[KVCache | RotatingKVCache]:
    """The model's own caches, one a layer, when all of them are plain or sliding keys and values."""
    caches = make_prompt_cache(model)
    for cache in caches:
        if type(cache) not in (KVCache, RotatingKVCache):
            raise ModelError(
                f"{type(model).__module__} keeps a {type(cache).__name__}: only models with plain attention caches "
                "(the Llama, Mistral and Qwen2/Qwen3 families) are supported"
            )
    return caches


def agrees_with_model(model: nn.Module) -> bool:
    """Whether this path gives what the model itself gives, on one short sequence.

    Some families scale or cap their logits after the head (Granite, Cohere, Gemma 2), which `split` cannot see. The
    tolerance is for half precision: a wrong path is off by whole nats.
    """
    prompt, completion = mx.array([[1, 5, 3]]), mx.array([[[2, 4]]])
    ours = completion_logps(model, prompt, mx.array([3]), completion, mx.ones((1, 1, 2)), gradient=False)[0, 0]
    logits = model(mx.array([[1, 5, 3, 2]]))[0, 2:].astype(mx.float32)
    theirs = mx.take_along_axis(logits - mx.logsumexp(logits, axis=-1, keepdims=True), completion[0, 0][:, None], 1)
    return mx.allclose(ours, theirs[:, 0], rtol=0.02, atol=0.05).item() is True
