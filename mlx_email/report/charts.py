"""The charts of a report, each with what it says in words. They hold numbers and names of stages, never mail text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlx_email.report.draw import COLOURS, panel, svg
from mlx_email.report.numbers import Bin, Risk, gap, thinned
from mlx_email.report.parts import Key
from mlx_email.report.read import Series
from mlx_email.report.tags import Html, percent, shortened, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 380.0  # points: about what a phone shows, so that 11 points are read there
MARKED = 0.01  # of the mail: of a few messages, which any curve begins with, nothing is marked
LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))  # so that no line is known by its colour alone
Measured = Sequence[tuple[str, float, tuple[float, float] | None]]  # a name, an accuracy, its interval


def stages(measured: Measured, lines: Sequence[tuple[Key, float]]) -> Html:
    """Accuracies with their intervals, and those of what needs no model as lines."""
    values = [value for _, value, _ in measured] + [value for _, value in lines]
    low = max(0.0, min(values) - 0.06)

    def paint(figure: "Figure") -> None:
        axes = panel(figure, left=88, bottom=26)
        for place, (_, value, interval) in enumerate(measured):
            if interval is not None:
                axes.plot(interval, (place, place), color=COLOURS["c1"], linewidth=4, alpha=0.45)
            axes.plot([value], [place], "o", color=COLOURS["c1"], markersize=6.5)
            axes.annotate(percent(value), (value, place), (0, 8), textcoords="offset points", ha="center", size=10)
        for (colour, style, _), value in lines:
            axes.axvline(value, color=COLOURS[colour], linestyle=LINES[style], linewidth=1.6)
        axes.set_yticks(range(len(measured)), [shortened(name, 12) for name, *_ in measured])
        axes.set_ylim(len(measured) - 0.5, -0.75)
        axes.set_xlim(low, 1.0)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        _shares(axes, "x")

    said = [f"{name} {percent(value)}" for name, value, _ in measured]
    said += [f"{what} {percent(value)}" for (*_, what), value in lines]
    return svg("stages", WIDTH, 60 + 34 * len(measured), f"Accuracy of each stage: {', '.join(said)}.", paint)


def course(name: str, title: str, curves: Mapping[str, Series]) -> Html:
    """Numbers of a stage over its steps."""
    short = {label: thinned(*series) for label, series in curves.items()}

    def paint(figure: "Figure") -> None:
        axes = panel(figure, left=46, right=8)
        for number, (steps, values) in enumerate(short.values()):
            mark, colour = "o" if len(values) < 3 else None, COLOURS[f"c{number % 4 + 1}"]
            axes.plot(steps, values, marker=mark, markersize=5, color=colour, linestyle=LINES[number % 4])
        axes.set_xlabel("step")
        axes.margins(y=0.12)
        axes.locator_params(axis="both", nbins=5)

    ends = [f"{label} from {values[0]:.3g} to {values[-1]:.3g}" for label, (_, values) in short.items()]
    return svg(name, 240, 165, f"{title} over the steps: {', '.join(ends)}.", paint)


def reliability(before: Sequence[Bin], after: Sequence[Bin] | None) -> Html:
    """Share of right answers by confidence; below, how the messages spread over the confidences."""
    drawn = [("c2", before, "before calibration")] + ([("c1", after, "after calibration")] if after is not None else [])

    def paint(figure: "Figure") -> None:
        axes = panel(figure, left=58, bottom=104)
        axes.plot((0, 1), (0, 1), color=COLOURS["muted"], linewidth=1.2, linestyle=LINES[2])
        for number, (colour, bins, _) in enumerate(drawn):
            x, y = [each.confidence for each in bins], [each.right for each in bins]
            axes.plot(
                x, y, "so"[number], linestyle=LINES[1 - number], color=COLOURS[colour], markersize=5, clip_on=False
            )
        axes.set_ylim(0, 1.03)
        axes.tick_params(axis="x", labelbottom=False)
        axes.set_ylabel("share right")
        below = panel(figure, left=58, top=306, bottom=38)
        for number, (colour, bins, _) in enumerate(drawn):
            total, wide = sum(each.messages for each in bins), 0.08 / len(drawn)
            x = [each.low + 0.01 + wide * number for each in bins]
            below.bar(x, [each.messages / total for each in bins], wide, align="edge", color=COLOURS[colour])
        below.set_ylabel("of mail")
        below.locator_params(axis="y", nbins=2)
        below.set_xlabel("confidence")
        for each in (axes, below):
            each.set_xlim(0, 1)
            _shares(each, "x")
            _shares(each, "y")

    said = [f"{words}: {percent(gap(bins))} apart on average" for _, bins, words in drawn]
    return svg("reliability", WIDTH, 400, f"Confidence and share of right answers, {'; '.join(said)}.", paint)


def risk(found: Risk) -> Html:
    """Accuracy of acting on the surest messages only, by their share."""
    low = min([0.88, *found.accuracy[len(found.accuracy) // 20 :]]) - 0.02

    def paint(figure: "Figure") -> None:
        axes = panel(figure, left=58)
        for goal, reached in found.goals.items():
            axes.axhline(goal, color=COLOURS["muted"], linestyle=LINES[2], linewidth=1.2)
            if reached is not None and reached >= MARKED:
                axes.plot([reached], [goal], "o", color=COLOURS["c2"], markersize=6, zorder=3)
                left = reached > 0.85
                away, side = ((-8, -13), "right") if left else ((7, 5), "left")
                axes.annotate(percent(reached, 0), (reached, goal), away, textcoords="offset points", ha=side, size=11)
        axes.plot(found.coverage, found.accuracy, color=COLOURS["c1"])
        axes.set_xlim(0, 1)
        axes.set_ylim(max(low, 0.0), 1.006)
        axes.set_xlabel("share of mail it acts on, surest first")
        axes.set_ylabel("share right")
        _shares(axes, "x")
        _shares(axes, "y")

    said = [f"{whole(goal)} right on {percent(reached)}" for goal, reached in found.goals.items()]
    label = f"Share of right answers among the surest messages: {', '.join(said)} of mail."
    return svg("risk", WIDTH, 280, label, paint)


def months(counts: Mapping[str, Mapping[str, int]]) -> Html:
    """Messages by time and split, stacked."""
    names, splits = list(counts), ("train", "validation", "test")

    def paint(figure: "Figure") -> None:
        axes = panel(figure, left=54)
        base = [0] * len(names)
        for number, split in enumerate(splits):
            tall = [counts[name].get(split, 0) for name in names]
            axes.bar(range(len(names)), tall, 0.82, bottom=base, color=COLOURS[f"c{number + 1}"])
            base = [a + b for a, b in zip(base, tall, strict=True)]
        every = max(1, -(-len(names) // 6))
        axes.set_xticks(range(0, len(names), every), names[::every])
        axes.locator_params(axis="y", nbins=4)

    total = [f"{sum(each.get(split, 0) for each in counts.values()):,} {split}" for split in splits]
    between = f" from {names[0]} to {names[-1]}" if names else ""
    return svg("months", WIDTH, 220, f"Messages by time{between}: {', '.join(total)}.", paint)


def _shares(axes: "Axes", which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{round(value * 100, 1):g}%")
