"""Unpaired examples for KTO: one action for one message, desirable or not.

Source: desirable are reply_now where answered within 4 h and archive where archived and no action was requested;
undesirable is archive where archived although urgency > 0.7. (!) A message can be both; mended, see `unpaired`. (!) The
other actions have no label at all, so all that is undesirable is archive.
"""

from collections.abc import Iterable

import msgspec

from mlx_email.labels.examples.contrasts import wrong_actions
from mlx_email.labels.examples.doubt import SETTLED
from mlx_email.labels.examples.order import by_owner, stream
from mlx_email.labels.schema import Action, Row, predicted_action

URGENT = 0.7  # archived although more urgent than this is not what should be done (the source's border)


class Unpaired(msgspec.Struct, frozen=True):
    """A message, an action, and whether the action is the one wanted."""

    row: Row
    action: Action
    desirable: bool


def unpaired(rows: Iterable[Row], seed: int) -> list[Unpaired]:
    """At most one label a message and action; owner by owner, each in the order of time.

    What the owner did is desirable, but for archive: where urgency > 0.7 it is undesirable, whatever else holds; else
    desirable where no action was requested; else without a label. Wrong actions, drawn as for contrasts, are
    undesirable: for as many of the messages with a desirable label as bring both classes to the same number (as KTO
    wants with equal weights), unless the archived urgent ones are more already.

    A message whose label is not settled has no label; one archived without trash to look in may have been deleted, so
    for it archive counts, and delete is never called wrong.
    """
    made: list[Unpaired] = []
    for (user, split), mail in by_owner(rows).items():
        labels = [(row, label) for row in mail if (label := taken_label(row)) is not None]
        wanted = [index for index, (_, desirable) in enumerate(labels) if desirable]
        rng = stream(seed, "unpaired", user, split)
        contrasted = set(rng.sample(wanted, max(0, 2 * len(wanted) - len(labels))))
        for index, (row, desirable) in enumerate(labels):
            made.append(Unpaired(row, predicted_action(row.action, row.response_time_hours), desirable))
            if index in contrasted:
                draw = stream(seed, "unpaired", user, row.message_id)
                made += [Unpaired(row, wrong, False) for wrong in wrong_actions(row, draw)]
    return made


def taken_label(row: Row) -> bool | None:
    """Whether what the owner did is desirable; None where nothing is said.

    >>> from datetime import datetime
    >>> def letter(**values):
    ...     return Row(message_id="1", user="ann", date=datetime(2026, 1, 2), sender="bob@example.com", **values)
    >>> taken_label(letter(action="forwarded")), taken_label(letter()), taken_label(letter(urgency=0.8))
    (True, True, False)
    >>> taken_label(letter(is_action_request=True)) is None
    True
    """
    if row.label_quality not in SETTLED:
        return None
    if row.action != "archived":
        return True
    if row.urgency > URGENT:
        return False
    return None if row.is_action_request else True
