"""Variants of training rows change one column, and numbers and names never."""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.errors import DataError
from mlx_email.labels.examples.augment import augmented, paraphrase_subject, similar_senders, swap_sender
from mlx_email.labels.examples.paraphrase import PREPOSITIONS, SYNONYMS, paraphrases
from mlx_email.labels.features import text_features
from mlx_email.labels.schema import Row
from mlx_email.labels.subjects import marked_forward, marked_reply
from mlx_email.mail.message import Message

START = datetime(2026, 1, 5, 9, tzinfo=UTC)


def letter(number: int = 0, **fields) -> Row:
    values = {"message_id": f"<{number}>", "user": "ann", "date": START + timedelta(hours=number), "sender": "b@y.org"}
    return Row(**(values | fields))


PIECES = [
    *["Re: ", "FW: ", "Re[2]: ", "re:", " - ", ": ", " \u2013 ", "-", "?", "!", ", ", " ", " a ", " an "],
    *["Question about ", "question on ", "Quick query regarding ", "About ", "News concerning "],
    *["Smith", "iPhone", "Budget", "URGENT", "today", "deadline", "room", "the", "fwd", "12", "#7", "$3.50", "Q3"],
    *["question", "Question", "revised", "Updated", "SUMMARY", "staff", "errors,", "phone?", "vacation"],
]
subjects = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20)


@st.composite
def mailboxes(draw) -> list[Row]:
    return [
        letter(
            number,
            user=draw(st.sampled_from(["ann", "ben"])),
            sender=draw(
                st.sampled_from(["", "x", *(f"{name}@{place}" for name in "abcd" for place in ("y.org", "Z.org"))])
            ),
            people_score=draw(st.integers(0, 20)) / 20,
            subject=draw(subjects),
        )
        for number in range(draw(st.integers(0, 15)))
    ]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("Budget - third quarter", ["third quarter - Budget"]),
        ("Fw: Re: Budget: third quarter", ["Fw: Re: third quarter - Budget"]),
        ("Oslo: Bergen - Voss", []),  # which belongs together is not known
        ("Start 10:30", []),
        ("Budget: 2026", []),
        ("Plans - really?", []),
        ("Lunch - re:mark", []),  # would begin as an answer does
        ("Notes on the revised plan", ["Notes on the updated plan"]),
        ("a question for you", []),  # "a information" is no English
        ("error 404", []),
        ("Phone Shop", []),  # a name, perhaps
        ("New Staff", []),
        ("SUMMARY of plans", []),
        ("Staff party", ["Personnel party"]),
        (
            "question about the budget",
            ["question regarding the budget", "query about the budget", "the budget - question"],
        ),
        ("Comments on iPhone sales", ["Comments about iPhone sales", "iPhone sales - comments"]),
        ("Comments on sales", ["Comments about sales", "Sales - comments"]),
        ("Comments on sales?", ["Comments about sales?"]),
        ("Comments on sales - Oslo", ["Comments about sales - Oslo", "Oslo - Comments on sales"]),
        ("RE: Question on Oslo", ["RE: Oslo - question", "RE: Query on Oslo", "RE: Question about Oslo"]),
        ("Regarding lunch", ["About lunch"]),
        ("", []),
        ("Re:", []),
    ],
)
def test_paraphrases_by_hand(subject, expected):
    made = paraphrases(subject)
    assert made == sorted(expected)


def parted(subject: str) -> tuple[list[str], str]:
    """The answer and forward marks, and the rest."""
    found = []
    while marked_reply(subject) or marked_forward(subject):
        mark, _, subject = subject.partition(":")
        found.append(mark.strip())
    return found, subject


CHANGED = {*SYNONYMS, *SYNONYMS.values(), *PREPOSITIONS, *PREPOSITIONS.values()}
HEADS = {"news", "comments", "thoughts"}  # words of the forms that may lose their capital


def kept_words(subject: str) -> Counter:
    """The words that no rule may change; lower case for those that begin the subject, as what begins it may change."""
    words = [word.strip(",;:.!?") for word in parted(subject)[1].split()]
    kept = [
        word for word in words if word.lower() not in CHANGED | HEADS and not re.fullmatch(r"[-\u2013\u2014]?", word)
    ]
    return Counter(word.lower() if word.istitle() or word.islower() else word for word in kept)


@given(subjects)
def test_numbers_names_marks_and_urgency_stay(subject):
    before = text_features(Message(message_id="1", subject=subject, to=("ann@x.org",), body="Hello."))
    for made in paraphrases(subject):
        assert sorted(re.findall(r"\d+", made)) == sorted(re.findall(r"\d+", subject))
        assert kept_words(made) == kept_words(subject)
        assert parted(made)[0] == parted(subject)[0]
        assert text_features(Message(message_id="1", subject=made, to=("ann@x.org",), body="Hello.")) == before


def test_no_synonym_is_a_word_of_urgency_or_its_own():
    for word, other in SYNONYMS.items():
        assert word.islower() and word != other
        features = text_features(Message(message_id="1", subject=f"{word} {other}", body="Hello."))
        assert features.urgency == 0.35


def test_the_seed_chooses():
    row = letter(subject="Question about the revised summary")
    made = {paraphrase_subject(row, seed).subject for seed in range(60)}
    assert made == set(paraphrases(row.subject)) and len(made) >= 5
    assert paraphrase_subject(row, 1) == paraphrase_subject(row, 1)
    assert paraphrase_subject(letter(subject="Lunch"), 0) is None


def differing(one: Row, other: Row) -> set[str]:
    before, after = msgspec.structs.asdict(one), msgspec.structs.asdict(other)
    return {name for name in before if before[name] != after[name]}


@given(mailboxes(), st.integers(0, 9), st.randoms())
def test_originals_with_their_variants(rows, seed, rng):
    made = list(augmented(rows, seed))
    originals = [row for row in made if not row.message_id.endswith(("+subject", "+sender"))]
    assert originals == sorted(rows, key=lambda row: (row.user, row.date))
    assert len({row.message_id for row in made}) == len(made)
    assert list(augmented(rng.sample(rows, len(rows)), seed)) == made
    last = None
    for row in made:
        name, plus, variant = row.message_id.partition("+")
        if not plus:
            last = row
        else:
            assert name == last.message_id and row.user == last.user
            assert differing(last, row) == {"message_id", variant}
    similar = similar_senders(rows)
    variants = {row.message_id for row in made} - {row.message_id for row in originals}
    assert variants == {f"{row.message_id}+subject" for row in rows if paraphrases(row.subject)} | {
        f"{row.message_id}+sender" for row in rows if row.people_score > 0.5 and (row.user, row.sender) in similar
    }


@given(mailboxes())
def test_an_owners_variants_are_their_own(rows):
    ben = [row for row in rows if row.user == "ben"]
    assert list(augmented(ben, 2)) == [row for row in augmented(rows, 2) if row.user == "ben"]


def nearest_by_looking_at_all(rows: list[Row], user: str, own: str) -> str | None:
    """The quadratic twin."""
    scores = {row.sender: row.people_score for row in sorted(rows, key=lambda r: r.date) if row.user == user}
    others = [
        (
            sender.rpartition("@")[2].lower() != own.rpartition("@")[2].lower(),
            abs(score - scores[own]),
            score,
            sender < own,
            sender,
        )
        for sender, score in scores.items()
        if sender not in ("", own) and abs(score - scores[own]) <= 0.1
    ]
    return min(others)[-1] if others else None


@given(mailboxes())
def test_the_nearest_sender_of_the_same_owner(rows):
    similar = similar_senders(rows)
    senders = {(row.user, row.sender) for row in rows if row.sender}
    expected = {key: nearest_by_looking_at_all(rows, *key) for key in senders}
    assert similar == {key: other for key, other in expected.items() if other}


def test_no_address_stands_for_many():
    """A hundred senders seen as often as each other: each is swapped for another one."""
    rows = [letter(number, sender=f"s{number}@y.org", people_score=0.75) for number in range(100)]
    assert sorted(similar_senders(rows).values()) == sorted(row.sender for row in rows)


def test_senders_by_hand():
    scores = [("bob@x.org", 0.75), ("cy@y.org", 0.8125), ("di@X.org", 0.65625), ("ed@y.org", 0.25), ("flo@z.org", 0.5)]
    rows = [letter(number, sender=sender, people_score=score) for number, (sender, score) in enumerate(scores)]
    similar = similar_senders(rows)
    assert similar == {
        ("ann", "bob@x.org"): "di@X.org",  # of the same domain
        ("ann", "cy@y.org"): "bob@x.org",  # ed, of the same domain, is not similar
        ("ann", "di@X.org"): "bob@x.org",
    }
    swapped = swap_sender(rows[0], similar)
    assert swapped == msgspec.structs.replace(rows[0], message_id="<0>+sender", sender="di@X.org")
    assert swap_sender(msgspec.structs.replace(rows[0], people_score=0.5), similar) is None
    assert swap_sender(rows[4], similar) is None
    assert swap_sender(msgspec.structs.replace(rows[0], user="ben"), similar) is None


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    "transform",
    [
        lambda row: paraphrase_subject(row, 0),
        lambda row: swap_sender(row, {}),
        lambda row: similar_senders([letter(), row]),
        lambda row: next(augmented([letter(), row], 0)),
    ],
)
def test_only_training_rows(transform, split):
    with pytest.raises(DataError, match=f"'<1>' is of the {split} split"):
        transform(letter(1, split=split))


def test_the_marks_of_all_languages_stay_in_front():
    """Chinese and QQ's programs write a full-width colon; a second colon belongs to the subject."""
    for mark in ("Re\uff1a", "AW: Fwd: ", "\u56de\u590d\uff1a"):
        made = paraphrases(f"{mark}Budget: revised forecast")
        assert made
        assert {text.startswith(mark) for text in made} == {True}
        assert f"{mark}revised forecast - Budget" in made
