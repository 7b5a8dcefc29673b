"""What a subject says of its message: the marks of answers and forwards, and what is left without them."""

import re

# English, German, Dutch, Swedish, Norwegian, Danish, Spanish, French, Italian, Portuguese, Polish, Turkish, Finnish,
# Chinese. Danish and Norwegian forwards are Finnish replies ("VS"): a forward to its sender counts as a reply anyway.
# Italian Outlook's single letters only as it writes them.
_REPLIES = "re|aw|antw|sv|rif|res|odp|ynt|回复|答复|回覆|(?-i:R(?=:))"
_FORWARDS = "fw|fwd|wg|rv|tr|enc|vb|vs|vl|doorst|pd|转发|轉寄|(?-i:I(?=:))"
_COUNT = r"\s*(?:\[\d+\]|\(\d+\))?\s*[:\uff1a]"  # the second colon is the full-width one
_PREFIXES = re.compile(rf"\s*((?:{_REPLIES}|{_FORWARDS}){_COUNT}\s*)+", re.IGNORECASE)
_REPLY = re.compile(rf"\s*(?:{_REPLIES}){_COUNT}", re.IGNORECASE)
_FORWARD = re.compile(rf"\s*(?:{_FORWARDS}){_COUNT}", re.IGNORECASE)


def normal_subject(subject: str) -> str:
    """The subject without its reply and forward marks, in lower case; "" matches nothing.

    >>> normal_subject("RE: FW: Re[2]: Budget  2001"), normal_subject("Re:"), normal_subject("Tree: oak")
    ('budget 2001', '', 'tree: oak')
    """
    return " ".join(split_marks(subject)[1].lower().split())


def split_marks(subject: str) -> tuple[str, str]:
    """The marks of answers and forwards at a subject's beginning, white space included, and the rest.

    >>> split_marks("RE: Fw:  Budget: 2001"), split_marks("Budget")
    (('RE: Fw:  ', 'Budget: 2001'), ('', 'Budget'))
    """
    marks = _PREFIXES.match(subject)
    end = marks.end() if marks else 0
    return subject[:end], subject[end:]


def marked_reply(subject: str) -> bool:
    """Whether the subject begins as an answer's does."""
    return _REPLY.match(subject) is not None


def marked_forward(subject: str) -> bool:
    """Whether the subject begins as a forward's does."""
    return _FORWARD.match(subject) is not None
