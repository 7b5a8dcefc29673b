"""Charts as SVG that stands in a page: its colours and font are the page's, so that it can be read in light and dark.
matplotlib is imported when the first is drawn."""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlx_email.report.tags import Html, element

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib knows no variables of CSS: it draws in colours that nothing else has, which are replaced.
NAMES = ("ink", "muted", "line", "paper", "c1", "c2", "c3", "c4")
COLOURS = {name: f"#0102{number:02x}" for number, name in enumerate(NAMES)}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "text.color": COLOURS["ink"],
    "font.size": 11,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelsize": 11,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.8,
}


TABLES = "numbers in tables, no charts: pip install 'mlx-email[report]' adds what draws them"


def available() -> bool:
    """Whether charts can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def svg(name: str, width: float, height: float, label: str, paint: "Callable[[Figure], object]") -> Html:
    """What `paint` draws on a figure of so many points, as inline SVG; `label` says it in words. The same drawing gives
    the same bytes; `name` keeps what is referred to in it apart from that of other charts in the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own settings are
        settings: dict[Any, Any] = {**STYLE, "svg.hashsalt": name}
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(width / 72, height / 72))
        paint(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    box = f"0 0 {width:g} {height:g}"
    return element("svg", _inline(text.getvalue()), class_="chart", role="img", aria_label=label, viewBox=box)


def panel(figure: "Figure", *, left: float, right: float = 20, bottom: float = 38, top: float = 12) -> "Axes":
    """Axes with margins of so many points."""
    width, height = (size * 72 for size in figure.get_size_inches())
    across, up = (width - left - right) / width, (height - top - bottom) / height
    return figure.add_axes((left / width, bottom / height, across, up))


def _inline(text: str) -> Html:
    """The inside of an SVG file, for a page: without fonts, without ids that nothing refers to."""
    inside = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    inside = re.sub(r"<(metadata|style)\b.*?</\1>", "", inside, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", inside))
    inside = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", inside)
    # Up to matplotlib 3.9 the font is one property, its size within.
    inside = re.sub(r"font: (?:[a-z0-9]+ )*([\d.]+px) [^;\"]*", r"font-size: \1", inside)
    inside = re.sub(r"font-family: [^;\"]*;? ?", "", inside)
    for name, colour in COLOURS.items():
        inside = inside.replace(colour, f"var(--{name})")
    return Html(re.sub(r"\n\s*", " ", inside).strip())
