"""The parent process: one process a side, let go in turn, so that a machine that slows down slows all of them."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_email.benchmarks.compare import ratios, workload
from mlx_email.benchmarks.compare.side import Work
from mlx_email.benchmarks.compare.workload import Sizes
from mlx_email.benchmarks.compare.works import WORKS
from mlx_email.errors import MlxEmailError, UserError

VERSIONS = ("mlx-email", "mlx", "mlx-lm", "mlx-lm-lora", "mkl")
Messages = Generator[dict[str, Any]]  # of a side: that it is ready, then one a repetition
Start = Callable[[str, str, Path, Sizes, str], Messages]  # (work, side, folder, sizes, file for gradients or "")
Note = Callable[[str], object]  # shows a line of progress


def run(names: Sequence[str] = (), *, quick: bool = False, note: Note = lambda line: None) -> dict[str, Any]:  # noqa: ARG005
    """Measure the pieces of work of these names, or all of them, beside the peers that are installed.

    With `quick` at sizes that only show that everything works. Raises UserError for an unknown name.
    """
    unknown = [name for name in names if name not in WORKS]
    if unknown:
        raise UserError(f"no benchmark named {', '.join(unknown)}; there are {', '.join(WORKS)}")
    sizes = workload.QUICK if quick else workload.FULL
    with tempfile.TemporaryDirectory(prefix="mlx-email-bench-") as scratch:
        folder = Path(scratch)
        workload.write(folder, sizes)
        works = {name: measure(name, WORKS[name], folder, sizes, note) for name in names or WORKS}
    return {"machine": machine(), "quick": quick, "sizes": asdict(sizes), "works": works}


def measure(
    name: str, work: Work, folder: Path, sizes: Sizes, note: Note, start: Start | None = None
) -> dict[str, Any]:
    """One piece of work: parity of the gradients first, then the sides in turn."""
    start = start or child
    skipped = {side: line for side in work.sides if (line := missing(work.sides[side].package))}
    for side, line in skipped.items():
        note(f"{name}: {side}: {line}")
    present = [side for side in work.sides if side not in skipped]
    parity = None
    if work.parity and not skipped.keys() & set(work.parity):
        files = [folder / f"{name}-{number}.safetensors" for number in range(2)]
        losses = []
        for side, file in zip(work.parity, files, strict=True):
            note(f"{name}: the gradient of {side}")
            with closing(start(name, side, folder, sizes, str(file))) as messages:
                losses.append(next(messages)["loss"])
        parity = ratios.agreement(files, losses)
    with ExitStack() as stack:
        sides = {side: stack.enter_context(closing(start(name, side, folder, sizes, ""))) for side in present}
        ready = {}
        for side, messages in sides.items():
            note(f"{name}: {side}: loading and warming up")
            ready[side] = next(messages)
        measured = in_turn(sides, work.repetitions(sizes), lambda line: note(f"{name}: {line}"))
    return {
        "sides": {side: {"ready": ready[side], "repetitions": measured[side]} for side in present},
        "skipped": skipped,
        "goals": [ratios.compared(goal, measured, judged=sizes == workload.FULL) for goal in work.goals],
        "parity": parity and {"between": list(work.parity or ()), **parity},
        "notes": list(work.notes),
    }


def in_turn(sides: dict[str, Messages], repetitions: int, note: Note) -> dict[str, list[dict[str, Any]]]:
    """A B A B ...: each side's repetitions."""
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(1, repetitions + 1):
        for side, messages in sides.items():
            measured[side].append(next(messages))
            note(f"repetition {number} of {repetitions}: {side}: {measured[side][-1]['seconds']:.3g} s a step")
    return measured


def child(work: str, side: str, folder: Path, sizes: Sizes, gradients: str) -> Messages:
    """A side in a process of its own: peak memory is its own, and no peer's imports or patches reach us."""
    told = {"work": work, "side": side, "folder": str(folder), "sizes": asdict(sizes), "gradients": gradients}
    command = [sys.executable, "-m", "mlx_email.benchmarks.compare.child", json.dumps(told)]
    with tempfile.TemporaryFile(dir=folder) as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        try:
            while line := process.stdout.readline():
                yield json.loads(line)
                process.stdin.write("go\n")
                process.stdin.flush()
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise MlxEmailError(f"bench: {work}, {side}: its process ended: {''.join(last)}")
        finally:
            process.kill()
            process.communicate()


def missing(package: str | None) -> str | None:
    """Why a side cannot run, if it cannot."""
    if package is None or version(package):
        return None
    return f"skipped, {package} is not installed: pip install 'mlx-email[bench]'"


def version(package: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "platform": sys.platform,
        "cpus": os.cpu_count(),
        "versions": {name: found for name in VERSIONS if (found := version(name))},
    }
