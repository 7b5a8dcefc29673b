"""The sections about the policy with which a run ends: how sure it may be, how sure it is, what it takes for what."""

import numpy as np

from mlx_email.evaluate.acting import Goal, Rules
from mlx_email.evaluate.counts import confusion as counted
from mlx_email.evaluate.counts import f1
from mlx_email.labels.schema import ACTIONS
from mlx_email.report import charts, numbers
from mlx_email.report.numbers import Bin
from mlx_email.report.parts import WORDS, figure, folded, many, paragraph, section
from mlx_email.report.read import Run
from mlx_email.report.said import Said
from mlx_email.report.tags import NOTHING, Html, element, number, percent, table, whole

GOALS = (0.9, 0.95, 0.99)
CURVE = (
    "The surer it has to be before it acts, the more often it is right, and the less mail is left to it. "
    "The curve and its marks are read off the test mail itself."
)
RULES = "The rules by which it acts were chosen on validation mail; on the test mail they were only checked."
BELIEVED = (
    "Where it says 90%, is it right nine times in ten? Below the dotted line it is too sure, above it too modest."
)


def acting(run: Run, said: Said, *, drawn: bool) -> Html:
    """On how much of the mail it may act alone, at several goals."""
    goals = [each.goal for each in run.rules.goals] if run.rules else list(GOALS)
    found = numbers.risk(said, goals)
    lines = [(whole(goal), percent(reached)) for goal, reached in found.goals.items()]
    seen = table(("Right", "of so much of the test mail"), lines, label="Coverage of the test mail")
    keys = [("c1", 0, "share right, by share of mail"), ("muted", 2, "goal"), ("c2", 4, "where the goal is met")]
    chart = figure(lambda: charts.risk(found), seen, drawn=drawn, keys=keys)
    return section("acting", paragraph(CURVE), chart, *(_rules(run.rules) if run.rules else ()))


def _rules(rules: Rules) -> list[Html]:
    head = ("Right at least", "Acts from a confidence of", "On test mail: acts on", "and is right", "For")
    parts = [paragraph(RULES), table(head, map(_rule, rules.goals), label="Rules for acting alone", words=(0, 4))]
    if len(rules.costs) == len(ACTIONS):
        named = zip(ACTIONS, rules.costs, strict=True)
        rows = [(WORDS[action], *(number(cost) for cost in row)) for action, row in named]
        said = f"It acts only where it expects that to cost {rules.most_cost:g} at most. What an action costs:"
        costs = table(("Where right was", *WORDS.values()), rows, label="Costs of mistakes")
        parts.append(folded("What mistakes cost", paragraph(said), costs))
    return parts


def _rule(rule: Goal) -> tuple[object, ...]:
    acts = rule.test.get("acts")
    return (
        whole(rule.goal),
        "never" if rule.threshold is None else percent(rule.threshold),
        percent(acts),
        percent(rule.test.get("acts_accuracy")) if acts else None,
        ", ".join(WORDS.get(action, action) for action in rule.actions) or None,
    )


def reliability(said: Said, *, drawn: bool) -> Html:
    """Whether 90% sure means right nine times in ten."""
    before = numbers.reliability(said.raw, said.actual)
    after = None if said.method == "none" else numbers.reliability(said.calibrated, said.actual)
    rows = [_bin(each, words) for words, bins in (("before", before), ("after", after or [])) for each in bins]
    head = ("Confidence", "Calibration", "Messages", "Mean confidence", "Right")
    seen = table(head, rows, label="Reliability", words=(0, 1))
    keys = [("c2", 1, "before calibration" if after else "as it is: this run has no calibration")]
    keys += [("c1", 0, f"after ({said.method})")] if after else []
    keys += [("muted", 2, "as sure as right")]
    chart = figure(lambda: charts.reliability(before, after), seen, drawn=drawn, keys=keys)
    return section("reliability", paragraph(BELIEVED), chart)


def _bin(each: Bin, words: str) -> tuple[str, ...]:
    between = f"{each.low:.0%}{NOTHING}{each.high:.0%}"
    return between, words, number(each.messages), percent(each.confidence), percent(each.right)


def confusion(counts: np.ndarray) -> Html:
    """What was said for what was done, (5, 5) counts; darker: a larger share of its row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for place, (action, score) in enumerate(zip(ACTIONS, f1(counts), strict=True)):
        cells = [_cell(counts[place, said], shares[place, said], hit=place == said) for said in range(len(ACTIONS))]
        rows.append((WORDS[action], *cells, f"{score:.2f}"))
    head = ("Was done \u2193 said \u2192", *WORDS.values(), "F1")
    wrong = counts * (1 - np.eye(len(ACTIONS), dtype=int))
    done, said = np.unravel_index(wrong.argmax(), wrong.shape)
    times, is_said, is_right = many(int(wrong.max()), "time"), WORDS[ACTIONS[said]], WORDS[ACTIONS[done]]
    often = f"Its most frequent mistake: it says {is_said} where {is_right} is right, {times}."
    shown = table(head, rows, label="Confusion matrix", kind="matrix")
    return section("confusion", paragraph(often if wrong.any() else "It made no mistake."), shown)


def _cell(count: int, share: float, *, hit: bool) -> Html:
    return element("span", f"{count:,}", style=f"--share:{share:.3f}", class_="heat hit" if hit else "heat")


def counts_of(run: Run) -> np.ndarray | None:
    """The confusion counts of the final policy, of its predictions or else of metrics.json."""
    if run.said is not None:
        return counted(run.said.actual, run.said.predicted)
    told = next((stage.told for stage in run.stages if stage.name == run.final), {})
    try:
        counts = np.array((told.get("test") or {}).get("confusion"), int)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None
    return counts if counts.shape == (len(ACTIONS), len(ACTIONS)) else None
