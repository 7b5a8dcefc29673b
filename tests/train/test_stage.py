"""A stage: validation picks the result, patience ends it, checkpoints are kept as asked, settings do what they say."""

import json

import mlx.core as mx
import pytest

from mlx_email.errors import DataError, MlxEmailError
from mlx_email.model import lora
from mlx_email.train import batches, events, session
from mlx_email.train.checkpoint import folder_of
from mlx_email.train.stage import train_stage


def steps_kept(job) -> list[int]:
    return sorted(int(path.name[5:]) for path in job.folder.glob("step-*"))


def said(job, kind: str) -> list[dict]:
    return [event for event in events.read(job.run) if event["event"] == kind]


def test_the_result_is_the_best_step(make_job, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 4.0])
    monkeypatch.setattr(session, "validation", lambda *a: {"val/loss": next(losses)})
    job = make_job(tmp_path / "run", stage={"validate_every": 2, "save_every": 3})
    record = train_stage(job)
    assert (record["result_step"], record["val/loss"], record["steps"]) == (4, 1.0, 10)
    best = folder_of(job.folder, 4) / "adapters.safetensors"
    assert (job.folder / "adapters.safetensors").read_bytes() == best.read_bytes()
    held = mx.load(str(best))
    assert all(mx.array_equal(held[k], v).item() for k, v in lora.adapter_arrays(job.base.model).items())
    assert steps_kept(job) == [0, 4, 9, 10]
    assert [event["step"] for event in said(job, "validation")] == [2, 4, 6, 8, 10]


def test_without_validation_the_result_is_the_last_step(make_job, tmp_path):
    for name, options in {"none": {"stage": {"validate_every": None}}, "empty": {"held_out": 0}}.items():
        job = make_job(tmp_path / name, **options)
        record = train_stage(job)
        assert (record["result_step"], record["val/loss"]) == (10, None)
        assert said(job, "validation") == []


def test_patience_ends_a_stage_that_gets_no_better(make_job, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    monkeypatch.setattr(session, "validation", lambda *a: {"val/loss": next(losses)})
    job = make_job(tmp_path / "run", stage={"validate_every": 2, "patience": 2})
    record = train_stage(job)
    assert (record["steps"], record["result_step"], record["planned_steps"]) == (8, 4, 10)


def test_validation_changes_nothing_that_is_learned(make_job, tmp_path):
    often = make_job(tmp_path / "often", stage={"validate_every": 1})
    never = make_job(tmp_path / "never", stage={"validate_every": None})
    for job in (often, never):
        train_stage(job)
    last = [(folder_of(job.folder, 10) / "adapters.safetensors").read_bytes() for job in (often, never)]
    assert last[0] == last[1]
    assert len(said(often, "validation")) == 10
    assert all(event["val/loss"] > 0 for event in said(often, "validation"))


def test_a_validation_loss_that_is_no_number_stops_the_stage(make_job, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "validation", lambda *a: {"val/loss": float("nan")})
    job = make_job(tmp_path / "run", stage={"validate_every": 4, "save_every": 3})
    with pytest.raises(
        MlxEmailError, match=r"step 4: the validation loss is nan.*last checkpoint is of step 3.*--resume"
    ):
        train_stage(job)


def test_keep_checkpoints_and_save_every(make_job, tmp_path):
    options = {"stage": {"validate_every": None, "save_every": 2}}
    assert train_stage(many := make_job(tmp_path / "many", keep_checkpoints=9, **options))
    assert steps_kept(many) == [0, 2, 4, 6, 8, 10]
    assert train_stage(one := make_job(tmp_path / "one", keep_checkpoints=1, **options))
    assert steps_kept(one) == [0, 10]


def test_events_hold_every_step_and_no_ids(make_job, tmp_path):
    job = make_job(tmp_path / "run")
    record = train_stage(job)
    steps = said(job, "step")
    assert [event["step"] for event in steps] == list(range(1, 11))
    assert all(event["stage"] == "sft" and event["grad_norm"] > 0 for event in steps)
    assert record["tokens"] == sum(event["tokens"] for event in steps)
    assert "m3-" not in (job.run / "events.jsonl").read_text()
    assert json.loads((job.folder / "stage.json").read_text()) == record


def test_a_stage_needs_examples(make_job, tmp_path):
    import dataclasses

    with pytest.raises(DataError, match="nothing to learn from"):
        train_stage(dataclasses.replace(make_job(tmp_path / "run"), examples=[]))


def test_gradient_checkpointing_learns_the_same(make_job, tmp_path):
    plain, checkpointed = make_job(tmp_path / "a"), make_job(tmp_path / "b", gradient_checkpointing=True)
    losses = []
    for job in (plain, checkpointed):
        train_stage(job)
        losses.append([event["loss"] for event in said(job, "step")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_compiled_traces_are_counted_and_few(make_job, tmp_path, monkeypatch):
    """Two epochs of prompts of many lengths: no more traces than there are shapes; more are warned about."""
    job = make_job(tmp_path / "run", compile=True, stage={"max_steps": None, "epochs": 2, "accumulation": 1})
    record = train_stage(job)
    shapes = len(set(batches.plan(job.examples, 3).widths))
    assert record["traces"] == shapes <= batches.MAX_SHAPES
    assert [event["traces"] for event in said(job, "step")][-1] == shapes
    assert not any("traces" in line for line in make_job.said)
    monkeypatch.setattr(batches, "MAX_SHAPES", 2)
    monkeypatch.setattr(batches, "plan", lambda *a, honest=batches.plan: _wide(honest(*a)))
    train_stage(make_job(tmp_path / "wide", compile=True, stage={"max_steps": 6, "accumulation": 1}))
    assert any("compiled traces: its shapes vary" in line for line in make_job.said)


def _wide(plan):
    """Every bucket cut in two, each with a width of its own."""
    import dataclasses

    halves = [
        (half, (width + extra, completions))
        for bucket, (width, completions) in zip(plan.buckets, plan.widths, strict=True)
        for extra, half in enumerate((bucket[::2], bucket[1::2]))
        if half
    ]
    return dataclasses.replace(plan, buckets=tuple(h for h, _ in halves), widths=tuple(w for _, w in halves))


def test_the_wired_limit_is_set_on_apple_silicon_only(monkeypatch):
    from mlx_email.train import memory

    wired, cached = [], []
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    monkeypatch.setattr(mx, "set_cache_limit", cached.append)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 77})
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    memory.settle(None)
    assert (wired, cached) == ([], [])
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    memory.settle(0.5)
    assert (wired, cached) == ([77], [500_000_000])
