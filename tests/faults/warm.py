"""Processes to kill, without waiting for imports each time: one has imported everything, and forks.

Where a process that has loaded mlx cannot be forked (macOS: its frameworks do not allow it), each is started afresh.

As a program: for each JSON line {"code", "arguments", "folder", "output"} on stdin it forks a process, prints its pid,
and leaves its exit code (negative: the signal that killed it) in the file `output`.code.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx_email  # noqa: F401 - before `small` imports mlx, so that it can load the BLAS

HERE = Path(__file__).parent
FORKS = sys.platform == "linux"
SECONDS = 180  # a process that has not ended by then hangs
COMMAND = "import sys; from mlx_email.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Process:
    """A process that was started."""

    pid: int
    output: Path  # stdout and stderr
    poll: Callable[[], int | None]  # its exit code, None while it runs

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def last_line(self) -> str:
        return self.said.splitlines()[-1]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code; negative: the signal that killed it."""
        self.wait_for(lambda: False)
        code = self.poll()
        assert code is not None, f"it does not end: {self.said}"
        return code

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until the condition holds or the process has ended; whether it holds."""
        deadline = time.monotonic() + SECONDS
        while self.poll() is None and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.002)
        return condition()


class Warm:
    """Starts processes that have mlx_email and this folder's modules at hand."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.started = 0
        self.server = None
        if FORKS:
            pipe = subprocess.PIPE
            command = [sys.executable, str(HERE / "warm.py")]
            self.server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment())

    def start(self, code: str, *arguments: object, folder: Path | None = None) -> Process:
        """Run Python code with the arguments in sys.argv[1:], in `folder`."""
        self.started += 1
        output = self.outputs / f"{self.started}.txt"
        output.touch()
        code = f"import mlx_email\n{code}"  # before mlx, for the fast BLAS
        request = {"code": code, "arguments": list(map(str, arguments)), "folder": str(folder or self.outputs)}
        if self.server is None:
            return self._afresh(output, **request)
        self.server.stdin.write(json.dumps({**request, "output": str(output)}) + "\n")
        self.server.stdin.flush()
        return Process(int(self.server.stdout.readline()), output, lambda: _left_code(output))

    def run(self, code: str, *arguments: object, folder: Path | None = None) -> Process:
        """`start`, and wait for the end."""
        process = self.start(code, *arguments, folder=folder)
        process.wait()
        return process

    def command(self, *arguments: object, folder: Path | None = None) -> Process:
        """`start` the program `mlx-email`."""
        return self.start(COMMAND, *arguments, folder=folder)

    def _afresh(self, output: Path, code: str, arguments: list[str], folder: str) -> Process:
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                cwd=folder,
                env=environment(),
                stdout=file,
                stderr=file,
            )
        return Process(process.pid, output, process.poll)

    def close(self) -> None:
        if self.server is not None:
            self.server.communicate(timeout=SECONDS)


def environment() -> dict[str, str]:
    """Of the processes: this folder's modules at hand, and one thread (`conftest.one_thread`)."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _left_code(output: Path) -> int | None:
    left = output.with_suffix(".code")
    return int(left.read_text()) if left.exists() else None


# The program


def serve() -> None:
    """Fork for each line of stdin."""
    import small  # noqa: F401

    import mlx_email.pipeline  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        if os.fork() == 0:
            _supervise(request, writing)
        os.close(writing)
        with os.fdopen(reading) as pid:
            print(pid.read(), flush=True)


def _supervise(request: dict, writing: int) -> None:
    """Fork the process itself, and wait for its end: the program has more to do."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = Path(request["output"])
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        _become(request, output)
    os.write(writing, str(pid).encode())
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    left = output.with_suffix(".part")
    left.write_text(str(os.waitstatus_to_exitcode(status)))
    left.rename(output.with_suffix(".code"))
    os._exit(0)


def _become(request: dict, output: Path) -> None:
    code = 1
    try:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(request["folder"])
        sys.argv = ["-c", *request["arguments"]]
        exec(compile(request["code"], "<code>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
