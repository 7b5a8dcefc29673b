"""What a message itself says of its urgency: computed from the message alone, so nothing later can leak in.

Only what the sender wrote counts, not what they quote; a forward without a word of its own is judged by what it
forwards. The patterns are English, as the benchmark's mail is.
"""

import re

import msgspec

from mlx_email.mail.message import Message
from mlx_email.mail.quotes import Parts, split

READ_CHARACTERS = 4000  # of the new text; a request stands near the top, and below come signatures and disclaimers

URGENCY_BASE = 0.35
URGENCY = {  # added to the base where true; the sum is cut to 0..1
    "urgent_words": 0.30,
    "action_request": 0.15,
    "question": 0.10,
    "few_recipients": 0.10,
    "bulk": -0.25,
}
FEW_RECIPIENTS, MANY_RECIPIENTS = 3, 20

# A question mark that ends a word: not the "?" of an address on the web.
_QUESTION = re.compile(r"[\w\"')\]]\s?[?]+(?=[\s\"')\]!.]|$)")

_REQUEST = re.compile(
    r"\b(?:please|pls|kindly)\s+(?!contact\b|note\b|visit\b|click\b|notify\b|find\b|disregard\b|delete\b|feel\b|do\snot\b"
    r"|don't\b|see\b|accept\b|join\b)\w"
    r"|\b(?:can|could|would|will)\s+you\b"
    r"|\blet\s+(?:me|us)\s+know\b"
    r"|\bget\s+back\s+to\s+(?:me|us)\b"
    r"|\b(?:i|we)(?:'ll)?\s+(?:need|want|would\s+like)\s+(?:you|your)\b"
    r"|\baction\s+(?:required|needed|requested)\b"
    r"|\bfor\s+your\s+(?:approval|signature|review)\b"
    r"|\byour\s+(?:approval|comments|thoughts|feedback|response|input)\b",
    re.IGNORECASE,
)
_URGENT = re.compile(
    r"\b(?:urgent(?:ly)?|asap|a\.s\.a\.p|immediate(?:ly)?|deadline|right\s+away|time[-\s]sensitive|emergency|critical"
    r"|today|tonight|this\s+(?:morning|afternoon)|eod|cob|end\s+of\s+(?:the\s+)?day|close\s+of\s+business)\b",
    re.IGNORECASE,
)
_BULK = re.compile(r"\bunsubscribe\b|\bnewsletter\b|\bmailing\s+list\b|\bopt[-\s]out\b", re.IGNORECASE)
_BULK_SENDER = re.compile(r"^(?:no-?reply|do-?not-?reply|newsletter|announce|bounce|list|mailer-daemon)", re.IGNORECASE)


class TextFeatures(msgspec.Struct, frozen=True):
    """What a message's words and headers show."""

    urgency: float  # 0..1
    is_question: bool
    is_action_request: bool


def text_features(message: Message, parts: Parts | None = None) -> TextFeatures:
    """The features of one message; `parts` is its body, split, where the caller has that already.

    urgency = 0.35 + 0.30 urgent words + 0.15 request + 0.10 question + 0.10 (at most 3 recipients)
              - 0.25 (newsletter, automatic sender, or more than 20 recipients), cut to 0..1

    >>> text_features(Message(message_id="1", to=("a@x",), body="Could you send it today?"))
    TextFeatures(urgency=1.0, is_question=True, is_action_request=True)
    """
    parts = parts or split(message.body)
    text = (parts.new or parts.quoted)[:READ_CHARACTERS]
    is_question = _QUESTION.search(text) is not None
    is_request = _REQUEST.search(text) is not None
    recipients = len(message.to) + len(message.cc)
    signs = {
        "urgent_words": _URGENT.search(f"{message.subject}\n{text}") is not None,
        "action_request": is_request,
        "question": is_question,
        "few_recipients": 1 <= recipients <= FEW_RECIPIENTS,
        "bulk": recipients > MANY_RECIPIENTS
        or _BULK_SENDER.match(message.sender) is not None
        or _BULK.search(message.body) is not None,
    }
    urgency = URGENCY_BASE + sum(URGENCY[name] for name, true in signs.items() if true)
    return TextFeatures(round(min(1.0, max(0.0, urgency)), 4), is_question, is_request)
