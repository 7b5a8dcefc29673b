"""What the sections of a report are put together from."""

from collections.abc import Callable, Sequence

from mlx_email.labels.schema import ACTIONS
from mlx_email.report.tags import Html, element

WORDS = {action: action.replace("_", " ") for action in ACTIONS}
# The sections in their order: how the contents and how their headings name them.
TITLES = {
    "acting": ("Acting", "When it may act alone"),
    "reliability": ("Confidence", "Can its confidence be believed?"),
    "confusion": ("Confusions", "What it takes for what"),
    "mistakes": ("Mistakes", "Confident mistakes"),
    "owners": ("Owners", "Owner by owner"),
    "stages": ("Stages", "Stage by stage"),
    "training": ("Training", "How training went"),
    "data": ("Mail", "The mail"),
    "config": ("Settings", "Settings"),
    "versions": ("Versions", "Versions and hashes"),
}
Key = tuple[str, int, str]  # of a legend: colour, line style (an index of `charts.LINES`), what it stands for


def section(name: str, *children: object) -> Html:
    """A part of the page, one of TITLES."""
    return element("section", element("h2", TITLES[name][1]), *children, id=name)


def absent(name: str, why: str) -> Html:
    """A part that this run has nothing for."""
    return section(name, paragraph(why, kind="quiet"))


def paragraph(*children: object, kind: str | None = None) -> Html:
    return element("p", *children, class_=kind)


def strong(value: object) -> Html:
    return element("strong", value)


def folded(summary: str, *children: object) -> Html:
    """What is there for who asks."""
    return element("details", element("summary", summary), *children)


def legend(keys: Sequence[Key]) -> Html:
    drawn = (element("span", class_=f"key {colour} s{style}", aria_hidden="true") for colour, style, _ in keys)
    return element(
        "ul", *(element("li", key, what) for key, (*_, what) in zip(drawn, keys, strict=True)), class_="legend"
    )


def figure(
    draw: Callable[[], Html], table: Html, *, drawn: bool, keys: Sequence[Key] = (), title: str | None = None
) -> Html:
    """A chart with its legend, its numbers folded away; the numbers alone where it cannot be drawn."""
    head = element("figcaption", title) if title else Html()
    if not drawn:
        return element("figure", head, table)
    return element("figure", head, legend(keys) if keys else Html(), draw(), folded("The numbers", table))


def tiles(facts: Sequence[tuple[str, str, str]]) -> Html:
    """Numbers to be read at a glance: what, how much, beside what."""
    one = (
        element("div", element("dt", what), element("dd", strong(value), element("span", beside)))
        for what, value, beside in facts
    )
    return element("dl", *one, class_="tiles")


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def many(count: int, what: str, plural: str | None = None) -> str:
    """
    >>> many(1, "owner"), many(2000, "owner")
    ('1 owner', '2,000 owners')
    """
    return f"{count:,} {what if count == 1 else plural or what + 's'}"
