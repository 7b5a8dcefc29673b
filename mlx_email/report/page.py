"""The page: its head, its contents, and the sections one after the other."""

import importlib.resources
from functools import partial

from mlx_email.collect import RULE
from mlx_email.labels.prepare import FEATURES
from mlx_email.report import about, examples, judged, mail, training
from mlx_email.report.draw import TABLES
from mlx_email.report.examples import Explain
from mlx_email.report.mail import Mail
from mlx_email.report.parts import TITLES, absent, listed, many, paragraph
from mlx_email.report.read import Run
from mlx_email.report.tags import Html, element, joined
from mlx_email.report.verdict import verdict
from mlx_email.train.run import DATA

# Nothing is fetched, run or sent, whatever stands in the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
HEAD = f"""
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
"""
PRIVATE = "Private: this page shows senders and subjects of the mail. Keep it where the mail is."
FOOTER = "Written by mlx-email from the run folder alone; mlx-email report RUN writes it again."
NOT_SAID = "There are no predictions on the test mail (STAGE/test.csv) to show this by."


def page(run: Run, explain: Explain | None = None, *, charts: bool) -> str:
    """A whole HTML file; with or without `charts`."""
    counted = mail.counted(run.folder / DATA / FEATURES)
    main = [*_judged(run, counted, explain, charts=charts), *_made(run, counted, charts=charts)]
    note = Html() if charts else paragraph(f"Here are {TABLES}.", kind="quiet")
    body = element(
        "body",
        _header(run, counted),
        verdict(run),
        _contents(),
        note,
        element("main", *main),
        element("footer", paragraph(FOOTER)),
    )
    style = Html(importlib.resources.files("mlx_email.report").joinpath("style.css").read_text())
    title = element("title", f"{run.folder.resolve().name}: may it act alone?")
    head = joined((Html(HEAD), title, element("style", style)))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


def _judged(run: Run, counted: Mail | None, explain: Explain | None, *, charts: bool) -> list[Html]:
    """What can be said of the final policy."""
    said, counts = run.said, judged.counts_of(run)
    confused = absent("confusion", NOT_SAID) if counts is None else judged.confusion(counts)
    owners = examples.owners(said, counted)
    if said is None or not len(said.ids):
        acting, trusted, wrong = (absent(name, NOT_SAID) for name in ("acting", "reliability", "mistakes"))
        return [acting, trusted, confused, wrong, owners]
    letters = partial(mail.letters, run.folder / DATA / FEATURES)
    acting, trusted = judged.acting(run, said, drawn=charts), judged.reliability(said, drawn=charts)
    return [acting, trusted, confused, examples.mistakes(said, letters, explain), owners]


def _made(run: Run, counted: Mail | None, *, charts: bool) -> list[Html]:
    """How it came to be."""
    return [
        training.stages(run, drawn=charts),
        training.curves(run, drawn=charts),
        about.data(run, counted, drawn=charts),
        about.config(run),
        about.versions(run),
    ]


def _header(run: Run, counted: Mail | None) -> Html:
    """What was trained on what."""
    names = [stage.name for stage in run.stages]
    model = str(run.environment.get("model", "")).rpartition("/")[2] or "A model"
    said = [f"{model}, trained by {listed(names)}" if names else model]
    if counted is not None:
        owners = many(len({owner for owner, _ in counted.owners}), "owner")
        source = " (the embedded synthetic mailbox)" if (run.folder / DATA / RULE).is_file() else ""
        tested = counted.of("test") if run.said is None else len(run.said.ids) + run.said.left_out
        said.append(f" on {counted.of('train'):,} messages of {owners}{source}, tested on {tested:,} later ones")
    return element(
        "header",
        element("p", run.folder.resolve().name, class_="run"),
        element("h1", "May it act alone?"),
        paragraph(*said, "."),
        paragraph(PRIVATE, kind="private"),
    )


def _contents() -> Html:
    links = (element("li", element("a", short, href=f"#{name}")) for name, (short, _) in TITLES.items())
    return element("nav", element("ul", *links), aria_label="Contents")
