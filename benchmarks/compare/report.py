"""The table of `mlx-email bench`."""

from typing import Any

HOW = "ratio: of the medians, (range): of repetitions that ran next to each other; above 1 is better for us"
TOY = "toy sizes: no ratio of these means anything"
ALIGNED = "<>><><<<"  # the columns
SAME = 1e-3  # gradients further apart than this share of their norm are called different


def table(record: dict[str, Any]) -> str:
    """One line a goal, then what is to be known about them."""
    rows: list[tuple[str, ...]] = [("work", "ours", "peer", "", "ratio", "(range)", "target", "parity")]
    notes: list[str] = []
    for name, work in record["works"].items():
        parities = [work["parity"], *[None] * len(work["goals"])]  # beside the first of its goals
        rows += [_row(goal, parity) for goal, parity in zip(work["goals"], parities, strict=False)]
        notes += [f"{name}: {note}" for note in work["notes"]]
        notes += [f"{name}: {side}: {line}" for side, line in work["skipped"].items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, ALIGNED, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([_machine(record), "", *lines, "", HOW, *notes, *([TOY] if record["quick"] else [])])


def _row(goal: dict[str, Any], parity: dict[str, Any] | None) -> tuple[str, ...]:
    ratio = low = target = ""
    if goal["ratio"] is not None:
        ratio, low = f"{goal['ratio']:.2f}x", "({:.2f}-{:.2f})".format(*goal["range"])
    if goal["at_least"] is not None:
        target = f"{goal['at_least']:g}x" + {True: " reached", False: " MISSED", None: ""}[goal["reached"]]
    return (
        goal["title"],
        _value(goal["ours"], goal["unit"]),
        _value(goal["peer_value"], goal["unit"]),
        goal["peer"] or "",
        ratio,
        low,
        target,
        _parity(parity),
    )


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def _parity(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return ""
    word = "same gradient" if parity["difference"] < SAME else "DIFFERENT GRADIENT"
    return f"{word} ({parity['difference']:.0e})"


def _machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    devices = {side["ready"]["device"] for work in record["works"].values() for side in work["sides"].values()}
    return f"{', '.join(sorted(devices))}, {machine['cpus']} CPUs; {versions}"
