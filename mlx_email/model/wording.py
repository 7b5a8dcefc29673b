"""The words of a prompt and of an answer: plain text, no tokens.

Everything in a prompt was known when the message arrived; everything in an answer's reasoning stands in its prompt.
"""

import re
from dataclasses import dataclass

from mlx_email.labels.schema import ACTIONS, Action, Row, predicted_action

BODY_CHARACTERS = 1500  # of the body, from its start (the source's limit)
HEADER_CHARACTERS = 200  # of one header: a To line can be 26 kB
CUT = "[...]"  # stands for the middle of a body that was too long

QUESTION = (
    "Answer in three lines.\n"
    f"Action: one of {', '.join(ACTIONS)}\n"
    "Priority: from 0 to 1\n"
    "Reasoning: why, in a few words"
)


@dataclass(frozen=True)
class Answer:
    """What the model should say of one message."""

    action: Action
    priority: float  # 0..1
    reasoning: str


def one_line(text: str, limit: int = HEADER_CHARACTERS) -> str:
    """Header text folded to one line of at most `limit` characters; what was cut is marked."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def shortened(text: str, limit: int) -> str:
    """A text with its middle left out where it is longer than `limit`: a mail opens with what it is about and often
    closes with what it asks. The beginning gets two thirds; nothing at all where the limit is 0.

    >>> shortened("one two three four", 9), shortened("short", 9)
    ('one tw[...]our', 'short')
    """
    if len(text) <= limit:
        return text
    end = limit // 3
    return text[: limit - end] + CUT + text[len(text) - end :] if limit else ""


def context_facts(row: Row) -> list[str]:
    """The context of a message, one fact a line, as a prompt gives it and a reasoning repeats it."""
    return [
        f"Sender importance: {row.people_score:.2f}",
        f"Topic urgency: {row.urgency:.2f}",
        f"Contains a question: {'yes' if row.is_question else 'no'}",
        f"Action requested: {'yes' if row.is_action_request else 'no'}",
    ]


def history_facts(row: Row) -> list[str]:
    """What the owner did with the last mails of this sender, as far as it could be seen when the message came; short,
    as every prompt has it. What nobody did is not named.

    >>> from datetime import datetime, UTC
    >>> row = Row(message_id="1", user="ann", date=datetime(2026, 1, 2, tzinfo=UTC), sender="bob@example.com",
    ...           history_messages=5, history_answered=3, history_kept=1, history_response_hours=2.25)
    >>> print("\\n".join(history_facts(row)))
    Last 5 from this sender: 3 answered, 1 kept
    Time to answer: 2.2 hours
    """
    if not row.history_messages:
        return ["Last from this sender: none"]
    counts = {
        "answered": row.history_answered,
        "forwarded": row.history_forwarded,
        "deleted": row.history_deleted,
        "kept": row.history_kept,
    }
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "all open"
    facts = [f"Last {row.history_messages} from this sender: {done}"]
    if row.history_response_hours is not None:
        facts.append(f"Time to answer: {row.history_response_hours:.1f} hours")
    return facts


def prompt_text(row: Row, body_characters: int = BODY_CHARACTERS, *, history: bool = True) -> str:
    """The user's turn for a message, with or without the sender's history. Reads only what was known when it arrived:
    no action, time or priority. Of a longer body than `body_characters` the middle is left out.

    >>> from datetime import datetime, UTC
    >>> row = Row(message_id="1", user="ann", date=datetime(2026, 1, 2, tzinfo=UTC), sender="bob@example.com",
    ...           to=("ann@example.com",), subject="Budget", body="Can you send it?", is_question=True)
    >>> print(prompt_text(row).split("Sender importance")[0].rstrip())
    What should be done with this email?
    From: bob@example.com
    To: ann@example.com
    Subject: Budget
    <BLANKLINE>
    Can you send it?
    """
    return "\n".join(
        [
            "What should be done with this email?",
            f"From: {one_line(row.sender)}",
            f"To: {one_line(', '.join(row.to))}",
            f"Subject: {one_line(row.subject)}",
            "",
            shortened(row.body[:BODY_CHARACTERS], body_characters).strip(),
            "",
            *context_facts(row),
            *(history_facts(row) if history else ()),
            "",
            QUESTION,
        ]
    )


def answer_text(answer: Answer) -> str:
    """The assistant's turn.

    >>> print(answer_text(Answer("archive", 0.25, "no question, low urgency")))
    Action: archive
    Priority: 0.25
    Reasoning: no question, low urgency
    """
    return f"{action_text(answer.action)}Priority: {answer.priority:.2f}\nReasoning: {answer.reasoning}"


@dataclass(frozen=True)
class Said:
    """What can be read from an answer, whether or not it is well formed."""

    action: Action | None
    priority: float | None
    well_formed: bool  # three lines, as `answer_text` writes them


def read_answer(text: str) -> Said:
    """The other way of `answer_text`, for whatever a model may have written.

    >>> read_answer("Action: archive\\nPriority: 0.25\\nReasoning: no question, low urgency")
    Said(action='archive', priority=0.25, well_formed=True)
    >>> read_answer("Action: archive\\nPriority: high")
    Said(action='archive', priority=None, well_formed=False)
    """
    lines = [*text.removesuffix("\n").split("\n"), "", ""]
    action = next((action for action in ACTIONS if f"{lines[0]}\n" == action_text(action)), None)
    number = re.fullmatch(r"Priority: (0(?:\.\d{1,4})?|1(?:\.0{1,4})?)", lines[1])
    reasoned = len(lines) == 5 and re.fullmatch(r"Reasoning: \S.*", lines[2])
    return Said(action, float(number[1]) if number else None, all((action, number, reasoned)))


def action_text(action: Action) -> str:
    """The first line of an answer, newline included, so that no action is the beginning of another's line."""
    return f"Action: {action}\n"


def reasoning_text(row: Row) -> str:
    """Two facts of the prompt, those that stand out most, at most 24 tokens; it never says what was done.

    A request or a question is named first, then what lies further from the neutral 0.5: the sender's importance or
    the topic's urgency.
    """
    asks = "an action is requested" if row.is_action_request else "a question" if row.is_question else "nothing asked"
    if abs(row.people_score - 0.5) >= abs(row.urgency - 0.5):
        return f"{asks}, sender importance {row.people_score:.2f}"
    return f"{asks}, topic urgency {row.urgency:.2f}"


def demonstration(row: Row) -> Answer:
    """The answer that says what the owner did."""
    return Answer(
        action=predicted_action(row.action, row.response_time_hours),
        priority=row.priority_target,
        reasoning=reasoning_text(row),
    )
