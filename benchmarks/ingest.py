"""How fast `mlx-email prepare` is, how much memory it takes, and whether both grow as they should.

    python benchmarks/ingest.py SOURCE [--workers 2]            one source
    python benchmarks/ingest.py --corpus 500000 [--workers 2]   synthetic corpora of that many messages, and a half, ..

Memory is the largest sum of the resident sizes of all its processes (what they share counts for each).
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from corpus import write_tar  # ty: ignore[import-not-found] - it lies beside this script

SIZES = 4  # of the synthetic corpora
COMMAND = (sys.executable, "-m", "mlx_email", "prepare", "--json")


def resident(process: int) -> int:
    """Bytes of a process and of all below it, now."""
    table = subprocess.run(["ps", "-axo", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    sizes: dict[int, int] = {}
    below: dict[int, list[int]] = {}
    for line in table.splitlines():
        pid, parent, size = map(int, line.split())
        sizes[pid] = size * 1024
        below.setdefault(parent, []).append(pid)
    total, stack = 0, [process]
    while stack:
        pid = stack.pop()
        total += sizes.get(pid, 0)
        stack += below.get(pid, [])
    return total


def measure(source: Path, out: Path, workers: int) -> tuple[dict, float, int]:
    """The counts that `prepare` prints, its seconds and its peak memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, str(source), "--out", str(out), "--workers", str(workers)], stdout=subprocess.PIPE, text=True
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = process.communicate()
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(printed), seconds, peak


def digest(folder: Path) -> str:
    """Of all tables: equal digests, equal bytes."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def report(source: Path, folder: Path, workers: int) -> None:
    counts, seconds, peak = measure(source, folder / "table", workers)
    print(
        f"{counts['files']:8d} files  {source.stat().st_size / 1e6:8.1f} MB  {workers} workers  {seconds:6.1f} s  "
        f"{1e6 * seconds / counts['files']:6.0f} microseconds a file  peak {peak / 1e6:6.0f} MB  "
        f"labelled {counts['labelled']}  tables {digest(folder / 'table')}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--corpus", type=int, metavar="MESSAGES")
    parser.add_argument("--sizes", type=int, default=SIZES)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    given = parser.parse_args()
    if (given.source is None) == (given.corpus is None):
        parser.error("give a source, or --corpus MESSAGES")
    sizes = [given.corpus // 2**n for n in reversed(range(given.sizes))] if given.corpus else [0]
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            source = given.source or folder / "corpus.tar"
            if size:
                with source.open("wb") as file:
                    write_tar(file, messages=size, owners=max(1, 150 * size // given.corpus), seed=0)
            for workers in given.workers:
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    report(source, Path(out), workers)


if __name__ == "__main__":
    main()
