"""Reads a report as a browser would, far enough to ask what is in it."""

from html.parser import HTMLParser

from mlx_email.report.page import POLICY
from mlx_email.report.parts import TITLES

VOID = {"meta", "br", "hr", "img", "input", "link"}
# Of SVG, which an HTML parser may close itself: all that matplotlib writes.
DRAWN = {"g", "path", "use", "rect", "circle", "line", "ellipse", "polygon", "polyline", "stop"}


class Page(HTMLParser):
    """The elements of a page, with what is said in each; AssertionError where they are not well nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict, list[str]]] = []
        self.elements: list[tuple[str, dict, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, [name for name, *_ in self.open]

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), attrs
        self.open.append((tag, dict(attrs), []))
        if tag in VOID:
            self.handle_endtag(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in DRAWN, tag
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag):
        name, attrs, said = self.open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"
        self.elements.append((name, attrs, "".join(said)))

    def handle_data(self, data):
        for *_, said in self.open:
            said.append(data)

    def all(self, tag: str, **wanted: str) -> list[tuple[dict, str]]:
        """Attributes and text of the elements of a kind, in the order in which they end."""
        found = [(attrs, said) for name, attrs, said in self.elements if name == tag]
        return [each for each in found if wanted.items() <= each[0].items()]

    def section(self, name: str) -> str:
        """What a section says."""
        ((_, said),) = self.all("section", id=name)
        return said

    def rows(self, label: str) -> list[list[str]]:
        """The cells of a table below its head, by the label of its box."""
        inside, found = False, []
        # Elements end before what they lie in: a table's rows come right before its box.
        for name, attrs, _ in self.elements:
            if name == "div" and attrs.get("aria-label") == label:
                inside = True
        assert inside, f"no table {label!r}"
        cells, lines = [], []
        for name, attrs, said in self.elements:
            if name in ("td", "th"):
                cells.append(said)
            elif name == "tr":
                lines.append(cells)
                cells = []
            elif name == "div" and "scroll" in attrs.get("class", ""):
                if attrs["aria-label"] == label:
                    found = lines[1:]
                lines = []
        return found


def check(page: Page) -> None:
    """What holds of every report: all sections, nothing from elsewhere, nothing that runs, each thing's name once."""
    assert [attrs["id"] for attrs, _ in page.all("section")] == list(TITLES)
    assert page.all("meta", **{"http-equiv": "Content-Security-Policy", "content": POLICY})
    names = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(names) == len(set(names))
    for tag, attrs, said in page.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video")
        for name, value in attrs.items():
            assert not name.startswith("on"), attrs
            if name.endswith("href"):
                assert value.startswith("#") and value[1:] in names, attrs
            assert name != "src"
            assert "url(" not in value or value.split("url(")[1].startswith("#"), attrs
        assert "font-family" not in attrs.get("style", "")  # the page's own
        if tag == "style":
            assert "@import" not in said and "url(" not in said
    for attrs, _ in page.all("svg"):
        assert attrs["role"] == "img" and len(attrs["aria-label"]) > 20
    assert page.all("h1")[0][1] == "May it act alone?"
