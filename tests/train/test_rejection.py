"""Rejection sampling: what is kept of what a policy says, and that it is the same however often it is interrupted."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import sampled
import small

from mlx_email import config
from mlx_email.algorithms import grpo
from mlx_email.errors import DataError
from mlx_email.model import lora
from mlx_email.model.frozen import Frozen
from mlx_email.rewards.judge import Judged, sample_of
from mlx_email.train import events, rejection
from mlx_email.train.rejection import best, read, selection
from mlx_email.train.stage import train_stage

SETTINGS = {"samples": 6, "keep": 2, "stop_accuracy": None, "kind": config.Rsf}


def drawn(*rewards: float, tokens: list[list[int]] | None = None, ended: bool = True) -> list[Judged]:
    """Samples worth so much; all different unless `tokens` says what they are."""
    example = sampled.cases(1, sampled.words())[0]
    texts = tokens or [[n, 1] for n in range(len(rewards))]
    made = []
    for reward, ids in zip(rewards, texts, strict=True):
        sample = sample_of(sampled.words(), example.about, example.prompt, ids, ended=ended)
        made.append(Judged(sample, reward, {}))
    return made


def kept_of(judged, **settings) -> tuple[list[list[int]], Counter]:
    kept, counts = best(judged, config.Rsf(**{"samples": 8, "keep": 2, **settings}))
    return [each.sample.tokens.tolist() for each in kept], counts


def test_the_best_are_kept_the_first_of_equal_ones():
    assert kept_of(drawn(0.1, 0.9, 0.5, 0.5))[0] == [[1, 1], [2, 1]]
    assert kept_of(drawn(0.5, 0.5, 0.5))[0] == [[0, 1], [1, 1]]


def test_nothing_is_kept_twice():
    ids, counts = kept_of(drawn(0.9, 0.9, 0.9, 0.1, tokens=[[7], [7], [7], [8]]))
    assert ids == [[7], [8]] and counts == {"samples": 4, "kept": 2, "said twice": 2}


def test_a_threshold_and_an_end():
    ids, counts = kept_of(drawn(0.9, 0.4, 0.5), threshold=0.5, keep=3)
    assert ids == [[0, 1], [2, 1]] and counts["below the threshold"] == 1
    ids, counts = kept_of(drawn(0.9, 0.8, ended=False))
    assert ids == [] and counts["cut at max_tokens"] == 2


def select(run, rolling=lambda tokens: None, **changes):
    job = sampled.job(run, rolling=rolling, **{**SETTINGS, **changes})
    return selection(run / "rsf", job.base.model, job.examples, job.stage, job.context, 3)


@pytest.fixture(autouse=True)
def ends(monkeypatch):
    """Random completions have no end of their own; and several parts of few prompts."""
    monkeypatch.setattr(grpo, "is_over", lambda renderer, tokens: len(tokens) > 1 or tokens[0] % 2 == 0)
    monkeypatch.setattr(rejection, "PART", 3)


def ids_of(found) -> list[list[list[int]]]:
    return [[ids.tolist() for ids in example.completions] for example in found.examples]


def test_what_is_kept_can_be_read(tmp_path):
    found = select(tmp_path / "run")
    assert found.counts["samples"] == 8 * 6 and len(found.examples) == 8
    lines = list(read(tmp_path / "run/rsf/kept"))
    assert len(lines) == found.counts["kept"] == sum(len(ids) > 0 for row in ids_of(found) for ids in row)
    assert [list(line.completion) for line in lines] == [ids for row in ids_of(found) for ids in row if ids]
    assert {line.message_id for line in lines} == {example.id for example in found.examples}
    assert all(line.reward == pytest.approx(line.parts["low"]) for line in lines)
    job = sampled.job(tmp_path / "other", **SETTINGS)
    by_message = {example.id: example.prompt.tolist() for example in job.examples}
    assert all(list(line.prompt) == by_message[line.message_id] for line in lines)
    assert all(path.stat().st_mode & 0o77 == 0 for path in (tmp_path / "run/rsf/kept").rglob("*.jsonl"))


def test_the_kept_ones_are_worth_more_than_most(tmp_path):
    found = select(tmp_path / "run")
    kept = [line.reward for line in read(tmp_path / "run/rsf/kept")]
    assert np.mean(kept) > 0.6  # a random token's is 0.5
    assert found.counts["kept"] <= 2 * 8


def test_killed_while_it_samples_and_read_afterwards(tmp_path):
    whole = ids_of(select(tmp_path / "whole"))
    tokens = []

    def kill(more):
        tokens.append(more)
        if len(tokens) == 7:
            raise small.Killed

    with pytest.raises(small.Killed):
        select(tmp_path / "run", rolling=kill)
    parts = len(list((tmp_path / "run/rsf/kept").glob("0*")))
    assert 0 < parts < 3
    assert ids_of(select(tmp_path / "run")) == whole
    assert ids_of(select(tmp_path / "run", rolling=lambda tokens: 1 / 0)) == whole  # nothing is sampled again


@pytest.mark.parametrize("change", [{"keep": 1}, {"temperature": 0.2}, {"threshold": 0.6}, {"samples": 5}])
def test_another_setting_samples_again(change, tmp_path):
    assert ids_of(select(tmp_path / "run")) != ids_of(select(tmp_path / "run", **change))


def test_another_policy_samples_again(tmp_path):
    before = ids_of(select(tmp_path / "run"))
    job = sampled.job(tmp_path / "run", **SETTINGS)
    Frozen({name: array + 0.3 for name, array in lora.adapter_arrays(job.base.model).items()}).put_on(job.base.model)
    again = selection(tmp_path / "run/rsf", job.base.model, job.examples, job.stage, job.context, 3)
    assert ids_of(again) != before


def test_more_epochs_do_not(tmp_path):
    select(tmp_path / "run")
    select(tmp_path / "run", rolling=lambda tokens: 1 / 0, epochs=7, max_steps=5)


def test_a_damaged_part_is_sampled_again(tmp_path):
    before = ids_of(select(tmp_path / "run"))
    file = tmp_path / "run/rsf/kept/000003/kept.jsonl"
    file.write_text(file.read_text().replace("reward", "rewird"))
    assert ids_of(select(tmp_path / "run")) == before
    assert len(list(read(tmp_path / "run/rsf/kept"))) == sum(len(ids) > 0 for row in before for ids in row)


def test_nothing_worth_keeping(tmp_path):
    with pytest.raises(DataError, match="rsf: none of 48 samples is worth keeping: lower the threshold"):
        select(tmp_path / "run", threshold=2.0)


def test_it_learns_what_it_kept(tmp_path):
    """Loss falls on what was kept: the SFT of several completions a prompt, padded ones counting nothing."""
    job = sampled.job(tmp_path / "run", **SETTINGS, max_steps=20, learning_rate=0.1)
    found = selection(job.folder, job.base.model, job.examples, job.stage, job.context, 3)
    train_stage(dataclasses.replace(job, examples=found.examples))
    steps = [event for event in events.read(job.run) if event["event"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.1
    real = sum(len(ids) for example in found.examples for ids in example.completions)
    assert sum(step["tokens"] for step in steps[:2]) == real  # two steps of two micro-batches of two: all of them
