"""The one thing that a report is read for: may it act alone, and on how much of the mail."""

from mlx_email.evaluate import acting
from mlx_email.evaluate.acting import Goal
from mlx_email.report import parts
from mlx_email.report.numbers import gap, reliability, wilson
from mlx_email.report.parts import WORDS, listed, many, paragraph, strong
from mlx_email.report.read import Run, Stage, finite, pair
from mlx_email.report.said import Said
from mlx_email.report.tags import NOTHING, Html, between, element, percent, whole
from mlx_email.report.training import BASELINES, BEST


def verdict(run: Run) -> Html:
    """The headline, and the numbers beside it."""
    return element("div", _headline(run), parts.tiles(_facts(run)), _beaten(run), id="verdict")


def policy(run: Run) -> Stage | None:
    """The stage with whose policy a run ends."""
    return next((stage for stage in run.stages if stage.name == run.final), None)


def _headline(run: Run) -> Html:
    rule = acting.usual(run.rules) if run.rules else None
    if policy(run) is None:
        return _card("none", NOTHING, "There is no policy to judge.", "No stage has given one that was kept.")
    if rule is None:
        return _accuracy(run)
    share, right = finite(rule.test, "acts"), finite(rule.test, "acts_accuracy")
    if rule.threshold is None or not share or right is None:
        said = f"It should not act alone yet: {_why(run, rule)}. Let it suggest, and decide yourself."
        return _card("no", "0%", "of the mail it may act on alone.", said)
    return _acts(run, rule, share, right)


def _why(run: Run, rule: Goal) -> str:
    """Why it never acts."""
    stage, goal = policy(run), whole(rule.goal)
    chosen_on = finite(stage.told, "validation", "messages") if stage else None
    if rule.threshold is not None:
        return f"no message of the test mail met what it takes to be right {goal} of the time"
    if not chosen_on:
        return "there is no validation mail to find out how sure it has to be"
    on = many(int(chosen_on), "validation message")
    return f"on {on} no confidence was clearly high enough to be right {goal} of the time"


def _acts(run: Run, rule: Goal, share: float, right: float) -> Html:
    """What the rule promised, and what it did on the test mail."""
    goal, messages = whole(rule.goal), run.said.left_out + len(run.said.ids) if run.said else 0
    acted = round(share * messages)
    low, high = wilson(round(right * acted), acted)
    if right >= rule.goal:
        kind, may, held, then = "yes", "may", "It kept that on the test mail", ""
    elif high >= rule.goal:  # the goal is within what chance can do
        kind, may, then = "near", "may", " Watch what it does."
        held = "On the test mail it was a little short of that, as chance can make it"
    else:
        kind, may, held, then = "no", "would", "On the test mail it did not keep that", " Don't let it act alone."
    named = listed([WORDS.get(action, action) for action in rule.actions])
    seen = f"right {percent(right)} of the time"
    seen += f" on {acted:,} of {messages:,} messages (95% interval {between((low, high))})" if acted else ""
    return _card(
        kind,
        percent(share, 0 if share >= 0.1 else 1),
        f"of the mail it {may} act on alone, to be right {goal} of the time.",
        f"{held}: {seen}. It acts where it is at least {percent(rule.threshold)} sure, to {named}.{then}",
    )


def _accuracy(run: Run) -> Html:
    """Without rules for acting all there is to say is how often it is right."""
    stage = policy(run)
    told = stage.told if stage else {}
    value, interval = finite(told, "test", "accuracy"), pair(told, "test", "accuracy_interval")
    if value is None:
        return _card("none", NOTHING, "It is not measured yet.", "The test mail is looked at when all stages are done.")
    wide = f" (95% interval {between(interval)})" if interval else ""
    said = "When it may act alone was not worked out in this run: let it suggest, and decide yourself."
    return _card("none", percent(value), f"of all later mail it is right about{wide}.", said)


def _card(kind: str, big: str, claim: str, detail: str) -> Html:
    return element(
        "div", element("p", strong(big), element("span", claim)), paragraph(detail), class_=f"headline {kind}"
    )


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """Accuracy, what it is to be seen beside, and how far the confidences can be believed."""
    stage, found = policy(run), []
    told = stage.told if stage else {}
    if (value := finite(told, "test", "accuracy")) is not None:
        messages = finite(told, "test", "messages")
        beside = f"95% interval {between(pair(told, 'test', 'accuracy_interval'))}"
        on = f" of {many(int(messages), 'message')}" if messages else ""
        found.append(("Right on all mail", percent(value), beside + on))
    if (beside := _beside(run)) is not None:
        found.append(("Without this model", percent(beside[0]), beside[1]))
    if (best := finite(run.baselines, BEST)) is not None:
        found.append(("Best possible", percent(best), "as the embedded mailbox's owners slip in the rest"))
    if run.said is not None and len(run.said.ids):
        found.append(_trust(run.said))
    return found


def _beside(run: Run) -> tuple[float, str] | None:
    """The best of what needs no language model."""
    known = ((finite(run.baselines, name), what) for name, (*_, what) in BASELINES.items() if name != BEST)
    return max(((value, what) for value, what in known if value is not None), default=None)


def _beaten(run: Run) -> Html:
    """That the policy is not worth its trouble, where it is not."""
    stage, beside = policy(run), _beside(run)
    value = finite(stage.told, "test", "accuracy") if stage else None
    if value is None or beside is None or beside[0] < value:
        return Html()
    said = f"It is not better than what needs no language model: {beside[1]} is right {percent(beside[0])} of the time."
    return paragraph(said, kind="warning")


def _trust(said: Said) -> tuple[str, str, str]:
    was, now = (gap(reliability(found, said.actual)) for found in (said.raw, said.calibrated))
    beside = "on average" if said.method == "none" else f"on average; {percent(was)} before calibration"
    return "Confidence is off by", percent(now), beside
