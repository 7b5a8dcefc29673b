"""What a run's last stage would do with mail: file by file, source by source, or as it arrives."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from mlx_email import shown, trained
from mlx_email.errors import ModelError, UserError
from mlx_email.evaluate import acting
from mlx_email.evaluate.calibrate import calibrated
from mlx_email.evaluate.explain import Explanation, explain
from mlx_email.incoming import Arrived, Unread, bare_texts, letters
from mlx_email.labels.fresh import features_of
from mlx_email.labels.prepare import SENDERS
from mlx_email.labels.schema import ACTIONS, Action, Row
from mlx_email.labels.tables import People, read_people
from mlx_email.mail.message import Message
from mlx_email.measure import Policy, predict
from mlx_email.model.render import prompt_ids
from mlx_email.model.wording import BODY_CHARACTERS
from mlx_email.progress import Progress
from mlx_email.train import run as runs
from mlx_email.train.run import DATA
from mlx_email.watch import watch


@dataclass(frozen=True)
class Question:
    """What is asked of a run, beside the mail."""

    run: Path
    owner: str | None = None  # whose mailbox it is, where neither the run nor the source says it
    goal: float | None = None  # None: the usual one (`acting.usual`)
    explain: bool = False


@dataclass(frozen=True)
class Prediction:
    """What the owner of a mailbox would do with one message."""

    file: str
    path: str  # within the file or folder, as in `incoming.Arrived`
    message_id: str
    subject: str  # as it came: for `shown` to show
    action: Action
    confidence: float  # the action's probability, calibrated
    may_act: bool | None  # without asking; None where the run has no rules for that
    probabilities: dict[Action, float]
    explanation: Explanation | None  # where it was asked for


def record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON has it: of the mail itself only its id."""
    fields = ("file", "path", "message_id", "action", "confidence", "may_act", "probabilities")
    found = {name: getattr(prediction, name) for name in fields}
    if (said := prediction.explanation) is not None:
        found["priority"] = said.priority
        found["reasoning"] = said.reasoning and shown.one_line(said.reasoning)
    return found


def predict_files(asked: Question, names: Iterable[str]) -> Iterator[Prediction | Unread]:
    """Of e-mails and whole sources (`incoming.letters`), in their order; a chunk of messages is held at a time."""
    return _answers(asked, lambda size: _chunks(letters(names), size))


def predict_texts(asked: Question, names: Iterable[str], subject: str, sender: str) -> Iterator[Prediction | Unread]:
    """Of bare bodies (`incoming.bare_texts`)."""
    return _answers(asked, lambda size: _chunks(bare_texts(names, subject, sender), size))


def predict_maildir(
    asked: Question, maildir: Path, *, interval: float, once: bool, everything: bool
) -> Iterator[Prediction | Unread]:
    """Of a Maildir's messages as they arrive (`watch.watch`); it ends only with `once`."""
    polls = watch(maildir, interval=interval, once=once, everything=everything)
    return _answers(asked, lambda size: (chunk for poll in polls for chunk in _chunks(poll, size)), at_once=True)


Letters = Iterable[Sequence[Arrived | Unread]]


def _answers(
    asked: Question, letters_by: Callable[[int], Letters], *, at_once: bool = False
) -> Iterator[Prediction | Unread]:
    """Chunk by chunk. The model is loaded where there is something to predict, or `at_once`."""
    run, _ = trained.place(asked.run)
    size = runs.open_run(run).evaluation.batch_size
    people = read_people(run / DATA / SENDERS)
    owners = sorted({user for user, _ in people})
    if asked.owner is not None:
        owner_of("", asked.owner, owners)
    opened = cache(lambda: _open(asked))
    if at_once:
        opened()
    for chunk in letters_by(size):
        known = [_known(each, asked.owner, owners) if isinstance(each, Arrived) else each for each in chunk]
        yield from (each for each in known if isinstance(each, Unread))
        arrived = [each for each in known if isinstance(each, Arrived)]
        rows = [_row(each.message, owner_of(each.message.owner, asked.owner, owners), people) for each in arrived]
        if rows:
            yield from _predictions(opened(), list(zip(arrived, rows, strict=True)), explained=asked.explain)


def _chunks(found: Iterable[Arrived | Unread], size: int) -> Letters:
    rest = iter(found)
    return iter(lambda: list(islice(rest, size)), [])


def owner_of(named: str, asked: str | None, owners: Sequence[str]) -> str:
    """Whose mailbox a message is in: the one asked for, else the one its source names, else the only one of the run.

    Raises UserError for an owner that the run does not know, and for none where it knows several.
    """
    owner = asked if asked is not None else named if named in owners or len(owners) != 1 else owners[0]
    if owner in owners or not owners:
        return owner
    said = f"no owner {asked!r} in this run" if asked is not None else "which mailbox is it? give --owner"
    raise UserError(f"{said}; there are {', '.join(owners)}")


def _known(arrived: Arrived, asked: str | None, owners: Sequence[str]) -> Arrived | Unread:
    """A message, unless its source names a mailbox that a run of several does not know, and no other is asked for.

    One mailbox among others of a source; where none is named it is the question that lacks something (`owner_of`).
    """
    named = arrived.message.owner
    if asked is None and named and named not in owners and len(owners) > 1:
        return Unread(f"{arrived.called} cannot be predicted: this run does not know its mailbox")
    return arrived


def _row(message: Message, owner: str, people: People) -> Row:
    """What a prompt takes of a message; the rest of a long body is not kept."""
    row = features_of(msgspec.structs.replace(message, owner=owner), people)
    return msgspec.structs.replace(row, body=row.body[:BODY_CHARACTERS])


@dataclass(frozen=True)
class _Opened:
    policy: Policy
    rules: acting.Rules | None
    goal: float


def _open(asked: Question) -> _Opened:
    policy = trained.open_policy(asked.run)
    rules = acting.read(trained.place(asked.run)[0] / policy.stage)
    usual = acting.usual(rules) if rules else None
    if asked.goal is not None:
        return _Opened(policy, rules, acting.rule_of(rules or acting.Rules(), asked.goal).goal)
    return _Opened(policy, rules, usual.goal) if usual else _Opened(policy, None, acting.GOAL)


def _predictions(
    opened: _Opened, letters: Sequence[tuple[Arrived, Row]], *, explained: bool
) -> Iterator[Prediction | Unread]:
    policy = opened.policy
    tried = [(each, row, _obstacle(policy, row)) for each, row in letters]
    yield from (Unread(f"{each.called} cannot be predicted: {why}") for each, _, why in tried if why)
    letters = [(each, row) for each, row, why in tried if not why]
    if not letters:
        return
    rows = [row for _, row in letters]
    found = calibrated(policy.calibration, predict(policy, rows, Progress(quiet=True)))
    acts = None if opened.rules is None else acting.may_act(opened.rules, opened.goal, found)
    actions = [ACTIONS[each.argmax()] for each in found]
    said: Sequence[Explanation | None] = [None] * len(rows)
    if explained:
        said = explain(policy.base, policy.renderer, rows, actions, limit=policy.config.max_prompt_tokens)
    for at, ((each, _), action) in enumerate(zip(letters, actions, strict=True)):
        yield Prediction(
            file=each.file,
            path=each.path,
            message_id=each.message.message_id,
            subject=each.message.subject,
            action=action,
            confidence=float(found[at].max()),
            may_act=None if acts is None else bool(acts[at]),
            probabilities=dict(zip(ACTIONS, found[at].tolist(), strict=True)),
            explanation=said[at],
        )


def _obstacle(policy: Policy, row: Row) -> str:
    """Why no prompt can be made of a message; "" where one can. Nobody's mail may end what is asked of others'."""
    try:
        prompt_ids(policy.renderer, row, policy.config.max_prompt_tokens)
    except ModelError as error:
        return str(error)
    return ""
