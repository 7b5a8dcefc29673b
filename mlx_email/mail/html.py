"""HTML mail to text: enough to read and to find the quotes; no layout."""

from html.parser import HTMLParser

MAX_HTML = 256 * 1024  # characters that are read; html.parser can take quadratic time on hostile input

_BLOCKS = frozenset("p div br tr li ul ol table h1 h2 h3 h4 h5 h6 hr pre blockquote".split())
_HIDDEN = frozenset("script style head title".split())


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden = 0  # depth of elements whose text is not shown
        self.quoted = 0  # depth of blockquotes

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in _HIDDEN
        self.quoted += tag == "blockquote"
        if tag in _BLOCKS:
            self.pieces.append("\n" + ">" * min(self.quoted, 5))

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(0, self.hidden - (tag in _HIDDEN))
        self.quoted = max(0, self.quoted - (tag == "blockquote"))
        if tag in _BLOCKS:
            self.pieces.append("\n" + ">" * min(self.quoted, 5))

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(" ".join(f"|{data}|".split())[1:-1])  # runs of space to one; the bars keep those at the ends


def html_to_text(html: str) -> str:
    """The text of an HTML document; blocks begin on their own line, blockquotes with `>`.

    >>> html_to_text("<p>Hello <b>Bob</b>,</p><blockquote>old</blockquote>&amp; bye")
    'Hello Bob,\\n>old\\n& bye'
    """
    parser = _Text()
    try:
        parser.feed(html[:MAX_HTML])
        parser.close()
    except (AssertionError, ValueError):  # html.parser on broken declarations; what came before is kept
        pass
    lines = (line.strip() for line in "".join(parser.pieces).split("\n"))
    return "\n".join(line for line in lines if line.strip("> "))
