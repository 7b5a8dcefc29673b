"""The sections that show single messages and single owners."""

from collections.abc import Callable

from mlx_email.labels.schema import ACTIONS, SPLITS
from mlx_email.report import numbers
from mlx_email.report.mail import Key, Letter, Mail
from mlx_email.report.parts import WORDS, many, paragraph, section
from mlx_email.report.said import Said
from mlx_email.report.tags import Html, between, element, mail_text, number, percent, table

REASONING = 400  # characters
Letters = Callable[[list[Key]], dict[Key, Letter]]
Explain = Callable[[list[Key]], list[str | None]]


def mistakes(said: Said, letters: Letters, explain: Explain | None) -> Html:
    """The wrong answers that it was surest of."""
    places = numbers.mistakes(said)
    keys = [(said.users[place], said.ids[place]) for place in places]
    known, reasons = letters(keys), explain(keys) if explain and keys else [None] * len(keys)
    several = len(set(said.users)) > 1
    cards = [
        _mistake(said, place, known.get(key), key[0] if several else None, reason)
        for place, key, reason in zip(places, keys, reasons, strict=True)
    ]
    lead = (
        "What it was surest of and wrong about, on the test mail. Would you have done what it says, or is it the label?"
    )
    shown = element("ol", *cards, class_="mistakes") if cards else paragraph("It was never wrong.", kind="quiet")
    return section("mistakes", paragraph(lead), shown)


def _mistake(said: Said, place: int, letter: Letter | None, owner: str | None, reason: str | None) -> Html:
    did, was = (WORDS[ACTIONS[each]] for each in (said.predicted[place], said.actual[place]))
    head = element(
        "p",
        element("strong", percent(float(said.confidence[place]))),
        element("span", "said ", element("b", did), class_="said"),
        element("span", "was ", element("b", was), class_="done"),
        class_="what",
    )
    if letter is None:
        about = [element("p", "(not in the table any more)", class_="subject")]
    else:
        date = element("span", letter.date.strftime("%Y-%m-%d %H:%M")) if letter.date else Html()
        about = [
            element("p", mail_text(letter.subject), class_="subject"),
            element("p", mail_text(letter.sender, 80), date, *_owner(owner), class_="from"),
        ]
    why = [element("blockquote", mail_text(reason, REASONING))] if reason else []
    return element("li", head, *about, *why)


def _owner(owner: str | None) -> list[Html]:
    return [] if owner is None else [element("span", "mailbox ", mail_text(owner, 60))]


def owners(said: Said | None, mail: Mail | None) -> Html:
    """Whose mail it is right about."""
    tested = numbers.by_owner(said) if said else {}
    have = {owner for owner, _ in mail.owners} if mail else set()
    names = sorted(have | set(tested), key=lambda owner: (-tested.get(owner, (0, 0))[0], owner))
    rows = []
    for owner in names:
        of, right = tested.get(owner, (0, 0))
        share = right / of if of else None
        bar = element("span", class_="bar", style=f"--share:{share or 0:.3f}", aria_hidden="true")
        counts = [number(mail.owners.get((owner, split), 0)) for split in SPLITS] if mail else [None] * len(SPLITS)
        wide = between(numbers.wilson(right, of)) if of else None
        rows.append((mail_text(owner, 60), *counts, number(of), element("span", percent(share), bar), wide))
    head = ("Owner", *(f"{split.capitalize()} mail" for split in SPLITS), "Tested on", "Right", "95% interval")
    seen = table(head, rows, label="Owners", kind="tall")
    lead = f"{many(len(names), 'mailbox', 'mailboxes')}, those with the most test mail first."
    return section("owners", paragraph(lead), seen)
