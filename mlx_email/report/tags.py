"""HTML from plain values. What is not `Html` is text, tidied and escaped: nothing that a mail says can be markup, or
change how the page around it reads."""

import html
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from mlx_email.shown import one_line

SHOWN = 160  # characters of a subject or a name
JOINERS = "\u200c\u200d"  # formatting characters that are part of words, and of emoji
NOTHING = "\u2013"  # a dash


class Html(str):
    """Markup."""

    __slots__ = ()


def clean(text: str) -> str:
    """Text without what is not seen: control characters are spaces, and those that turn the direction of what follows
    or hide (Unicode categories Cf, Cs) are gone. Line ends stay.

    >>> clean("pay\\u202e\\x00now")
    'pay now'
    """
    kept = []
    for character in text:
        kind = unicodedata.category(character)
        if character in "\n\t" or character in JOINERS or kind[0] != "C":
            kept.append(" " if kind in ("Zl", "Zp") else character)
        elif kind == "Cc":
            kept.append(" ")
    return "".join(kept)


def shortened(text: str, limit: int = SHOWN) -> str:
    """One line, as `shown` has it, of at most so many characters.

    >>> shortened("a  b\\nc" + "d" * 9, 8)
    'a b cdd…'
    """
    line = one_line(text[: 4 * limit])
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 1] + "…"


def markup(value: object) -> Html:
    """A value as it stands in a page; None is a dash."""
    if isinstance(value, Html):
        return value
    return Html(NOTHING if value is None else html.escape(clean(str(value))))


def element(name: str, *children: object, **attributes: object) -> Html:
    """`<name ...>children</name>`; `class_` is the attribute class, `aria_label` aria-label; those that are None are
    left out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(clean(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{said}>{joined(children)}</{name}>")


def joined(parts: Iterable[object]) -> Html:
    return Html("".join(map(markup, parts)))


def mail_text(text: str | None, limit: int = SHOWN) -> Html:
    """What a mail says, by itself: `bdi` keeps its direction from what is around it."""
    return element("bdi", shortened(text or "", limit) or "(nothing)")


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    label: str,
    words: Collection[int] = (0,),
    kind: str = "",
) -> Html:
    """A table in a box of its own, which scrolls where it is too wide; columns but those in `words` hold numbers."""

    def line(values: Sequence[object], *, top: bool = False) -> Html:
        found = []
        for place, value in enumerate(values):
            heading = top or place == 0
            scope = ("col" if top else "row") if heading else None
            side = None if place in words else "number"
            found.append(element("th" if heading else "td", value, class_=side, scope=scope))
        return element("tr", *found)

    whole = element("table", element("thead", line(head, top=True)), element("tbody", *map(line, rows)))
    # A box that scrolls has to be reached by the keyboard.
    return element("div", whole, class_=f"scroll {kind}".rstrip(), role="region", aria_label=label, tabindex="0")


def percent(value: float | None, digits: int = 1) -> str:
    """
    >>> percent(0.12345), percent(0.95, 0)
    ('12.3%', '95%')
    """
    return NOTHING if value is None else f"{value:.{digits}%}"


def whole(goal: float) -> str:
    """A share that somebody has set, as they would say it.

    >>> whole(0.95), whole(0.995)
    ('95%', '99.5%')
    """
    return f"{100 * goal:g}%"


def number(value: float | None) -> str:
    """
    >>> number(12345), number(0.123456)
    ('12,345', '0.1235')
    """
    if value is None:
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def between(interval: Sequence[float] | None) -> str:
    """An interval of shares.

    >>> between((0.8, 0.912)).replace(NOTHING, " to ")
    '80.0 to 91.2%'
    """
    return NOTHING if interval is None else f"{interval[0] * 100:.1f}{NOTHING}{interval[1]:.1%}"
