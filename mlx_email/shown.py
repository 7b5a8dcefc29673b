"""Text from mail on a terminal: one line that cannot move the cursor, colour, hide or forge another one."""

import re
import sys
import unicodedata

# ECMA-48: CSI ... final byte; the strings that OSC, DCS, SOS, PM and APC begin, to their end or else to the line's; and
# the short sequences. Each in its 7-bit and its 8-bit form.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Controls; what is not seen and may turn the direction (Cf: bidi marks, zero-width characters, tags); halves of
# characters; those that no font or only a private one knows.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_SPACES = frozenset({"Zs", "Zl", "Zp"})
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]+"
)


def one_line(text: str) -> str:
    """The text on one line, without escape sequences, control, formatting and invisible characters.

    >>> one_line("Hi\\r\\n\\x1b[31mdelete\\x1b[0m   0.99\\u202e gpj\\u200b.exe")
    'Hi delete 0.99 gpj.exe'
    """
    plain = _BLANK.sub(" ", _ESCAPES.sub("", text))
    return " ".join("".join(_character(each) for each in plain).split())


def _character(character: str) -> str:
    category = unicodedata.category(character)
    if category in _SPACES or character.isspace():
        return " "
    return "" if category in _UNSEEN else character


def cells(text: str) -> int:
    """How many columns of a terminal a line takes.

    >>> cells("abc"), cells("日本"), cells("e\\u0301")
    (3, 4, 1)
    """
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fitted(text: str, width: int, *, keep_end: bool = False) -> str:
    """One line of exactly `width` columns: padded, or cut where `...` stands, at its end or at its beginning.

    >>> fitted("budget", 8), fitted("the budget", 8), fitted("mail/cur/17.M1", 9, keep_end=True)
    ('budget  ', 'the b...', '.../17.M1')
    """
    line = one_line(text)
    if cells(line) > width or len(line) > 2 * width:
        step = -1 if keep_end else 1
        kept, left = "", width - 3
        for character in line[::step][: 2 * width]:  # of marks upon marks not more than as many again
            left -= _width(character)
            if left < 0:
                break
            kept += character
        line = "..." + kept[::-1] if keep_end else kept + "..."
    return line + " " * (width - cells(line))


def printed(text: str) -> str:
    """The text with what standard output has no characters for replaced by `?`."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
