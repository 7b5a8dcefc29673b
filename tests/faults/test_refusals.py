"""A run goes on as it was begun or not at all: what would give something else is refused by name, with exit code 2."""

import json
import shutil

import msgspec
import pytest
import small

from mlx_email import config, pipeline, sealed
from mlx_email.cli import main
from mlx_email.progress import Progress, StepBar
from mlx_email.train import checkpoint, stage


def killed(run, table, folder, step: int, *changes: str) -> None:
    """A run that was killed after a step."""

    def kill(bar, result, steps):
        if result.step == step:
            raise small.Killed

    with pytest.MonkeyPatch.context() as killing:
        killing.setattr(StepBar, "step", kill)
        with pytest.raises(small.Killed):
            main(small.command(table, folder, run, *changes))


@pytest.fixture(scope="module")
def box(table, little, tmp_path_factory):
    """A run killed after step 5, its model beside it, and the finished run it would have been."""
    folder = tmp_path_factory.mktemp("box")
    model = shutil.copytree(little, folder / "model")
    killed(folder / "run", table, model, 5)
    assert main(small.command(table, model, folder / "whole")) == 0
    return folder


@pytest.fixture
def run(box, tmp_path):
    """A copy of the killed run, elsewhere."""
    return shutil.copytree(box / "run", tmp_path / "run")


def refused(capsys, *arguments: object, code: int = 2) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1 and said.err.startswith("error: "), said.err
    return said.err


def assert_goes_on(run, box, *arguments: str) -> None:
    assert main(["train", "--resume", str(run), "--json", *arguments]) == 0
    assert small.outcome(run) == small.outcome(box / "whole")


NOT = {
    "seed=1": "seed",
    "max_prompt_tokens=170": "max_prompt_tokens",
    "sender_history=false": "sender_history",
    "gradient_clip=0.5": "gradient_clip",
    "weight_decay=0.1": "weight_decay",
    "lora.rank=4": "lora.rank",
    "lora.dropout=0.1": "lora.dropout",
    "lora.targets=[q_proj]": "lora.targets",
    "model=tiny": "model",
    "evaluation.max_messages=5": "evaluation.max_messages",
    "evaluation.validation_messages=5": "evaluation.validation_messages",
    "synthetic.seed=1": "synthetic.seed",
    "stages.sft.batch_size=1": "stages.sft.batch_size",
    "stages.sft.accumulation=1": "stages.sft.accumulation",
    "stages.sft.learning_rate=0.1": "stages.sft.learning_rate",
    "stages.sft.schedule=constant": "stages.sft.schedule",
    "stages.sft.warmup=0.5": "stages.sft.warmup",
    "stages.sft.augment=true": "stages.sft.augment",
    "stages.sft.demonstrations=3": "stages.sft.demonstrations",
    "stages.sft.name=other": "stages.other",
    "stages.sft.starts_from=base": "stages.sft.starts_from",
    "lora.layers=1": "lora.layers",
    "gate.metric=macro_f1": "gate.metric",
    "gate.messages=3": "gate.messages",
}


def test_a_changed_setting_is_named(run, capsys):
    before = small.contents(run)
    for change, name in NOT.items():
        said = refused(capsys, "train", "--resume", run, "--set", change)
        assert name in said and "a run goes on as it was begun" in said, change
    after = small.contents(run)
    before.pop(".lock"), after.pop(".lock")
    assert after == before


MAY = [
    "compile=false",
    "gradient_checkpointing=true",
    "keep_checkpoints=1",
    "memory.limit_gb=1000",
    "memory.cache_gb=1",
    "target_accuracy=0.99",
    "acting.calibration=vector",
    "acting.goals=[0.8]",
    "acting.certainty=0.5",
    "acting.costs={archive: {delete: 0.5}}",
    "acting.most_cost=1",
    "stages.sft.max_steps=8",
    "stages.sft.epochs=2",
    "stages.sft.log_every=2",
    "stages.sft.save_every=2",
    "stages.sft.validate_every=4",
    "stages.sft.patience=5",
]


def test_each_setting_may_change_or_not():
    """Every setting there is stands in one of the two lists: a new one must be thought about."""

    def leaves(tree, path=""):
        if isinstance(tree, dict):
            for key, value in tree.items():
                yield from leaves(value, f"{path}.{key}")
        elif path.startswith(".stages") and isinstance(tree, tuple | list) and tree and isinstance(tree[0], dict):
            yield from leaves(tree[0], f"{path}.sft")
        else:
            yield path.removeprefix(".")

    every = set(leaves(msgspec.to_builtins(config.Config())))
    tested = {change.partition("=")[0] for change in [*NOT, *MAY]}
    of_the_mailbox = {"synthetic.messages", "synthetic.noise"}  # the table is there: seed stands for them
    others = {"lora.alpha", "lora.dora", "evaluation.batch_size", "stages.sft.algorithm"}
    assert every - of_the_mailbox - others == tested


def test_what_may_change_may(run, capsys):
    arguments = [part for change in MAY for part in ("--set", change)]
    assert main(["train", "--resume", str(run), "--json", *arguments]) == 0
    capsys.readouterr()
    said = json.loads((run / "sft/stage.json").read_bytes())
    assert (said["steps"], said["planned_steps"]) == (8, 8)
    saved = [path.name for path in small.checkpoints(run / "sft")]
    assert saved[0] == "step-000000" and saved[-1] == "step-000008"
    kept = config.load(str(run / "config.yaml"))
    assert (kept.keep_checkpoints, kept.stages[0].max_steps, kept.memory.limit_gb) == (1, 8, 1000)


def test_how_it_is_saved_and_logged_changes_no_bit(run, box):
    settings = ["stages.sft.save_every=2", "stages.sft.log_every=4", "keep_checkpoints=9"]
    assert main(["train", "--resume", str(run), "--json", *[p for s in settings for p in ("--set", s)]]) == 0
    ours, theirs = small.outcome(run), small.outcome(box / "whole")
    for name in ("adapters", "last optimizer", "standing"):
        assert ours[name] == theirs[name]


def test_fewer_steps_than_there_were_end_it_where_it_stands(run, capsys):
    assert main(["train", "--resume", str(run), "--json", "--set", "stages.sft.max_steps=2"]) == 0
    said = json.loads((run / "sft/stage.json").read_bytes())
    assert (said["steps"], said["result_step"]) == (3, 3)


@pytest.mark.parametrize(
    "given", [["mail"], ["--config", "smollm2"], ["--model", "tiny"], ["--out", "other"], ["--stage", "sft"]]
)
def test_nothing_else_is_given_with_resume(given, box, capsys):
    said = refused(capsys, "train", "--resume", box / "run", *given)
    assert "leave out" in said and (given[0] if len(given) == 2 else "SOURCE") in said


def test_a_folder_that_is_no_run(capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty", "file", "file/below"):
        assert "is not a run folder" in refused(capsys, "train", "--resume", tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]


def test_a_run_is_not_begun_twice(run, table, little, capsys):
    before = small.contents(run)
    assert "--resume" in refused(capsys, *small.command(table, little, run))
    assert small.contents(run) == before


def test_a_finished_run_is_only_reported(box, tmp_path, capsys):
    run = shutil.copytree(box / "whole", tmp_path / "whole")  # its report has its name
    before = small.contents(run)
    for _ in range(2):
        capsys.readouterr()
        assert main(["train", "--resume", str(run)]) == 0
        said = capsys.readouterr().out
        assert "majority" in said and str(run) in said
    after = small.contents(run)
    before.pop(".lock"), after.pop(".lock")  # holds the last process
    assert after == before
    for change in ("epochs=9", "max_steps=20", "save_every=1"):
        said = refused(capsys, "train", "--resume", run, "--set", f"stages.sft.{change}")
        assert "sft is finished" in said


def test_a_finished_run_is_not_reported_with_other_weights(box, tmp_path, capsys):
    """A stage that was trained and not yet measured would be measured with them."""
    run, model = shutil.copytree(box / "whole", tmp_path / "run"), shutil.copytree(box / "model", tmp_path / "model")
    edit(run / "config.yaml", str(box / "model"), str(model))
    small.write_weights(model, seed=12)
    assert "base model" in refused(capsys, "train", "--resume", run)


def edit(file, was: str, is_now: str) -> None:
    text = file.read_text()
    assert was in text
    file.write_text(text.replace(was, is_now))


@pytest.mark.parametrize(
    ("was", "is_now", "name"),
    [("seed: 0\nmax_prompt", "seed: 7\nmax_prompt", "seed"), ("  rank: 2\n", "  rank: 3\n", "lora.rank")],
)
def test_a_setting_edited_by_hand_is_named(was, is_now, name, run, box, capsys):
    edit(run / "config.yaml", was, is_now)
    assert name in refused(capsys, "train", "--resume", run)
    edit(run / "config.yaml", is_now, was)
    assert_goes_on(run, box)


def test_a_config_that_is_none(run, capsys):
    for text in ("[", "nonsense: 1", "stages: []", "\0"):
        (run / "config.yaml").write_text(text)
        assert "config.yaml" in refused(capsys, "train", "--resume", run)


def test_other_weights_under_the_same_name_are_refused(run, box, tmp_path, capsys):
    model = shutil.copytree(box / "model", tmp_path / "model")
    edit(run / "config.yaml", str(box / "model"), str(model))
    edit_states(run, str(box / "model"), str(model))
    small.write_weights(model, seed=12)
    said = refused(capsys, "train", "--resume", run)
    assert "base model" in said and str(model) in said
    small.write_weights(model, seed=11)
    assert_goes_on(run, box)


def edit_states(run, was: str, is_now: str) -> None:
    """Make the run one that was begun with a model at another place."""
    for folder in small.checkpoints(run / "sft"):
        edit(folder / checkpoint.STATE, was, is_now)
        sealed.seal(folder, stage="sft", step=int(folder.name[-6:]))


def test_another_tokenizer_is_another_model(run, box, tmp_path, capsys):
    model = shutil.copytree(box / "model", tmp_path / "model")
    edit(run / "config.yaml", str(box / "model"), str(model))
    edit_states(run, str(box / "model"), str(model))
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + "\n")
    assert "base model" in refused(capsys, "train", "--resume", run)


def test_a_model_that_is_gone(run, box, tmp_path, capsys):
    edit(run / "config.yaml", str(box / "model"), str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in refused(capsys, "train", "--resume", run)


def test_another_table_is_refused(run, box, tmp_path, capsys):
    assert main(["synth", "--out", str(tmp_path / "box"), "--messages", "61"]) == 0
    assert main(["prepare", str(tmp_path / "box/maildir"), "--out", str(tmp_path / "table")]) == 0
    held = run / "data/features.parquet"
    held.rename(tmp_path / "held")
    shutil.copy(tmp_path / "table/features.parquet", held)
    assert "features.parquet" in refused(capsys, "train", "--resume", run)
    held.unlink()
    assert "features.parquet" in refused(capsys, "train", "--resume", run)
    (tmp_path / "held").rename(held)
    assert_goes_on(run, box)


def test_a_note_says_that_the_machine_is_another(run, box, capsys):
    edit_states(run, '"cores": ', '"cores": 1')
    assert_goes_on(run, box)
    said = capsys.readouterr().err
    assert "warning: " in said and "cores" in said


def test_elsewhere_and_by_a_relative_path(run, box, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "a deep" / "ünïcode"
    moved.parent.mkdir()
    run.rename(moved)
    monkeypatch.chdir(moved.parent)
    assert_goes_on(moved, box)
    monkeypatch.chdir(moved)
    assert main(["train", "--resume", "."]) == 0


# Two stages: what was refused in the middle of one is refused between them


@pytest.fixture
def between(table, little, tmp_path, monkeypatch):
    """A run of two stages, killed when the first was finished and measured and the second had not begun."""
    model = shutil.copytree(little, tmp_path / "model")
    settings = msgspec.structs.replace(
        config.Config(lora=config.Lora(rank=2), max_prompt_tokens=160, evaluation=config.Evaluation(max_messages=4)),
        stages=tuple(config.Sft(name=name, max_steps=1, batch_size=2, accumulation=1) for name in "ab"),
        model=str(model),
    )
    honest = stage.save

    def save(job, *rest):
        if job.stage.name == "b":
            raise small.Killed
        honest(job, *rest)

    run = tmp_path / "run"
    with monkeypatch.context() as killing:
        killing.setattr(stage, "save", save)
        with pytest.raises(small.Killed):
            pipeline.train(table, settings, run, (), Progress(quiet=True))
    assert stage.finished(run, "a") and not small.checkpoints(run / "b")
    return run


def test_a_finished_stage_cannot_change(between, capsys):
    said = refused(capsys, "train", "--resume", between, "--set", "stages.a.max_steps=2")
    assert "a is finished" in said
    assert main(["train", "--resume", str(between), "--set", "stages.b.max_steps=2", "--json"]) == 0
    assert small.checkpoints(between / "b")[-1].name == "step-000002"


def test_between_two_stages_an_edited_setting_is_seen(between, capsys):
    edit(between / "config.yaml", "seed: 0\nmax_prompt", "seed: 7\nmax_prompt")
    assert "seed" in refused(capsys, "train", "--resume", between)


def test_between_two_stages_other_weights_are_seen(between, capsys):
    small.write_weights(between.parent / "model", seed=12)
    assert "base model" in refused(capsys, "train", "--resume", between)


def test_a_finished_stage_that_is_damaged_is_named(between, capsys):
    adapters = between / "a/adapters.safetensors"
    whole = adapters.read_bytes()
    for damaged in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        adapters.write_bytes(damaged)
        assert str(adapters) in refused(capsys, "train", "--resume", between)
    adapters.unlink()
    assert str(adapters) in refused(capsys, "train", "--resume", between, code=1)
