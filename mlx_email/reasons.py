"""What the final policy of a run gives as its reasons where it was surely wrong: for the report.

RUN/STAGE/reasons.json   by owner and message what it wrote after the action that it chose. It is what a model makes of
                         mail, and as private as that
"""

from collections.abc import Sequence
from pathlib import Path

from mlx_email import files
from mlx_email.errors import MlxEmailError
from mlx_email.evaluate.explain import explain
from mlx_email.jobs import Run
from mlx_email.labels.schema import ACTIONS, Action, Row
from mlx_email.model import lora, source
from mlx_email.report import said as saying
from mlx_email.report.examples import Explain
from mlx_email.report.mail import Key
from mlx_email.train import run as runs
from mlx_email.train.checkpoint import put_adapters
from mlx_email.train.stage import result

FILE = "reasons.json"


def asked(run: Run, stage: str, rows: Sequence[Row]) -> Explain:
    """Reasons for what a stage's policy said of some of these messages: those that are kept, the others asked for and
    kept."""

    def reasons(keys: list[Key]) -> list[str | None]:
        actions = _actions(run.folder / stage)
        before = _kept(run.folder / stage, actions)
        known = {(row.user, row.message_id): row for row in rows}
        missing = [key for key in keys if key not in before and key in known and key in actions]
        if missing:
            model = run.base.model
            put_adapters(result(run.folder, stage) / lora.ADAPTERS, model)
            model.eval()
            limit = run.config.max_prompt_tokens
            found = explain(
                run.base, run.words, [known[key] for key in missing], [actions[key] for key in missing], limit=limit
            )
            before |= {key: each.reasoning for key, each in zip(missing, found, strict=True)}
            shown = [(key, reason) for key, reason in before.items() if key in set(keys)]
            lines = [{"user": u, "message_id": i, "action": actions[u, i], "reasoning": r} for (u, i), r in shown]
            files.write_json(run.folder / stage / FILE, {"said": lines})
        return [before.get(key) for key in keys]

    return reasons


def of_run(run: Path) -> Explain | None:
    """The reasons that are kept in a run, without asking a model; None where it has no final policy."""
    if not (run / runs.METRICS).is_file():
        return None
    stage = source.read_object(run / runs.METRICS).get("final")
    if not isinstance(stage, str):
        return None
    folder = run / stage
    found = _kept(folder, _actions(folder))
    return lambda keys: [found.get(key) for key in keys]


def _actions(folder: Path) -> dict[Key, Action]:
    """What a stage's policy said of each message of the test split."""
    said = saying.read(folder)
    if said is None:
        return {}
    keys = zip(said.users, said.ids, strict=True)
    return {key: ACTIONS[action] for key, action in zip(keys, said.predicted.tolist(), strict=True)}


def _kept(folder: Path, actions: dict[Key, Action]) -> dict[Key, str | None]:
    """Those kept for the actions that are chosen now; none where the file is not there or damaged."""
    if not (folder / FILE).is_file():
        return {}
    try:
        lines = source.read_object(folder / FILE)["said"]
        return {
            (each["user"], each["message_id"]): each["reasoning"]
            for each in lines
            if actions.get((each["user"], each["message_id"])) == each["action"]
        }
    except (MlxEmailError, KeyError, TypeError):
        return {}
