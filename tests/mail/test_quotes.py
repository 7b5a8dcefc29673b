"""New text and quoted text: golden cases, written for this test."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.mail.quotes import split

OUTLOOK = """Noon works for me.

 -----Original Message-----
From: \tRoe, Bob
Sent:\tFriday, May 31, 2002 10:57 AM
To:\tLow, Ann
Subject:\tLunch

When?"""

OUTLOOK_UNMARKED = """Noon works for me.

From: Bob Roe <bob@y.org>
Sent: Friday, 2 January 2026 10:57
To: Ann Low
Subject: Lunch

When?"""

NOTES_REPLY = """Noon works for me.




Bob Roe@XY
05/31/2001 10:57 AM
To: Ann Low/HOU/XY@XY
cc: Cy Day/HOU/XY@XY
Subject: Lunch

When?"""

NOTES_REPLY_ONE_LINE = """Noon works for me.
\t
\tFrom:  Bob R Roe                           05/31/2001 10:57 AM
\t

To: Ann Low/HOU/XY@XY
cc:
Subject: Lunch

When?"""

NOTES_REPLY_INTERNET = """Noon works for me.


"Bob Roe" <bob@y.org> on 05/31/2001 10:57:30 AM
To: "'Ann Low'" <ann@x.org>
cc:
Subject: Lunch

When?"""

NOTES_FORWARD = """Noon works for me.
---------------------- Forwarded by Ann B Low/HOU/XY on 05/31/2001
11:02 AM ---------------------------

Bob Roe@XY
05/31/2001 10:57 AM
To: Ann Low/HOU/XY@XY
cc:
Subject: Lunch

When?"""

GMAIL = """Noon works for me.

On Fri, Jan 2, 2026 at 10:57 AM Bob Roe <bob@y.org> wrote:

> When?
> Bob"""

GMAIL_WRAPPED = """Noon works for me.

On Fri, Jan 2, 2026 at 10:57 AM Bob Roe and a long list of others
<bob@y.org> wrote:
> When?"""

GMAIL_FORWARD = """Noon works for me.

---------- Forwarded message ---------
From: Bob Roe <bob@y.org>
Subject: Lunch

When?"""

APPLE_FORWARD = """Noon works for me.

Begin forwarded message:

> From: Bob Roe <bob@y.org>
> When?"""

CASES = {
    "outlook": OUTLOOK,
    "outlook without its mark": OUTLOOK_UNMARKED,
    "notes": NOTES_REPLY,
    "notes, name and date on one line": NOTES_REPLY_ONE_LINE,
    "notes, from the internet": NOTES_REPLY_INTERNET,
    "notes forward": NOTES_FORWARD,
    "gmail": GMAIL,
    "gmail, wrapped": GMAIL_WRAPPED,
    "gmail forward": GMAIL_FORWARD,
    "apple forward": APPLE_FORWARD,
}


@pytest.mark.parametrize("name", CASES)
def test_every_habit_of_quoting(name):
    parts = split(CASES[name])
    assert parts.new == "Noon works for me."
    assert "When?" in parts.quoted
    assert "Bob" in parts.quoted
    assert parts.forwarded == name.endswith("forward")


def test_answers_between_the_quoted_lines_are_new():
    parts = split("On Friday, Bob Roe wrote:\n> When?\nNoon.\n> Where?\n>> Downtown?\nHere.")
    assert parts.new == "Noon.\nHere."
    assert parts.quoted == "On Friday, Bob Roe wrote:\n> When?\n> Where?\n>> Downtown?"


def test_a_forward_without_a_word():
    parts = split(" -----Original Message-----\nFrom: Bob\nSent: today\n\nWhen?")
    assert (parts.new, parts.forwarded) == ("", False)


@pytest.mark.parametrize(
    "text",
    ["Just a letter.\n\nAnn", "From: here to there: a list\nof stops", "To: do\n- buy milk", "-----\nrule\n-----",
     "On Monday I wrote a poem.", "The meeting is on\n05/31/2001 10:57 AM\nin room 3.", ""],
)  # fmt: skip
def test_a_letter_that_quotes_nothing(text):
    assert split(text) == (text.strip(), "", False)


PIECES = [*"\n >-", "To: a\n", "cc:\n", "Subject: x\n", "From: b\n", "1/1/01 10:00 AM\n", "On b wrote:"]
PIECES += ["-----Original Message-----\n", "word "]


@given(st.lists(st.sampled_from(PIECES)))
def test_no_line_is_lost(pieces):
    text = "".join(pieces)
    parts = split(text)
    before = sorted(line.strip() for line in text.split("\n") if line.strip())
    after = sorted(line.strip() for line in f"{parts.new}\n{parts.quoted}".split("\n") if line.strip())
    assert before == after
