"""The subject in other words, by rules alone: numbers, names, answer marks and urgent words stay as they are."""

import re
from collections.abc import Iterator, Mapping

from mlx_email.labels.subjects import marked_forward, marked_reply, split_marks

# Everyday office words that mean the same before any noun; no word of urgency (features.py reads those in subjects).
SYNONYMS: Mapping[str, str] = {
    "approval": "sign-off",
    "attached": "enclosed",
    "documents": "papers",
    "enclosed": "attached",
    "error": "mistake",
    "errors": "mistakes",
    "forecast": "projection",
    "info": "information",
    "information": "info",
    "issues": "problems",
    "mistake": "error",
    "mistakes": "errors",
    "overview": "summary",
    "personnel": "staff",
    "phone": "telephone",
    "problems": "issues",
    "queries": "questions",
    "query": "question",
    "question": "query",
    "questions": "queries",
    "quick": "brief",
    "revised": "updated",
    "staff": "personnel",
    "summary": "overview",
    "telephone": "phone",
    "updated": "revised",
    "vacation": "holiday",
}
PREPOSITIONS: Mapping[str, str] = {"about": "regarding", "on": "about", "regarding": "about", "concerning": "about"}

_SEPARATOR = re.compile(r"\s+[-\u2013\u2014]\s+|:\s+")
_WORD = re.compile(r"\S+")
_STOPS = ",;:.!?"
_ABOUT = re.compile(
    r"(?P<head>(?:quick )?(?:questions?|query|queries|news|info|information|comments|thoughts))"
    r" (?P<preposition>about|on|regarding|concerning) (?P<topic>\S.*)",
    re.IGNORECASE,
)
_TOPIC = re.compile(r"(?P<preposition>about|regarding|concerning) (?P<topic>\S.*)", re.IGNORECASE)


def paraphrases(subject: str) -> list[str]:
    """All that the rules make of a subject, each once and none the subject itself; [] where no rule applies.

    >>> paraphrases("RE: Budget - revised forecast")
    ['RE: Budget - revised projection', 'RE: Budget - updated forecast', 'RE: revised forecast - Budget']
    >>> paraphrases("Question about room 12")
    ['Query about room 12', 'Question regarding room 12', 'Room 12 - question']
    >>> paraphrases("Lunch")
    []
    """
    marks, rest = split_marks(subject)
    made = {text for rule in (_turned, _reworded, _asked) for text in rule(rest)} - {rest}
    return sorted(marks + text for text in made if not marked_reply(text) and not marked_forward(text))


def _turned(rest: str) -> Iterator[str]:
    """`left - right` or `left: right` as `right - left`, where that is the only way to part it."""
    parts = _SEPARATOR.split(rest)
    if len(parts) == 2 and all(re.search(r"[^\W\d_]{2}", part) for part in parts) and rest[-1] not in "?!.":
        yield f"{parts[1]} - {parts[0]}"


def _reworded(rest: str) -> Iterator[str]:
    """One word for its synonym: not after an article, before a number, or where a capital may make it a name."""
    words = list(_WORD.finditer(rest))
    for place, found in enumerate(words):
        word = found[0].rstrip(_STOPS)
        before = words[place - 1][0].lower() if place else ""
        after = words[place + 1][0][0] if place + 1 < len(words) else " "
        named = not word.islower() and (place > 0 or not word.istitle() or after.isupper())
        if word.lower() in SYNONYMS and not named and before not in ("a", "an") and not re.match(r"[\d#$]", after):
            other = SYNONYMS[word.lower()]
            yield rest[: found.start()] + _cased(other, word[0].isupper()) + rest[found.start() + len(word) :]


def _asked(rest: str) -> Iterator[str]:
    """`Question about X` as `Question regarding X` and `X - question`; `About X` as `Regarding X`."""
    found = _ABOUT.fullmatch(rest) or _TOPIC.fullmatch(rest)
    if found is None:
        return
    word, topic = found["preposition"], found["topic"]
    place = found.start("preposition")
    yield rest[:place] + _cased(PREPOSITIONS[word.lower()], word[0].isupper()) + rest[place + len(word) :]
    if "head" in found.groupdict() and topic[-1] not in "?!." and not _SEPARATOR.search(topic):
        head, capital = found["head"], found["head"][0].isupper()
        plain = topic.split()[0].isalpha() and topic.split()[0].islower()
        yield f"{_cased(topic, capital) if plain else topic} - {head.lower()}"


def _cased(text: str, capital: bool) -> str:
    return text[0].upper() + text[1:] if capital else text
