"""How far chance alone can move a metric: bootstrap over threads. The messages of one thread are not independent (the
same people, the same matter, mostly the same action), so whole threads are drawn, never single messages (Field and
Welsh 2007, "Bootstrapping clustered data", J. R. Statist. Soc. B 69: the cluster bootstrap).
"""

from collections.abc import Sequence

import numpy as np

from mlx_email.labels.schema import Row

RESAMPLES = 2000
DRAWN_AT_ONCE = 4_000_000  # numbers; more resamples are drawn in parts, of many kinds of threads


def threads(rows: Sequence[Row]) -> np.ndarray:
    """Which thread each message is of, (N,) int from 0; one without a thread is its own."""
    names = [f"\0{number}" if not row.thread_id else row.thread_id for number, row in enumerate(rows)]
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names], int)


def of_each(thread: np.ndarray, kind: np.ndarray, kinds: int) -> np.ndarray:
    """How many messages of each kind a thread has, (T, kinds) int, of thread (N,) and kind (N,), both from 0."""
    count = int(thread.max()) + 1 if len(thread) else 0
    return np.bincount(thread * kinds + kind, minlength=count * kinds).reshape(count, kinds)


def resample(sums: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """What a resample of as many threads as there are adds up to, (R, K), of each thread's own sums (T, K).

    Exact, not approximate: threads whose sums are equal are interchangeable, so how often each distinct one is drawn
    is multinomial. Most mail is in short threads that are all right or all wrong, so there are few distinct ones.
    """
    kinds, of_kind = np.unique(sums, axis=0, return_counts=True)
    kinds = kinds.astype(float)
    rng = np.random.default_rng(seed)
    share = of_kind / of_kind.sum()
    at_once = max(DRAWN_AT_ONCE // len(kinds), 1)
    parts = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    return np.concatenate([rng.multinomial(len(sums), share, part) @ kinds for part in parts])


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """95% percentile interval, (low, high), of what a metric was in each resample, (R,)."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
