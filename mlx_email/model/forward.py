"""The one path from token ids to log-probabilities: a prompt is computed once and its completions branch off it.

*Prompt pass*: the B prompts run once; each layer's cache object keeps the keys and values it is handed, inside the
autodiff graph. *Branch pass*: the B*G completions run against those, at the positions where their prompts really end.
*Head*: only completion positions meet the vocabulary. Gradients flow through both passes and are exact.

It needs only mlx-lm's cache protocol (`offset`, `update_and_fetch`, `make_mask`), so mlx-lm's models run unchanged. A
model that keeps something else between tokens, such as a state-space model, runs *full sequences* instead: each
completion with its whole prompt before it. That is slower and just as exact; one line is logged.
"""

import logging
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlx_email.errors import ModelError
from mlx_email.kernels.logprob import Head, linear_logprob
from mlx_email.model import dropout
from mlx_email.model.cache import BranchCache, PromptCache

log = logging.getLogger(__name__)

BODIES = ("model", "backbone")  # what mlx-lm's models call their layers without the head
EMBEDDINGS = ("embed_tokens", "embeddings")


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

    Raises ModelError for a model whose body and head are not found.
    """
    hidden_states = shared_hidden if shares_prompts(model) else full_hidden
    logps = _logps(model, hidden_states(model, prompts, prompt_lengths, completions), completions, gradient)
    # where, not a product: whatever stands at a masked position must not turn a zero into a nan.
    return mx.where(completion_mask.astype(mx.bool_), logps, 0.0)


def _logps(model: nn.Module, hidden: mx.array, completions: mx.array, gradient: bool) -> mx.array:
    _, head = split(model)
    flat = hidden.reshape(completions.size, -1)
    return linear_logprob(flat, head, completions.reshape(-1), gradient=gradient).reshape(completions.shape)


def shared_hidden(model: nn.Module, prompts: mx.array, prompt_lengths: mx.array, completions: mx.array) -> mx.array:
    """The hidden states (B, G, C, D) that the completion tokens are predicted from, each prompt computed once.

    A prompt's last token begins every branch, as it is what the first completion token is predicted from. So nothing
    asks for what the last layer makes of the prompt but its keys and values, and the rest of that layer is never run.
    """
    body, _ = split(model)
    batch, branches, length = completions.shape
    lengths = prompt_lengths - 1  # without the last token
    caches = [PromptCache(window_of(cache)) for cache in make_prompt_cache(model)]
    body(prompts[:, : max(prompts.shape[1] - 1, 1)], cache=caches)
    dropout.advance(model)
    last = mx.take_along_axis(prompts, lengths[:, None], axis=1)  # (B, 1)
    last = mx.broadcast_to(last[:, None], (batch, branches, 1))
    inputs = mx.concatenate([last, completions[..., :-1]], axis=2).reshape(batch * branches, length)
    offset = mx.repeat(lengths, branches)
    hidden = body(inputs, cache=[BranchCache(cache, offset) for cache in caches])
    return hidden.reshape(batch, branches, length, -1)


def window_of(cache: object) -> int | None:
    return cache.max_size if isinstance(cache, RotatingKVCache) else None


def full_hidden(model: nn.Module, prompts: mx.array, prompt_lengths: mx.array, completions: mx.array) -> mx.array:
    """The same as `shared_hidden`, each completion run with its whole prompt before it and no cache.

    Padding stands behind each sequence, where neither causal attention nor a recurrence lets it change what is real.
    """
    body, _ = split(model)
    batch, branches, length = completions.shape
    starts = mx.repeat(prompt_lengths, branches)[:, None]  # (B * G, 1): where the completion begins
    both = mx.concatenate([mx.repeat(prompts, branches, axis=0), completions.reshape(batch * branches, length)], axis=1)
    at = mx.arange(both.shape[1] - 1)[None]  # the last token predicts nothing
    source = mx.where(at < starts, at, mx.minimum(prompts.shape[1] + at - starts, both.shape[1] - 1))
    hidden = body(mx.take_along_axis(both, source, axis=1), cache=None)  # (B * G, P + C - 1, D)
    wanted = starts - 1 + mx.arange(length)[None]  # (B * G, C)
    return mx.take_along_axis(hidden, wanted[..., None], axis=1).reshape(batch, branches, length, -1)


def split(model: nn.Module) -> tuple[nn.Module, Head]:
    """A model's body (token ids -> normalised hidden states) and its vocabulary head, tied or not."""
    for body in (model[name] for name in BODIES if name in model):
        for embedding in (body[name] for name in EMBEDDINGS if name in body):
            return body, model.lm_head if "lm_head" in model else embedding
    raise ModelError(f"{type(model).__module__}: no body with embed_tokens: its architecture is not supported")


def width(model: nn.Module) -> int:
    """The size D of a model's hidden states."""
    _, head = split(model)
    return head.scales.shape[-1] * head.group_size if "scales" in head else head.weight.shape[-1]


def shares_prompts(model: nn.Module) -> bool:
    """Whether the model's completions branch off a prompt computed once. What was found is kept on the model; one that
    `agrees_with_model` never tried is judged by its caches."""
    if not hasattr(model, "_shares_prompts"):
        _remember(model, obstacle(model))
    return model._shares_prompts


def obstacle(model: nn.Module) -> str | None:
    """What its caches have against sharing a prompt: anything but plain or sliding keys and values; None if nothing."""
    kinds = [type(cache) for cache in make_prompt_cache(model)]
    other = next((kind.__name__ for kind in kinds if kind not in (KVCache, RotatingKVCache)), None)
    return other and f"it keeps {other} between tokens"


def _remember(model: nn.Module, reason: str | None) -> None:
    model._shares_prompts = reason is None
    if reason:
        log.warning(
            "%s cannot share a prompt among its completions (%s): each runs with its whole prompt, which is slower",
            type(model).__module__,
            reason,
        )


def agrees_with_model(model: nn.Module) -> bool:
    """Whether `completion_logps` gives what the model itself gives, on a few short sequences. By which path, shared
    prompts or else full sequences, is remembered on the model.

    Some families scale or cap their logits after the head (Granite, Cohere, Gemma 2), which `split` cannot see: they
    agree on neither path.
    """
    reason = obstacle(model)
    if reason is None:
        try:
            reason = None if _agrees(shared_hidden, model) else "sharing changes its numbers"
        except Exception as error:  # it may ask of its caches what mlx-lm's have and ours have not
            reason = f"sharing fails with {type(error).__name__}"
    if reason is not None and not _agrees(full_hidden, model):
        return False
    _remember(model, reason)
    return True


def _agrees(hidden_states: Callable[..., mx.array], model: nn.Module) -> bool:
    # Two prompts of different length with two completions each; small ids, which every vocabulary has.
    prompts, lengths = mx.array([[1, 5, 3, 2, 4], [2, 4, 1, 5, 3]]), [5, 1]
    completions = mx.array([[[2, 4, 1], [3, 1, 2]], [[1, 3, 5], [5, 2, 4]]])
    ours = _logps(model, hidden_states(model, prompts, mx.array(lengths), completions), completions, gradient=False)
    exact = True
    difference, size = mx.array(0.0), mx.array(0.0)
    for row, length in enumerate(lengths):
        prompt = mx.broadcast_to(prompts[row, :length], (2, length))
        logits = model(mx.concatenate([prompt, completions[row, :, :-1]], axis=1))[:, length - 1 :]
        exact = exact and logits.dtype == mx.float32
        logps = nn.log_softmax(logits.astype(mx.float32), axis=-1)
        theirs = mx.take_along_axis(logps, completions[row, :, :, None], axis=-1)[..., 0]
        difference, size = difference + mx.abs(ours[row] - theirs).sum(), size + mx.abs(theirs).sum()
    # A wrong path is off by whole nats in a trained model, by less in a random one; half precision by some percent.
    return (difference < (5e-3 if exact else 0.03) * size).item() is True
