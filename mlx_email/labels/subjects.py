"""What a subject says of its message: the marks of answers and forwards, and what is left without them."""

import re

_PREFIXES = re.compile(r"\s*((?:re|fw|fwd|aw|sv|rv|tr)\s*(?:\[\d+\]|\(\d+\))?\s*:\s*)+", re.IGNORECASE)
_REPLY = re.compile(r"\s*(?:re|aw|sv)\s*(?:\[\d+\]|\(\d+\))?\s*:", re.IGNORECASE)
_FORWARD = re.compile(r"\s*(?:fw|fwd|rv|tr)\s*(?:\[\d+\]|\(\d+\))?\s*:", re.IGNORECASE)


def normal_subject(subject: str) -> str:
    """The subject without its reply and forward marks, in lower case; "" matches nothing.

    >>> normal_subject("RE: FW: Re[2]: Budget  2001"), normal_subject("Re:"), normal_subject("Tree: oak")
    ('budget 2001', '', 'tree: oak')
    """
    marks = _PREFIXES.match(subject)
    return " ".join(subject[marks.end() if marks else 0 :].lower().split())


def marked_reply(subject: str) -> bool:
    """Whether the subject begins as an answer's does."""
    return _REPLY.match(subject) is not None


def marked_forward(subject: str) -> bool:
    """Whether the subject begins as a forward's does."""
    return _FORWARD.match(subject) is not None
