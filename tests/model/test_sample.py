"""Rollouts side by side equal mlx-lm's own generation; what is drawn has the policy's probabilities; rows leave."""

from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

from mlx_email.model import sample as sampling_
from mlx_email.model.batch import collate, example
from mlx_email.model.forward import completion_logps
from mlx_email.model.sample import DecodeCache, Sampling, sample

NAMES = ["llama", "llama-tied", "llama-sliding", "llama-4bit", "qwen2", "qwen3", "phi3", "deepseek", "mamba"]
PROMPTS = [[1, 5, 3, 2, 4, 9, 8, 7], [4], [2, 6, 1, 5]]
GREEDY = Sampling(temperature=0.0)


def ending(stop):
    """Whether the last token is one of some."""
    return lambda tokens: tokens[-1] in stop


def draw(model, prompts=PROMPTS, **options):
    chosen = dict(group=2, max_tokens=9, sampling=Sampling(), over=ending(()), seed=0)
    return sample(model, prompts, **{**chosen, **options})


def alone(model, prompt, count, stop=()) -> list[int]:
    """mlx-lm's own greedy generation."""
    tokens = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=count, sampler=make_sampler(0.0)):
        tokens.append(int(token))
        if tokens[-1] in stop:
            break
    return tokens


@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_mlx_lm_token_for_token(name, small):
    """Ragged prompts, one of a single token, and ends at different steps."""
    model = small.build(name)
    model.eval()
    stop = set(alone(model, PROMPTS[0], 9)[3:4])
    found = draw(model, sampling=GREEDY, over=ending(stop))
    for prompt, completions in zip(PROMPTS, found, strict=True):
        wanted = alone(model, prompt, 9, stop)
        assert [completion.tokens for completion in completions] == [wanted, wanted]
        assert {completion.ended for completion in completions} == {wanted[-1] in stop}


class OffByOne(DecodeCache):
    def update_and_fetch(self, keys, values):
        fetched = super().update_and_fetch(keys, values)
        if self.own[0].shape[2] == 1:
            self.offset = self.offset + 1
        return fetched


class Forgetful(DecodeCache):
    def update_and_fetch(self, keys, values):
        self.own = None if self.own is None else tuple(0 * array for array in self.own)
        return super().update_and_fetch(keys, values)


@pytest.mark.parametrize("fault", [OffByOne, Forgetful])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_planted_faults_are_seen(name, fault, small, monkeypatch):
    model = small.build(name)
    honest = draw(model, sampling=GREEDY)
    monkeypatch.setattr(sampling_, "DecodeCache", fault)
    faulty = draw(model, sampling=GREEDY)
    firsts = [(ours[0].logps, theirs[0].logps) for ours, theirs in zip(honest, faulty, strict=True)]
    assert max(np.abs(np.array(ours) - theirs).max() for ours, theirs in firsts) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_log_probabilities_are_those_of_the_training_s_forward_path(name, small, monkeypatch):
    """Also of rows that were moved when others had ended."""
    model = small.build(name)
    honest, left_over = sampling_._repacked, []

    def repacked(slots):
        packed = honest(slots)
        fewer = bool(packed[0]) and len(packed[0][0]) < len(slots[0])
        left_over.append(fewer and any(slot is None for row in packed[0] for slot in row))
        return packed

    monkeypatch.setattr(sampling_, "_repacked", repacked)
    found = draw(model, group=4, max_tokens=20, sampling=Sampling(temperature=0.8), over=ending(range(0, 60, 7)))
    assert name == "mamba" or any(left_over), "no slots were packed with one left over"
    examples = [
        example("", prompt, *(completion.tokens for completion in completions))
        for prompt, completions in zip(PROMPTS, found, strict=True)
    ]
    arrays = collate(examples, 3, 8, 20).arrays
    model.eval()
    logps = np.array(completion_logps(model, *arrays.values()))
    for row, completions in zip(logps, found, strict=True):
        for theirs, completion in zip(row, completions, strict=True):
            np.testing.assert_allclose(completion.logps, theirs[: len(completion.logps)], atol=1e-5)


def test_the_same_seed_gives_the_same_completions_and_another_others(small):
    model = small.build("llama")
    again, other = draw(model, seed=3), draw(model, seed=4)
    assert draw(model, seed=3) == again != other


def test_tokens_come_as_often_as_they_are_likely(small):
    """The first token of 4,000 completions, against the model's own probabilities: a chi-squared test."""
    model = small.build("llama")
    model.eval()
    probabilities = np.array(mx.softmax(model(mx.array([PROMPTS[0]]))[0, -1].astype(mx.float32)), np.float64)
    seen = Counter(completion.tokens[0] for completion in draw(model, [PROMPTS[0]], group=4000, max_tokens=1)[0])
    expected = 4000 * probabilities / probabilities.sum()
    counts = np.array([seen[token] for token in range(len(expected))])
    assert ((counts - expected) ** 2 / expected).sum() < len(expected) + 5 * np.sqrt(2 * len(expected))
    wrong = 4000 * (flat := probabilities**0.5) / flat.sum()  # as at another temperature
    assert ((counts - wrong) ** 2 / wrong).sum() > len(expected) + 5 * np.sqrt(2 * len(expected))


def test_top_k_keeps_the_likeliest(small):
    model = small.build("llama")
    model.eval()
    likeliest = set(np.argsort(-np.array(model(mx.array([PROMPTS[0]]))[0, -1]))[:3].tolist())
    found = draw(model, [PROMPTS[0]], group=200, max_tokens=1, sampling=Sampling(top_k=3))
    assert {completion.tokens[0] for completion in found[0]} == likeliest


def test_work_follows_live_rows(small, monkeypatch):
    """A row that has ended is decoded no longer, once as many slots of every prompt are free; a prompt without rows
    leaves with its keys."""
    model = small.build("llama")
    honest, sizes = type(model.model).__call__, []

    def counting(self, inputs, *args, **options):
        sizes.append(inputs.shape)
        return honest(self, inputs, *args, **options)

    monkeypatch.setattr(type(model.model), "__call__", counting)
    made = []
    found = draw(model, group=4, max_tokens=20, over=ending(range(0, 60, 4)), progress=made.append)
    steps = [rows for rows, length in sizes[1:]]
    assert sizes[0] == (3, 7) and all(length == 1 for _, length in sizes[1:])
    lengths = [[len(completion.tokens) for completion in completions] for completions in found]
    for step, rows in enumerate(steps):
        live = [sum(length > step for length in row) for row in lengths]
        assert sum(live) == made[step]
        assert rows == sum(count > 0 for count in live) * max(live)
    assert steps[0] == 12 > steps[-1] and len(steps) == max(map(max, lengths))


def test_the_mode_of_the_model_is_left_as_it_was(small):
    model = small.build("llama")
    for training in (True, False):
        model.train(training)
        draw(model, max_tokens=1)
        assert model.training == training


@pytest.mark.parametrize("count", [1, 3, 256, 257, 5000])
def test_indices_come_as_often_as_their_weights(count):
    rng = np.random.default_rng(count)
    weights = rng.exponential(size=count) * (rng.uniform(size=count) < 0.7)
    weights[-1] = 0.5
    mx.random.seed(count)
    drawn = np.concatenate(
        [
            np.array(sampling_.categorical(mx.broadcast_to(mx.array(weights, mx.float32), (2000, count))))
            for _ in range(10)
        ]
    )
    counts, expected = np.bincount(drawn, minlength=count), len(drawn) * weights / weights.sum()
    assert len(counts) == count and counts[weights == 0].sum() == 0
    likely = expected > 5
    score = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert score < likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_what_is_far_less_likely_than_all_before_it_is_drawn_too():
    """In one running sum 2e-8 of 1 would vanish, ten thousand times."""
    weights = mx.concatenate([mx.ones((1,)), mx.full((100_000,), 2e-8)])
    mx.random.seed(0)
    share = np.mean([np.array(sampling_.categorical(mx.broadcast_to(weights, (300, 100_001)))) > 0 for _ in range(20)])
    assert 0.0005 < share < 0.006


@pytest.mark.parametrize("sampling", [Sampling(0.7, top_p=0.6), Sampling(1.3, min_p=0.2), Sampling(0.5, top_k=4)])
def test_filters_are_mlx_lm_s(sampling):
    logprobs = nn.log_softmax(mx.random.normal((1, 40), key=mx.random.key(1)) * 2)
    theirs = make_sampler(sampling.temperature, sampling.top_p, sampling.min_p, top_k=sampling.top_k)
    many = mx.broadcast_to(logprobs, (20_000, 40))
    mx.random.seed(0)
    ours, wanted = (np.bincount(np.array(draw(many)), minlength=40) / 20_000 for draw in (sampling.draw, theirs))
    assert (wanted > 0).sum() < 40 and ((ours > 0) == (wanted > 0)).all()
    np.testing.assert_allclose(ours, wanted, atol=0.02)
