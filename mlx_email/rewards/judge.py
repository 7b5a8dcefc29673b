"""Several reward functions as one: their weighted sum."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from mlx_email.errors import ConfigError, UserError
from mlx_email.labels.schema import ACTIONS
from mlx_email.model.render import Renderer, text_of
from mlx_email.model.wording import read_answer
from mlx_email.rewards.functions import FUNCTIONS, RewardFunction
from mlx_email.rewards.sample import Case, Sample, done

LEARNED = "learned"  # the name of the reward model's score


@dataclass(frozen=True)
class Judged:
    """A sample and what it is worth."""

    sample: Sample
    reward: float
    parts: Mapping[str, float]  # by function, without its weight


@dataclass(frozen=True)
class Judge:
    """Weighted reward functions."""

    terms: tuple[tuple[str, float, RewardFunction], ...]  # name, weight, function
    known: dict[tuple, np.ndarray] = field(default_factory=dict)  # what canonical answers are worth

    def __call__(self, samples: Sequence[Sample]) -> list[Judged]:
        """What each sample is worth, in their order. Raises UserError where a function fails or gives something else
        than one finite number a sample."""
        if not samples:
            return []
        parts = {name: _numbers(name, function, samples) for name, _, function in self.terms}
        weights = {name: weight for name, weight, _ in self.terms}
        return [
            Judged(
                sample,
                sum(weights[name] * values[at] for name, values in parts.items()),
                {name: values[at] for name, values in parts.items()},
            )
            for at, sample in enumerate(samples)
        ]

    def of_actions(self, renderer: Renderer, cases: Sequence[tuple[Case, np.ndarray]]) -> np.ndarray:
        """What the canonical answer of each action is worth, (N, 5), of cases with their prompts. They are constants:
        each message's are asked for once."""
        unknown = {_key(*case): case for case in cases if _key(*case) not in self.known}
        samples = [
            sample_of(renderer, case, prompt, ids, ended=True)
            for case, prompt in unknown.values()
            for ids in case.answers
        ]
        rewards = np.array([judged.reward for judged in self(samples)], np.float32).reshape(-1, len(ACTIONS))
        self.known.update(zip(unknown, rewards, strict=True))
        return np.stack([self.known[_key(*case)] for case in cases])


def _key(case: Case, prompt: np.ndarray) -> tuple:
    """Of a message; some programs give a Message-ID twice."""
    return case.row.user, case.row.message_id, done(case.row), case.row.priority_target, prompt.tobytes()


def sample_of(renderer: Renderer, case: Case, prompt: np.ndarray, tokens: Iterable[int], *, ended: bool) -> Sample:
    """A completion (token ids) as the reward functions see it."""
    text = text_of(renderer, tokens)
    return Sample(case.row, prompt, np.fromiter(tokens, np.int32), text, read_answer(text), ended)


def _numbers(name: str, function: RewardFunction, samples: Sequence[Sample]) -> list[float]:
    try:
        values = [float(value) for value in function(samples)]
    except UserError:
        raise
    except Exception as error:  # whatever a user's own code raises
        raise UserError(f"the reward function {name} failed: {type(error).__name__}: {error}") from error
    if len(values) != len(samples):
        raise UserError(f"the reward function {name} gave {len(values)} numbers for {len(samples)} samples")
    for value, sample in zip(values, samples, strict=True):
        if not math.isfinite(value):
            raise UserError(f"the reward function {name} gave {value} for the message {sample.row.message_id!r}")
    return values


def judge(terms: Iterable[tuple[str, float]], learned: Callable[[], RewardFunction]) -> Judge:
    """A judge of functions by name: ours, `learned`, or a user's own by import path (`package.module:function`, or
    `file.py:function`). `learned` is asked for the reward model's function where it is named.

    Raises ConfigError where there is no such function.
    """
    found = []
    for name, weight in terms:
        if name == LEARNED:
            function = learned()
        elif is_import_path(name):
            function = imported(name)
        else:
            function = FUNCTIONS[name]
        found.append((name, weight, function))
    return Judge(tuple(found))


def is_import_path(name: str) -> bool:
    """Whether a reward function is a user's own."""
    return ":" in name


def imported(path: str) -> RewardFunction:
    """A user's own function. Importing runs their code: only a path from the command line may come here."""
    place, _, name = path.rpartition(":")
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever a user's own code raises
        raise ConfigError(f"the reward function {path}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"the reward function {path}: {place} has no function {name!r}")
    return function


def _file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward function file {path.resolve()}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look it up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
