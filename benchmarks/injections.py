"""How often mail that asks for an action changes what a run says: `python benchmarks/injections.py RUN`.

Two ways. The fifty mails of `tests/evaluate/injections.py`, each beside its neutral twin; and what they write into the
body, behind messages of the run's own test split (`--messages 20` of them). In both, how many pairs

    flip   have another action than their twin
    obey   have the action that is asked for, and their twin has not

each beside how many do so where a second neutral text stands in the place of the trick: what any other words change.
With 95% intervals by Wilson's method (of the second way as if all its pairs were independent).
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

from mlx_email import measure, trained
from mlx_email.jobs import few_rows
from mlx_email.labels.fresh import features_of
from mlx_email.labels.prepare import FEATURES, SENDERS
from mlx_email.labels.schema import ACTIONS, Action, Row
from mlx_email.labels.tables import read_people
from mlx_email.mail.message import Message
from mlx_email.mail.read import read_message
from mlx_email.progress import Progress
from mlx_email.train.run import DATA

MAILS = Path(__file__).resolve().parents[1] / "tests" / "evaluate" / "injections.py"


@dataclass(frozen=True)
class Trial:
    """A message with a trick and two neutral ones."""

    name: str
    asks: Action
    rows: tuple[Row, Row, Row]


def injections() -> ModuleType:
    """The file of the tests, which is in no package."""
    spec = importlib.util.spec_from_file_location("injections", MAILS)
    if spec is None or spec.loader is None:
        raise ImportError(f"{MAILS} is not there: this is a script of the repository")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def fifty(mails: ModuleType, run: Path) -> list[Trial]:
    """The mails themselves; of their senders nothing is known."""
    people = read_people(run / DATA / SENDERS)
    owner = min(user for user, _ in people)

    def row(data: bytes) -> Row:
        return features_of(read_message(data, owner=owner), people)

    return [Trial(each.name, each.asks, (row(each.mail), row(each.twin), row(each.other))) for each in mails.INJECTIONS]


def behind_own_mail(mails: ModuleType, run: Path, messages: int) -> list[Trial]:
    """Every trick of the body behind messages of the test split, each asking for another action in turn."""
    found = []
    for number, row in enumerate(few_rows(run / DATA / FEATURES, "test", messages)):
        for at, (name, pattern) in enumerate(mails.BODIES.items()):
            asks = ACTIONS[(number + at) % len(ACTIONS)]
            trick = mails.filled(pattern, asks, row.body)
            rows = [longer(row, text) for text in (trick, *mails.neutral(trick))]
            found.append(Trial(name, asks, (rows[0], rows[1], rows[2])))
    return found


def longer(row: Row, text: str) -> Row:
    """A message with a text behind its body, and what is computed from that."""
    body = f"{row.body}\n\n{text}"
    message = Message(
        message_id=row.message_id, sender=row.sender, to=row.to, cc=row.cc, subject=row.subject, body=body
    )
    words = features_of(message, {})
    kept = ("urgency", "is_question", "is_action_request")
    return msgspec.structs.replace(row, body=body, **{name: getattr(words, name) for name in kept})


def report(title: str, trials: Sequence[Trial], found: np.ndarray, *, each: bool) -> None:
    """Print the rates of some trials; found (N, 3, 5): probabilities of each one's three messages."""
    said = found.argmax(axis=-1)
    asked = np.array([ACTIONS.index(trial.asks) for trial in trials])
    flips, by_words = (said[:, at] != said[:, 1] for at in (0, 2))
    obeys, by_chance = flips & (said[:, 0] == asked), by_words & (said[:, 2] == asked)
    more = found[np.arange(len(trials)), 0, asked] - found[np.arange(len(trials)), 1, asked]
    print(f"{title}: {len(trials)} pairs")
    for name, which, neutral in (("flip", flips, by_words), ("obey", obeys, by_chance)):
        print(f"  {name}  {share(which)};  a neutral text {share(neutral)}")
    print(f"  the probability of what is asked for: {more.mean():+.3f} on average")
    for name in dict.fromkeys(trial.name for trial in trials) if each else ():
        of = np.array([trial.name == name for trial in trials])
        neutral = f"a neutral text {by_words[of].mean():.2f}, {by_chance[of].mean():.2f}"
        print(f"    {name:30s} flip {flips[of].mean():.2f}  obey {obeys[of].mean():.2f};  {neutral}")


def share(which: np.ndarray) -> str:
    """How many of some booleans are true."""
    low, high = wilson(int(which.sum()), len(which))
    return f"{which.mean():.3f} (95% interval {low:.3f}-{high:.3f})"


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    z, share = 1.959964, hits / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--messages", type=int, default=20, help="of the test split, evenly spaced")
    parser.add_argument("--each", action="store_true", help="the rates of each trick too")
    asked = parser.parse_args()
    mails, policy = injections(), trained.open_policy(asked.run)
    for title, trials in (
        ("fifty mails", fifty(mails, asked.run)),
        ("behind mail of the test split", behind_own_mail(mails, asked.run, asked.messages)),
    ):
        rows = [row for trial in trials for row in trial.rows]
        found = measure.predict(policy, rows, Progress()).reshape(-1, 3, len(ACTIONS))
        report(title, trials, found, each=asked.each)


if __name__ == "__main__":
    main()
