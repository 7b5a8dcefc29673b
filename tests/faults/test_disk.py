"""A disk that is full, broken or read-only ends a run in one line, and never damages what is on it."""

import collections
import contextlib
import errno
import os
import shutil

import mlx.core as mx
import msgspec
import pytest
import small

from mlx_email import files
from mlx_email.cli import main
from mlx_email.errors import MlxEmailError, UserError
from mlx_email.train import checkpoint, events, stage
from mlx_email.train.stage import train_stage

KEPT = 3  # the step of the checkpoint before the one that fails


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    return small.train(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed in step 6: the save that follows is the one to fail."""
    run = tmp_path_factory.mktemp("killed") / "run"
    small.train_until(run, 6)
    return run


class Disk:
    """Fails one operation: number `at` of those that are `counted`."""

    def __init__(self, at: int, error: Exception, counted=lambda place: place.startswith("before ")) -> None:
        self.at, self.error, self.counted = at, error, counted
        self.seen = 0
        self.armed = False
        self.failed = ""

    def __call__(self, place: str) -> None:
        if not self.armed or not self.counted(place):
            return
        self.seen += 1
        if self.seen == self.at:
            self.failed = place
            # How mlx reports what the system refused.
            raise RuntimeError(f"[write] {self.error}") if "safetensors" in place else self.error


def saving(disk: Disk, run, *, note=lambda _: None) -> None:
    """Trains on; the disk may fail from the end of step 6 on."""

    def on_step(result, steps) -> None:
        disk.armed = result.step == 6

    with pytest.MonkeyPatch.context() as watching:
        small.watch(watching.setattr, disk)
        train_stage(small.job(run, on_step=on_step, note=note))


def assert_intact(run, error: MlxEmailError) -> None:
    """What is there is whole, and the error is one line that says how to go on."""
    newest = checkpoint.newest(run / "sft", pytest.fail)
    assert newest.step >= KEPT
    for path in small.checkpoints(run / "sft"):
        checkpoint.verified(run / "sft", int(path.name[-6:]))
    assert "\n" not in str(error)
    assert "The last checkpoint is of step" in str(error) and f"--resume {run}" in str(error)
    assert error.exit_code == 1


def operations(killed, tmp_path) -> int:
    """How many there are from the end of step 6 to the end of step 7."""
    run, disk = shutil.copytree(killed, tmp_path / "counted"), Disk(0, OSError())
    saving(disk, run)
    return disk.seen


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_any_operation_of_a_save_may_fail(first, whole, killed, tmp_path):
    """Every second one; full (ENOSPC) or broken (EIO), by turns."""
    places = collections.Counter()
    for at in range(first, operations(killed, tmp_path) + 1, 2):
        number = (errno.ENOSPC, errno.EIO)[at // 2 % 2]
        run, disk = shutil.copytree(killed, tmp_path / f"{at}"), Disk(at, OSError(number, os.strerror(number)))
        try:
            saving(disk, run)
        except MlxEmailError as error:
            assert os.strerror(number) in str(error)
            assert str(run) in str(error)
            assert_intact(run, error)
            places[disk.failed] += 1
        # else: it failed in tidying up, which may fail
        left = [path for path in small.temporaries(run) if path.endswith(f"-{os.getpid()}")]
        assert not left or disk.failed in ("before unlink", "before rmdir", "before open"), disk.failed
        if at % 10 == first:
            assert small.train(run)["adapters"] == whole["adapters"]
    assert len(places) > 3
    assert sum(places.values()) > 10


def test_a_save_in_place_would_be_seen(killed, tmp_path, monkeypatch):
    """The planted fault: no hidden folder."""

    @contextlib.contextmanager
    def in_place(folder):
        folder.mkdir()
        yield folder

    monkeypatch.setattr(files, "publish", in_place)
    run = shutil.copytree(killed, tmp_path / "run")
    with pytest.raises(MlxEmailError) as said:
        saving(Disk(2, OSError("full"), lambda place: place == "before save_safetensors"), run)
    with pytest.raises(pytest.fail.Exception):
        assert_intact(run, said.value)


@pytest.mark.parametrize(("what", "before_it_is_seen"), [("fsync", 12), ("rename", 1)])
def test_what_is_not_on_the_disk_is_not_published(what, before_it_is_seen, killed, tmp_path):
    """All that is flushed or renamed before the new name appears prevents it; what comes later does not unmake it."""
    published = []
    for at in range(1, 30):
        run = shutil.copytree(killed, tmp_path / f"{at}")
        disk = Disk(at, OSError(errno.EIO, os.strerror(errno.EIO)), lambda place: place == f"before {what}")
        try:
            saving(disk, run)
        except MlxEmailError as error:
            assert "Input/output error" in str(error)
            assert str(run / "sft") in str(error) or str(run / "events.jsonl") in str(error)
        if not disk.failed:
            break
        published.append((run / "sft/step-000006").exists())
    assert published == sorted(published)
    assert published.count(False) == before_it_is_seen


LIMITED = """
import json, resource, shutil, sys
from pathlib import Path
import small
from mlx_email.errors import MlxEmailError
killed, work = Path(sys.argv[1]), Path(sys.argv[2])
sizes = sorted({path.stat().st_size for path in killed.rglob("*") if path.is_file()})
said = {}
for limit in [0, 1, *(size - 1 for size in sizes if size > 100), max(sizes) // 2]:
    run = shutil.copytree(killed, work / f"{limit}")
    def on_step(result, steps):
        if result.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        small.train_stage(small.job(run, on_step=on_step))
        said[limit] = None
    except MlxEmailError as error:
        said[limit] = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(said))
"""


@pytest.mark.slow
def test_files_of_a_limited_size(warm, whole, killed, tmp_path):
    """The system itself refuses: every file of a checkpoint in turn is cut where it does not fit any more."""
    process = warm.run(LIMITED, killed, tmp_path)
    assert process.wait() == 0, process.said
    said = msgspec.json.decode(process.said)
    failed = {limit: line for limit, line in said.items() if line}
    assert len(failed) > 3 and any("optimizer" in line for line in failed.values())
    for limit, line in failed.items():
        run = tmp_path / limit
        assert_intact(run, MlxEmailError(line))
        assert "cannot write" in line and str(run) in line
        assert small.temporaries(run) == []
        assert checkpoint.newest(run / "sft", pytest.fail).step == KEPT
    assert small.train(tmp_path / next(iter(failed)))["adapters"] == whole["adapters"]


def test_the_command_says_one_line_and_exits_with_1(table, little, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    honest = mx.save_safetensors

    def full(name, arrays):
        if "000003" in name and "optimizer" in name:
            raise RuntimeError("[write] Unable to write 100 bytes: No space left on device")
        honest(name, arrays)

    with monkeypatch.context() as filling:
        filling.setattr(mx, "save_safetensors", full)
        assert main(small.command(table, little, run)) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: cannot write") and "No space left" in said[-1]
    assert "The last checkpoint is of step 0" in said[-1]
    assert sum(line.startswith("error") for line in said) == 1
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert [step for step, _ in small.outcome(run)["steps"]] == list(range(1, 10))


def test_a_line_of_events_that_was_cut_is_no_event(whole, killed, tmp_path):
    run = shutil.copytree(killed, tmp_path / "run")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "stage": "sft", "st')
    assert small.train(run) == whole
    assert all(line.endswith("}") for line in (run / "events.jsonl").read_text().splitlines())


def test_a_cut_line_costs_no_event_of_the_next_stage(tmp_path):
    """Where nothing is rewound, the next line must not be joined to it."""
    run = tmp_path / "run"
    small.job(run)  # makes the folder
    (run / "events.jsonl").write_text('{"event": "stage", "stage": "before", "step": 1}\n{"event": "evalu')
    small.train(run)
    kinds = [event["event"] for event in events.read(run)]
    assert kinds[:3] == ["stage", "checkpoint", "begin"]


def test_little_space_is_said_before_the_first_step(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    for free, warned in ((1000, True), (10**12, False)):
        notes = []
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**12, 10**12 - free, free))
        train_stage(small.job(tmp_path / f"{free}", note=notes.append, max_steps=1))
        assert [note for note in notes if "free" in note] == notes[:1] * warned
        if warned:
            assert notes[0].startswith("warning: 0.00 GB free at") and "keep_checkpoints" in notes[0]


# Places


@pytest.mark.parametrize(
    "name", ["with spaces and 'quotes'", "ünïcode 信", "-dashes", "new\nline", "x" * 200, "deep/" * 40]
)
def test_any_name(name, whole, tmp_path, monkeypatch):
    run = tmp_path / name / "run"
    small.train_until(run, 5)
    assert small.train(run) == whole


def test_a_name_that_is_too_long(table, little, tmp_path, capsys):
    assert main(small.command(table, little, tmp_path / ("x" * 300))) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "File name too long" in said
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_no_folder(table, little, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(small.command(table, little, tmp_path / "file/run")) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_parents_that_lack_are_made(table, little, tmp_path):
    assert main(small.command(table, little, tmp_path / "a/b/run")) == 0


def test_the_run_folder_vanishes(killed, tmp_path):
    """Somebody removed it, or the disk it is on was taken away."""
    run = shutil.copytree(killed, tmp_path / "run")

    def on_step(result, steps) -> None:
        if result.step == 6:
            run.rename(tmp_path / "away")

    with pytest.raises(MlxEmailError, match="cannot write"):
        train_stage(small.job(run, on_step=on_step))
    assert checkpoint.newest(tmp_path / "away/sft", pytest.fail).step == KEPT


READ_ONLY = """
import os, sys
from pathlib import Path
from mlx_email.cli import main
if os.geteuid() == 0:  # for whom nothing is read-only: become nobody
    for path in (Path(), *Path().rglob("*")):
        os.chown(path, 65534, 65534)
    os.setgid(65534), os.setuid(65534)
os.chmod("run", 0o555)
code = main(["train", "--resume", "run"])
os.chmod("run", 0o755)
sys.exit(code)
"""


def test_a_read_only_place(warm, killed, tmp_path):
    run = shutil.copytree(killed, tmp_path / "run")
    (run / "config.yaml").write_text("{}")
    process = warm.run(READ_ONLY, folder=tmp_path)  # a relative path, since nobody may not enter pytest's folders
    assert process.wait() == 2, process.said
    assert process.said == "error: cannot write run: Permission denied\n"


def test_a_read_only_stage(killed, tmp_path, monkeypatch):
    """The run may be written, the stage not: nothing is lost, and the error names the place."""
    run = shutil.copytree(killed, tmp_path / "run")
    honest = os.mkdir

    def refuse(path, *args, **named):
        if "step-000006" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return honest(path, *args, **named)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(UserError, match=r"sft/step-000006: Permission denied"):
        train_stage(small.job(run))
    assert checkpoint.newest(run / "sft", pytest.fail).step == KEPT


def test_a_checkpoint_that_is_a_link(whole, tmp_path):
    """Moved to another disk, with a link in its place: it is used, and retention removes the link only."""
    run = tmp_path / "run"
    small.train_until(run, 4)
    shutil.move(run / "sft/step-000003", tmp_path / "elsewhere")
    (run / "sft/step-000003").symlink_to(tmp_path / "elsewhere")
    assert small.train(run) == whole
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {
        *("adapters.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json", "manifest.json")
    }


@pytest.mark.parametrize("what", ["file", "link to nothing", "link to itself"])
def test_something_else_in_the_place_of_a_checkpoint(what, whole, tmp_path):
    run = tmp_path / "run"
    small.train_until(run, 4)
    place = run / "sft/step-000006"
    if what == "file":
        place.write_text("what is this")
    else:
        place.symlink_to(tmp_path / "nothing" if what == "link to nothing" else place)
    assert small.train(run) == whole
    assert not (tmp_path / "nothing").exists()


def test_a_stage_that_is_a_file(tmp_path):
    run = tmp_path / "run"
    small.job(run)
    (run / "sft").write_text("what is this")
    with pytest.raises(UserError, match="sft"):
        train_stage(small.job(run))
    assert (run / "sft").read_text() == "what is this"


def test_the_best_checkpoint_is_damaged_while_the_stage_goes_on(tmp_path):
    """The error names it; a resume goes back to before it, and ends as if nothing had happened."""
    settings = {"held_out": 5, "validate_every": 1, "learning_rate": 0.1, "max_steps": 7}
    expected = small.train(tmp_path / "whole", **settings)
    best = expected["stage.json"]["result_step"]
    assert 0 < best < 6
    run = tmp_path / "run"
    file = run / f"sft/step-{best:06d}/adapters.safetensors"

    def on_step(result, steps) -> None:
        if result.step == 7:
            file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(MlxEmailError, match=f"step-{best:06d}/adapters.safetensors is damaged"):
        train_stage(small.job(run, on_step=on_step, **settings))
    assert not stage.finished(run, "sft")
    assert small.train(run, **settings) == expected
