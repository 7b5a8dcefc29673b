"""The sections about how it came to be: what each stage was worth, and how its training went."""

from collections.abc import Mapping
from functools import partial

from mlx_email.report import charts
from mlx_email.report.numbers import thinned
from mlx_email.report.parts import figure, legend, paragraph, section
from mlx_email.report.read import Run, Series, Stage, finite, pair
from mlx_email.report.tags import NOTHING, Html, between, element, number, percent, table
from mlx_email.tables import METHODS

BEST = "best_possible"  # of the embedded mailbox
# Beside what an accuracy is to be seen: colour and line of a chart, and what it is.
BASELINES = {
    "majority": ("muted", 1, "always the usual action"),
    "majority_per_owner": ("c4", 2, "each owner's usual action"),
    "tfidf": ("c2", 1, "TF-IDF, logistic regression"),
    "boosted_trees": ("c2", 3, "boosted trees"),
    BEST: ("c3", 3, "best possible"),
}
# What is drawn together, over the steps of a stage: a title, and the numbers by their names in events.jsonl.
PANELS: Mapping[str, Mapping[str, str]] = {
    "Loss": {"loss": "training", "val/loss": "validation"},
    "Reward": {
        "reward": "mean reward",
        "rewards/chosen": "of what was done",
        "rewards/rejected": "of what was not",
        "rewards/desirable": "of wanted answers",
        "rewards/undesirable": "of unwanted answers",
    },
    "KL divergence": {"kl": "from the reference", "kl/ref": "from the reference", "kl/old": "from the last update"},
    "Share right": {
        "rewards/accuracy": "pairs in the right order",
        "val/accuracy": "validation",
    },
    "What came later": {"score": "score of what was said", "agreement": "said as was done"},
    "Entropy": {"entropy": "nats a token", "rollout/entropy": "of what was sampled, nats a token"},
}
ROWS = 12  # of a curve's table


def stages(run: Run, *, drawn: bool) -> Html:
    """A table of the stages and a chart of their accuracies."""
    rows = [_row(stage, stage.name == run.final) for stage in run.stages]
    known = [(key, value) for name, key in BASELINES.items() if (value := finite(run.baselines, name)) is not None]
    rows += [_baseline(run, name) for name in BASELINES if finite(run.baselines, name) is not None]
    head = ("Stage", "Method", "Right on test mail", "95% interval", "Macro-F1", "Validation", "Then")
    seen = table(head, rows, label="Stages", words=(0, 1, 6))
    measured = [
        (stage.name, value, pair(stage.told, "test", "accuracy_interval"))
        for stage in run.stages
        if (value := finite(stage.told, "test", "accuracy")) is not None
    ]
    parts = [paragraph(LEAD), seen]
    if drawn and measured:
        keys = [("c1", 4, "accuracy, 95% interval"), *(key for key, _ in known)]
        parts.append(element("figure", legend(keys), charts.stages(measured, known)))
    return section("stages", *parts)


LEAD = "Each stage begins with the best policy before it, and is kept unless it is worse by more than chance."


def _baseline(run: Run, name: str) -> tuple[object, ...]:
    wide, f1 = (
        pair(run.baselines, "measured", name, "accuracy_interval"),
        finite(run.baselines, "measured", name, "macro_f1"),
    )
    *_, what = BASELINES[name]
    return NOTHING, what, percent(finite(run.baselines, name)), between(wide), f1 and f"{f1:.3f}", None, None


def _row(stage: Stage, ends: bool) -> tuple[object, ...]:
    method = str(stage.told.get("method", NOTHING))
    said = METHODS.get(method, method)
    pairs, ranked = finite(stage.told, "test", "pair_accuracy"), pair(stage.told, "test", "pair_accuracy_interval")
    if pairs is not None:
        return stage.name, said, f"{percent(pairs)} of pairs", between(ranked), None, None, "judges answers"
    kept = "the run's policy" if ends else "rolled back" if stage.told.get("kept") is False else "went on"
    f1, validated = finite(stage.told, "test", "macro_f1"), finite(stage.told, "validation", "accuracy")
    shown = percent(finite(stage.told, "test", "accuracy")), between(pair(stage.told, "test", "accuracy_interval"))
    name = element("strong", stage.name) if ends else stage.name
    return name, said, *shown, None if f1 is None else f"{f1:.3f}", percent(validated), kept


def curves(run: Run, *, drawn: bool) -> Html:
    """How the numbers of each stage went, over its steps."""
    found = []
    for stage in run.stages:
        shown = [
            (title, {label: stage.curves[name] for name, label in names.items() if name in stage.curves})
            for title, names in PANELS.items()
        ]
        shown = [(title, series) for title, series in shown if series]
        steps, examples = finite(stage.result, "steps"), finite(stage.result, "examples")
        said = f"{number(steps)} steps, {number(examples)} examples"
        if not shown:
            continue
        grid = (_course(stage.name, title, series, drawn=drawn) for title, series in shown)
        found.append(element("h3", stage.name, " ", element("small", said)))
        found.append(element("div", *grid, class_="grid"))
    return section("training", *(found or [paragraph("There are no steps in events.jsonl.", kind="quiet")]))


def _course(stage: str, title: str, series: Mapping[str, Series], *, drawn: bool) -> Html:
    keys = [(f"c{place % 4 + 1}", place % 4, label) for place, label in enumerate(series)]
    few = [(label, *thinned(*course, ROWS)) for label, course in series.items()]
    rows = [
        (number(round(step)), *((label,) if len(few) > 1 else ()), number(value))
        for label, steps, values in few
        for step, value in zip(steps, values, strict=True)
    ]
    head = ("Step", *(("Which",) if len(few) > 1 else ()), "Value")
    seen = table(head, rows, label=f"{stage}: {title}", words=(0, 1) if len(few) > 1 else (0,), kind="tall")
    name = f"{stage}-{title.lower().replace(' ', '-')}"
    drawing = partial(charts.course, name, f"{stage}: {title}", series)
    return figure(drawing, seen, drawn=drawn, keys=keys, title=title)
