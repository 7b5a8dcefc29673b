"""The test split, looked at once, when all stages are done: nothing after depends on it.

RUN/STAGE/test.csv           what its policy said of those messages (`evaluate.predictions`)
         /metrics.json       how good that is
         /calibration.json   what makes its confidences shares of right answers (`evaluate.calibrate`)
         /acting.json        when it may act alone, chosen on validation mail (`evaluate.acting`)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mlx_email import files, gate, telling
from mlx_email.config import Reward
from mlx_email.errors import DataError
from mlx_email.evaluate import acting, calibrate, costs, metrics, predictions
from mlx_email.jobs import Run, spread, whole
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.measure import Policy, evaluate_reward, predict_each
from mlx_email.model import lora, source
from mlx_email.model import reward as rewarding
from mlx_email.model.frozen import Frozen
from mlx_email.stages import AnyStage
from mlx_email.train import run as runs
from mlx_email.train.checkpoint import put_adapters
from mlx_email.train.run import DATA
from mlx_email.train.stage import result

RANKED = 500  # messages to test on, at most, that a reward model ranks the answers of: it has five of each
PREDICTIONS = "test.csv"


def test(
    run: Run, stages: Sequence[AnyStage], rows: Sequence[Row], priorities: np.ndarray
) -> Iterator[tuple[str, dict[str, Any]]]:
    """How each of some finished stages does on the test split, by its name; read where it was measured before, on as
    many messages. All policies that were not are asked in one pass over the messages. `priorities`: what each action's
    was in training (`evaluate.priority`)."""
    known = {}
    for stage in stages:
        before = tested(run.folder, stage).get("test", {})
        there = isinstance(stage, Reward) or _told(run.folder / stage.name / PREDICTIONS, len(rows))
        if before.get("of_messages", before.get("messages")) == len(rows) and there:
            known[stage.name] = before
    asked = [stage.name for stage in stages if stage.name not in known and not isinstance(stage, Reward)]
    said = dict(zip(asked, said_by(run, asked, rows), strict=True)) if asked else {}
    for stage in stages:
        if stage.name not in known:
            if isinstance(stage, Reward):
                found = ranked(run, stage, rows)
            else:
                found = metrics.summary(rows, said[stage.name], priorities)
            if stage.name in said:
                predictions.write(run.folder / stage.name / PREDICTIONS, rows, said[stage.name])
                run.tracking.table(f"{stage.name}/test", *telling.columns(rows, said[stage.name]))
            followed = {name: value for name, value in found.items() if name not in metrics.BY_GROUP}
            telling.tell(run, {"event": "evaluate", "stage": stage.name, **followed})
            files.write_json(run.folder / stage.name / runs.METRICS, found)
            known[stage.name] = found
        acts = {} if isinstance(stage, Reward) else acting_of(run, stage, rows)
        yield stage.name, {**known[stage.name], **acts}


def _told(file: Path, messages: int) -> bool:
    """Whether a table of predictions is there, whole, of so many messages."""
    with suppress(DataError):
        return file.is_file() and len(predictions.read(file)) == messages
    return False


def said_by(run: Run, stages: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
    """Probabilities of the five actions by each of some stages' policies, (S, N, 5)."""
    policies = []
    for stage in stages:
        put_adapters(result(run.folder, stage) / lora.ADAPTERS, run.base.model)
        policies.append(Frozen.of(run.base.model))
    return predict_each(Policy(run.base, run.words, run.config, ", ".join(stages)), policies, rows, run.progress)


def acting_of(run: Run, stage: AnyStage, rows: Sequence[Row]) -> dict[str, Any]:
    """Calibrate a stage's policy and choose when it may act alone, by what it said of the validation mail; gives what
    both are worth on the test split. What it said is in its tables: this takes no model."""
    folder, settings = run.folder / stage.name, run.config.acting
    there = (folder / gate.PREDICTIONS).is_file()  # not where there is no mail to validate on
    said, target = predictions.read_both(folder / gate.PREDICTIONS) if there else NOTHING_SAID
    found = calibrate.fit(np.log(np.maximum(said, calibrate.TINY)), target, settings.calibration)
    calibrated = calibrate.calibrated(found, predictions.read(folder / PREDICTIONS))
    rules = acting.choose(calibrate.calibrated(found, said), target, settings)
    rules = acting.verified(rules, calibrated, metrics.targets(rows))
    if _before(calibrate.read, folder, calibrate.FILE) != found:
        calibrate.write(folder, found)
    if _before(acting.read, folder, acting.FILE) != rules:
        acting.write(folder, rules)
    worth = metrics.certainty(rows, calibrated)
    worth |= costs.summary(metrics.targets(rows), calibrated, costs.matrix(settings.costs))
    return {"calibrated": worth, "acting": acting.told(rules)}


def _before(read: Callable[[Path], Any], folder: Path, name: str) -> Any:
    """What a file of a stage held before; None where it is not there or damaged."""
    with suppress(DataError):
        return read(folder) if (folder / name).is_file() else None
    return None


NOTHING_SAID = np.zeros((0, len(ACTIONS))), np.zeros(0, int)


def ranked(run: Run, stage: Reward, rows: Sequence[Row]) -> dict[str, Any]:
    """How a reward model ranks, on some of the messages to test on."""
    model = rewarding.load(run.base, result(run.folder, stage.name))
    split = whole(stage, run.folder / DATA / FEATURES, "test")
    found = evaluate_reward(model, run.words, stage, run.config, spread(rows, RANKED), split)
    return {**found, "of_messages": len(rows)}


def tested(run: Path, stage: AnyStage) -> dict[str, Any]:
    """What was measured of a stage on the test split before, as `test`; nothing where it was not."""
    file = run / stage.name / runs.METRICS
    return {"test": source.read_object(file)} if file.is_file() else {}
