"""The same work on one core or on several: tasks in, results out in the order of the tasks."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

from mlx_email.errors import MlxEmailError

MOST = 8  # by default: reading a source is one process's work, and it keeps no more busy

T = TypeVar("T")
Run = Callable[[Callable[..., T], Iterable[tuple[Any, ...]]], Iterator[T]]


def default_count() -> int:
    """As many workers as there are cores, up to 8."""
    return min(os.cpu_count() or 1, MOST)


@contextmanager
def workers(count: int) -> Generator[Run]:
    """Gives `run(function, tasks)`: calls `function(*task)` for each task and yields the results in the tasks' order.

    With a count of 1 in this process; else in so many others, with at most count + 1 tasks in flight, so that lazily
    made tasks are never all in memory. An error of a task is raised here. Raises MlxEmailError where a worker died.
    """
    if count == 1:
        yield lambda function, tasks: (function(*task) for task in tasks)
        return
    # Not fork: threads of Arrow or of a BLAS do not survive it.
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield lambda function, tasks: _ordered(pool, count + 1, function, tasks)
    except BaseException:
        for worker in multiprocessing.active_children():  # what they do can be done again
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ordered(
    pool: ProcessPoolExecutor, in_flight: int, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]
) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise MlxEmailError("a worker process died (out of memory?): run it again, with --workers 1") from error


def _begin() -> None:
    """A worker leaves the keyboard to its parent, and never outlives it: a killed parent cannot tell it to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
