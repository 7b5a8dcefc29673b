"""RUN/report.html: what a run is worth, for a person who wants to know whether it may act alone.

One file with everything in it; it asks for nothing from anywhere, and its own policy lets no browser do so.
"""

from collections.abc import Callable
from pathlib import Path

from mlx_email import files
from mlx_email.report import draw, page, read
from mlx_email.report.draw import TABLES
from mlx_email.report.examples import Explain

__all__ = ["FILE", "TABLES", "attempt", "drawn", "write"]

FILE = "report.html"


def write(run: Path, explain: Explain | None = None) -> Path:
    """Write a run's report, again where there is one: the same run gives the same bytes, whenever and wherever.

    `explain` is asked, by owner and message id, for the policy's reasoning behind the mistakes that are shown; one that
    has none gives None. Raises UserError where `run` is no run, or nothing of it was measured; DataError where a table
    of it is damaged.
    """
    text = page.page(read.run(run), explain, charts=drawn())
    files.write(run / FILE, text)
    return run / FILE


def drawn() -> bool:
    """Whether a report has charts: whether matplotlib is installed."""
    return draw.available()


def attempt(run: Path, note: Callable[[str], object], explain: Explain | None = None) -> None:
    """`write`, at the end of a run: whatever is wrong with a report, the run is finished; `note` gets a line."""
    try:
        file = write(run, explain)
    except Exception as error:
        (run / FILE).unlink(missing_ok=True)  # it would tell of what is no longer so
        said = " ".join(str(error).split())
        note(f"warning: no {run / FILE} ({type(error).__name__}: {said}): mlx-email report {run} tries again")
    else:
        if not drawn():
            note(f"{file}: {TABLES}")
