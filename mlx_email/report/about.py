"""The sections about what a run was made of: its mail, its settings, its versions."""

from collections.abc import Mapping
from typing import Any

from mlx_email.labels.schema import ACTIONS, SPLITS
from mlx_email.report import charts
from mlx_email.report.mail import Counts, Mail
from mlx_email.report.parts import WORDS, absent, figure, folded, paragraph, section
from mlx_email.report.read import Run
from mlx_email.report.tags import Html, element, number, percent, table

QUALITY = {
    "good": "good: what was done was seen",
    "kept_late": "kept near the end of the data: may not be deleted, or answered, yet",
    "no_trash": "kept, but the data has no trash: may have been deleted",
    "unseen": "never opened: nothing was decided yet",
    "junk": "a program put it among the junk",
}
READ = {
    "messages": "messages read",
    "received": "of them received",
    "labelled": "labelled",
    "duplicates": "copies left out",
    "repeated": "near copies of earlier mail left out",
    "not_mail": "files that are no mail",
    "undated": "without a date",
}
LONGEST = 48  # months in a chart; of more, years; of more of them, those that have mail


def data(run: Run, mail: Mail | None, *, drawn: bool) -> Html:
    """Messages by split, action, month and quality of label."""
    if mail is None:
        return absent("data", "The run's table (data/features.parquet) is not there.")
    times = by_time(mail.months)
    keys = [(f"c{place + 1}", 4, split) for place, split in enumerate(SPLITS)]
    when = _counts("When", {name: name for name in times}, by_time_and_split(times))
    quality = {QUALITY.get(name, name): name for name, _ in mail.quality}
    lead = "Per owner, the earliest mail is trained on and the latest is tested on."
    return section(
        "data",
        paragraph(lead),
        _counts("What was done", {WORDS[action]: action for action in ACTIONS}, mail.actions),
        figure(lambda: charts.months(times), when, drawn=drawn and bool(times), keys=keys),
        _counts("How far the label can be trusted", quality, mail.quality, kind="long"),
        _left_out(run),
    )


def _counts(title: str, names: Mapping[str, str], counts: Counts, kind: str = "") -> Html:
    totals = {split: sum(n for (_, where), n in counts.items() if where == split) for split in SPLITS}
    everything = sum(totals.values())

    def line(label: str, found: Mapping[Any, int]) -> tuple[object, ...]:
        of_all = sum(found.values())
        return label, *(number(found[split]) for split in SPLITS), number(of_all), percent(of_all / max(everything, 1))

    rows = [line(label, {split: counts.get((name, split), 0) for split in SPLITS}) for label, name in names.items()]
    head = (title, *(split.capitalize() for split in SPLITS), "All", "Share")
    return table(head, [*rows, line("all", totals)], label=title, kind=f"tall total {kind}")


def by_time(months: Counts) -> dict[str, dict[str, int]]:
    """Period -> split -> messages, with those in between that have none; months, or years where there are many."""
    dated = sorted({name for name, _ in months if name[:4].isdigit()})
    if not dated:
        return {}
    (first, start), (last, end) = (map(int, each.split("-")) for each in (dated[0], dated[-1]))
    whole = [f"{n // 12:04d}-{n % 12 + 1:02d}" for n in range(first * 12 + start - 1, last * 12 + end)]
    digits = 7 if len(whole) <= LONGEST else 4
    shown = whole if len(whole) <= LONGEST * 12 else dated
    found: dict[str, dict[str, int]] = {name[:digits]: {} for name in shown}
    for (name, split), count in months.items():
        if name[:4].isdigit():
            period = found[name[:digits]]
            period[split] = period.get(split, 0) + count
    return found


def by_time_and_split(times: Mapping[str, Mapping[str, int]]) -> Counts:
    return {(name, split): count for name, found in times.items() for split, count in found.items()}


def _left_out(run: Run) -> Html:
    """What was read and is not in the table."""
    rows = [(said, number(run.labels[name])) for name, said in READ.items() if isinstance(run.labels.get(name), int)]
    return folded("How it was read", table(("What", "Count"), rows, label="What was read")) if rows else Html()


def config(run: Run) -> Html:
    """Everything that decides what the run does."""
    # It scrolls in its own box, which the keyboard has to reach.
    shown = element("pre", element("code", run.config), tabindex="0", role="region", aria_label="config.yaml")
    return section("config", folded("config.yaml, all defaults written out", shown))


def versions(run: Run) -> Html:
    """What it ran on, and what it was made from and gave, as SHA-256."""
    hashes = {"base": "base model", "data": "labelled table"}
    rows = [(name, str(value)) for name, value in sorted(run.environment.items()) if name not in hashes]
    sums = [(said, run.environment[name]) for name, said in hashes.items() if run.environment.get(name)]
    sums += [(f"adapter of {stage.name}", stage.result["sha256"]) for stage in run.stages if stage.result.get("sha256")]
    digests = [(said, element("code", value)) for said, value in sums]
    return section(
        "versions",
        table(("What", "Version"), rows, label="Versions", words=(0, 1)),
        folded(
            "SHA-256 of what it was made from, and of what it gave",
            table(("What", "SHA-256"), digests, label="Hashes", words=(0, 1)),
        ),
    )
