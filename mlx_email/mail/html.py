"""HTML mail to text: enough to read and to find the quotes; no layout.

A scanner of our own, in one pass: html.parser takes quadratic time on hostile input (minutes for 256 kB of `<!--`).
Left out: a `>` inside an attribute's value ends the tag.
"""

import re
from collections.abc import Iterator
from html import unescape

_BLOCKS = frozenset("p div br tr li ul ol table h1 h2 h3 h4 h5 h6 hr pre blockquote".split())
_HIDDEN = frozenset("script style title".split())  # their content is no text, and no markup either
_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*)|<[!?/]")
_MAX_QUOTES = 5  # depth of `>` marks that is shown


def html_to_text(html: str) -> str:
    """The text of an HTML document; blocks begin on their own line, blockquotes with `>`.

    >>> html_to_text("<p>Hello <b>Bob</b>,</p><blockquote>old</blockquote>&amp; bye")
    'Hello Bob,\\n>old\\n& bye'
    """
    pieces: list[str] = []
    quoted = 0  # depth of blockquotes
    for text, tag in _scan(html):
        # Runs of white space become one space; the bars keep those at the two ends.
        pieces.append(" ".join(f"|{_unescape(text)}|".split())[1:-1])
        if tag.strip("/") == "blockquote":
            quoted = max(0, quoted + (-1 if tag.startswith("/") else 1))
        if tag.strip("/") in _BLOCKS:
            pieces.append("\n" + ">" * min(quoted, _MAX_QUOTES))
    lines = (line.strip() for line in "".join(pieces).split("\n"))
    return "\n".join(line for line in lines if line.strip("> "))


def _scan(html: str) -> Iterator[tuple[str, str]]:
    """(text, the tag after it) all through the document: "p", "/p", or "" where it is none that matters."""
    position = 0
    while (found := _TAG.search(html, position)) is not None:
        name = (found[1] or "").lower()
        comment = html.startswith("<!--", found.start())
        end = html.find("-->" if comment else ">", found.end())
        yield html[position : found.start()], f"/{name}" if html[found.start() + 1] == "/" else name
        if end >= 0 and name in _HIDDEN and html[found.start() + 1] != "/":
            closing = re.compile(rf"</{name}", re.IGNORECASE).search(html, end)
            end = html.find(">", closing.end()) if closing else -1
        if end < 0:  # never closed: what follows is not text
            return
        position = end + (3 if comment else 1)
    yield html[position:], ""


def _unescape(text: str) -> str:
    try:
        return unescape(text)
    except ValueError:  # a character's number of thousands of digits
        return text
