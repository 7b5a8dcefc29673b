"""What a message says itself, and what it quotes or forwards.

Four habits of quoting are known: Outlook's `-----Original Message-----` or From/Sent/To block, Lotus Notes' name and
date above a To/cc/Subject block, `Forwarded by ... on ...`, and RFC mail's `On ... wrote:` with `>`. In the first
three everything below the border is quoted; in the last only the lines that say so.
Left out: text typed below a forwarded block cannot be told from the block, and counts as quoted.
"""

import re
from typing import NamedTuple

# A Notes forward breaks its line anywhere: "------ Forwarded by Ann B Low/HOU/ECT on 11/16/2000 \n02:50 PM -----".
# English, German, French, Spanish, Italian, Portuguese and Dutch, as Outlook, Gmail and Apple Mail write them.
_FORWARDED = re.compile(
    r"-{3,}[ \t]*(?:Forwarded (?:by|message)|Weitergeleitete Nachricht|Message transféré|Mensaje reenviado"
    r"|Messaggio inoltrato|Mensagem encaminhada|Doorgestuurd bericht)\b"
    r"|Begin forwarded message:|Anfang der weitergeleiteten Nachricht:|Début du message (?:réexpédié|transféré)\b",
    re.IGNORECASE,
)
_ORIGINAL = re.compile(
    r"-{2,}[ \t]*(?:Original Message|Original Appointment|Reply Message|Ursprüngliche Nachricht|Originalnachricht"
    r"|Message d.origine|Mensaje original|Messaggio originale|Mensagem original|Oorspronkelijk bericht)\b",
    re.IGNORECASE,
)
_WROTE = re.compile(
    r"(?:On .{5,300}? wrote|Am .{5,300}? schrieb(?: .{1,100})?|Le .{5,300}? a écrit|El .{5,300}? escribió"
    r"|Il (?:giorno )?.{5,300}? ha scritto|Em .{5,300}? escreveu|Op .{5,300}? schreef(?: .{1,100})?)"
    r"[ \xa0]?:[ \t]*(?:$|>)"
)
_WROTE_STARTS = ("On ", "Am ", "Le ", "El ", "Il ", "Em ", "Op ")
_FROM = ("from:", "von:", "de :", "de:", "da:", "van:")
_NOTES_DATE = re.compile(
    r"(.*?)(?:\bon[ \t]+)?\d{1,2}/\d{1,2}/\d{2,4}[ \t]+\d{1,2}:\d{2}(?::\d{2})?[ \t]*(?:[AP]M)?(?:[ \t]+\w{3})?$"
)
_SENT_OR_DATE = re.compile(
    r"(?:Sent|Date|Gesendet|Datum|Envoyé|Enviado(?: el| em)?|Fecha|Inviato|Data|Verzonden)[ \t\xa0]*:", re.IGNORECASE
)
_TO_OR_SUBJECT = re.compile(
    r"(?:To|Subject|An|Betreff|À|Objet|Para|Asunto|A|Oggetto|Assunto|Aan|Onderwerp)[ \t\xa0]*:", re.IGNORECASE
)

LOOK = 6  # lines around a candidate border in which the rest of its block must stand


class Parts(NamedTuple):
    """A body, split."""

    new: str  # what the sender wrote
    quoted: str  # the rest, marks and headings included; "" where nothing is quoted
    forwarded: bool  # the border says "forwarded"


def split(body: str) -> Parts:
    """Tell what is new in a body from what it quotes. Linear in the body's length.

    >>> split("Yes.\\n\\n-----Original Message-----\\nFrom: Ann\\nLunch?").new
    'Yes.'
    >>> split("On Monday, Ann wrote:\\n> Lunch?\\nYes.\\n> Where?\\nHere.").new
    'Yes.\\nHere.'
    """
    lines = body.split("\n")
    new: list[str] = []
    quoted: list[str] = []
    skip_to = 0
    for index, line in enumerate(lines):
        text = line.strip()
        if index < skip_to or text.startswith(">"):
            quoted.append(line)
            continue
        wrote = _attribution(lines, index, text)
        if wrote:  # the attribution may be wrapped over lines
            quoted.append(line)
            skip_to = index + wrote
            continue
        border = _border(lines, index, text)
        if border is not None:
            cut = max(0, len(new) - (index - border))  # a Notes block is known by a line below its first
            tail = [*new[cut:], *lines[index:]]
            return Parts(_trim(new[:cut]), "\n".join([*quoted, *tail]), bool(_FORWARDED.match(text)))
        new.append(line)
    return Parts(_trim(new), "\n".join(quoted), False)


def _trim(lines: list[str]) -> str:
    return "\n".join(line.rstrip() for line in lines).strip()


def _attribution(lines: list[str], index: int, text: str) -> int:
    """How many lines `On ... wrote:` takes here, 0 where there is none."""
    if not text.startswith(_WROTE_STARTS):
        return 0
    for count in (1, 2, 3):
        if _WROTE.match(" ".join(line.strip() for line in lines[index : index + count])[:400]):
            return count
    return 0


def _border(lines: list[str], index: int, text: str) -> int | None:
    """The first line of the quoted block that `lines[index]` shows to be there, or None."""
    start = text[:8].lower()
    if start.startswith(("--", "begin", "anfang", "début")):
        return index if _FORWARDED.match(text) or _ORIGINAL.match(text) else None
    if start.replace("\xa0", " ").startswith(_FROM):
        block = [line.strip() for line in lines[index + 1 : index + LOOK]]
        if any(map(_SENT_OR_DATE.match, block)) and any(map(_TO_OR_SUBJECT.match, block)):
            return index
    elif start.startswith("to:"):
        return _notes_border(lines, index)
    return None


def _notes_border(lines: list[str], index: int) -> int | None:
    """The first line of a Notes block whose To: line is `lines[index]`: a name and a date above it, or cc and Subject
    below (the block that Notes leaves when the sender was the owner)."""
    for above in range(index - 1, max(-1, index - LOOK), -1):
        text = lines[above].strip()[:300]
        dated = _NOTES_DATE.match(text)
        if dated:
            if not dated[1].strip():  # the name stands alone, on the line above
                for name in range(above - 1, max(-1, above - 3), -1):
                    if lines[name].strip():
                        return name
            return above
    below = [line.strip().lower() for line in lines[index + 1 : index + LOOK]]
    if any(line.startswith("cc:") for line in below) and any(line.startswith("subject:") for line in below):
        return index
    return None
