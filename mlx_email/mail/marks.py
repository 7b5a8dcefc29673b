"""What mail programs wrote into a message's headers: marks in Status lines, and Gmail's labels."""

import csv
from collections.abc import Iterable, Mapping

from mlx_email.mail.headers import decode_header
from mlx_email.mail.message import Mark, NotMail
from mlx_email.mail.names import DRAFTS, folder_key

MAX_LABELS = 1000  # of one message; Gmail allows 10,000 of a whole mailbox

# Gmail's own names for what a label says of a message, as its export writes them (see `names` for the languages).
STARRED = frozenset("starred markiert suivis destacados speciali com_estrela met_ster".split())
UNREAD = frozenset("unread ungelesen non_lus no_leidos non_letti da_leggere nao_lidas nao_lidos ongelezen".split())

_STATUS: dict[str, Mark] = {"A": "answered", "F": "flagged", "D": "trashed", "T": "draft"}
_MOZILLA: tuple[tuple[int, Mark], ...] = ((0x0002, "answered"), (0x0004, "flagged"), (0x1000, "forwarded"))
_MOZILLA_READ, _MOZILLA_EXPUNGED = 0x0001, 0x0008


def gmail_labels(header: str) -> tuple[str, ...]:
    """The labels of an X-Gmail-Labels header, each once: encoded as a whole, comma separated, quoted where needed.

    >>> gmail_labels('=?UTF-8?Q?Gesendet,Entw=C3=BCrfe,"Oak,_Elm"?=,\\n Oak')
    ('Gesendet', 'Entwürfe', 'Oak, Elm', 'Oak')
    """
    text = decode_header(header)
    try:
        labels: list[str] = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error:  # a label of more than 128 kB
        labels = text.split(",")
    return tuple(dict.fromkeys(label.strip() for label in labels if label.strip()))[:MAX_LABELS]


def all_marks(headers: Mapping[str, str], labels: Iterable[str], given: Iterable[Mark]) -> tuple[Mark, ...]:
    """All marks of a message, sorted: those its place gave, its Status headers' and those of Gmail's labels.

    Raises NotMail for a message that its program deleted and only left in the file until it is compacted.

    >>> all_marks({"status": "RO", "x-status": "A"}, ["Oak", "Starred"], ["forwarded"])
    ('answered', 'flagged', 'forwarded')
    >>> all_marks({"status": "O"}, [], []), all_marks({"x-mozilla-status": "0003"}, [], []), all_marks({}, [], [])
    (('unseen',), ('answered',), ())
    """
    marks = set(given)
    keys = {folder_key(label) for label in labels}
    marks |= {mark for mark, names in _label_marks() if names & keys}
    marks |= {mark for flag, mark in _STATUS.items() if flag in _letters(headers, "x-status")}
    seen: list[bool] = []  # what each of the headers that are there says
    if "status" in headers or "x-status" in headers:
        seen.append("R" in _letters(headers, "status") + _letters(headers, "x-status"))
    mozilla = _hex(headers.get("x-mozilla-status", ""))
    if mozilla is not None:
        if mozilla & _MOZILLA_EXPUNGED:
            raise NotMail("deleted from its folder, not yet compacted")
        marks |= {mark for bit, mark in _MOZILLA if mozilla & bit}
        seen.append(bool(mozilla & _MOZILLA_READ))
    if _is_automatic(headers):
        marks.add("automatic")
    if seen and not any(seen):
        marks.add("unseen")
    return tuple(sorted(marks))


def _is_automatic(headers: Mapping[str, str]) -> bool:
    """Whether a program sent the message as an answer: RFC 3834, and what stood for it before.

    >>> _is_automatic({"auto-submitted": "auto-replied"}), _is_automatic({"auto-submitted": "no"})
    (True, False)
    """
    said = headers.get("auto-submitted", "")[:100].strip().lower()
    return said.startswith("auto-replied") or bool({"x-autoreply", "x-autorespond"} & headers.keys())


def _label_marks() -> tuple[tuple[Mark, frozenset[str]], ...]:
    return ("flagged", STARRED), ("draft", DRAFTS), ("unseen", UNREAD)


def _letters(headers: Mapping[str, str], name: str) -> str:
    return headers.get(name, "")[:100].upper()


def _hex(text: str) -> int | None:
    digits = text.strip()[:9]
    try:
        return int(digits, 16) if digits.isalnum() and len(digits) <= 8 else None
    except ValueError:
        return None
