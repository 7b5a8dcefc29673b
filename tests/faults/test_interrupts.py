"""A run that is told to stop leaves nothing half-written; what a killed one left is swept by the next."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mlx_email import cli, files


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130)])
def test_a_signal_while_mail_is_read(sent, code, tmp_path):
    program = "import sys; from mlx_email.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", "--out", "run", "--set", "synthetic.messages=4000"]
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(f"{files.TEMPORARY}run-*/data/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.strip().splitlines()[-1] == "error: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_a_termination_counts_where_interrupts_are_ignored():
    """As in a background job of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            cli._interrupt(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_dead_process_left_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"{files.TEMPORARY}run-{dead.pid}" / "data").mkdir(parents=True)
    alive = tmp_path / f"{files.TEMPORARY}run-{os.getppid()}"
    alive.mkdir()
    with files.publish(tmp_path / "run"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, "run"])
