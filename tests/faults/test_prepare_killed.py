"""Killed while it reads or labels, `prepare` goes on from there, and the tables are those of a run that was never
killed; no worker outlives its parent."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_email.labels.prepare import prepare

COMMAND = """
import sys
from pathlib import Path
from mlx_email.labels import prepare
prepare.CHUNK_FILES, prepare.SMALL = 20, 0
if __name__ == "__main__":
    prepare.prepare([Path(sys.argv[1])], Path(sys.argv[2]), count=2)
"""


@pytest.fixture
def mailbox(tmp_path) -> Path:
    """600 letters to two people, a third of them answered."""
    rng = random.Random(0)
    for number in range(600):
        owner, folder = ("low-a", "day-c")[number % 2], ("inbox", "inbox", "sent")[number % 3]
        mark, people = ("RE: ", ("ann@x.org", "bob@y.org")) if folder == "sent" else ("", ("bob@y.org", "ann@x.org"))
        words = " ".join(rng.choices("oak elm ash yew fir bay".split(), k=200))
        path = tmp_path / "maildir" / owner / folder / f"{number}."
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"Message-ID: <{number}@x.org>\nDate: {1 + number // 30} Jan 2026 {number % 24:02d}:00:00 +0000\n"
            f"From: {people[0]}\nTo: {people[1]}\nSubject: {mark}s{number % 50}\n\n{words}"
        )
    return tmp_path / "maildir"


def children(process: int) -> list[int]:
    """The worker processes of a process, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == process:
            found.append(int(stat.parent.name))
    return found


def ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def done(work: Path) -> int:
    return len([*work.glob("*.done"), *work.glob("*.shard")])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers by /proc")
def test_killed_at_any_moment_it_goes_on(mailbox, tmp_path):
    script = tmp_path / "prepare_with_two_workers.py"
    script.write_text(COMMAND)
    out, work = tmp_path / "out", tmp_path / ".prepare-out"
    killed, workers = 0, set()
    while not out.exists():
        process = subprocess.Popen([sys.executable, script, mailbox, out])
        enough = done(work) + 5  # chunks and shards: killed further on each time, whatever the machine's speed
        while process.poll() is None and done(work) < enough:
            workers.update(children(process.pid))
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        assert process.wait() in (0, -signal.SIGKILL)
    assert killed >= 2
    assert not work.exists()
    prepare([mailbox], tmp_path / "never-killed")
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "never-killed" / path.name).read_bytes()

    deadline = time.monotonic() + 10
    while not all(map(ended, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert all(map(ended, workers))
