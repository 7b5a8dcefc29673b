"""Near-duplicate bodies: signatures against the exact similarity, and bands against comparing every pair."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.labels import near
from mlx_email.labels.near import near_duplicates, signature

WORDS = [
    f"{first}{middle}{last}" for first in "bdfglmnprst" for middle in "aeiou" for last in ("ng", "rk", "lt", "n", "")
]
GOLDEN = "c6d90e029d3c0359f8df831968bada48"  # of the sentence in the test below


def letter(seed: int, count: int = 100) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def is_near(one: str, two: str) -> bool:
    (found,) = near_duplicates([signature(one)], [signature(two)])
    return found


def exact(one: list[str], two: list[str]) -> float:
    """The Jaccard similarity itself: the slow twin."""
    a, b = ({tuple(words[at : at + 3]) for at in range(len(words) - 2)} for words in (one, two))
    return len(a & b) / len(a | b)


def changed(words: list[str], count: int, seed: int = 0) -> list[str]:
    """Every so many words another word, none of them near another."""
    result = list(words)
    for number, at in enumerate(range(0, len(words), max(1, len(words) // max(1, count)))):
        if number < count:
            result[at] = f"other{'abcdefghij'[seed % 10]}{at}x"
    return result


@pytest.mark.parametrize("seed", range(20))
def test_one_word_of_a_hundred_changed_is_found(seed):
    words = letter(seed)
    assert is_near(" ".join(words), " ".join(changed(words, 1, seed)))


@pytest.mark.parametrize("seed", range(20))
def test_half_of_the_words_changed_is_not_found(seed):
    words = letter(seed)
    assert not is_near(" ".join(words), " ".join(changed(words, 50, seed)))
    assert not is_near(" ".join(words), " ".join(words[:50] + letter(seed + 1000, 50)))


@pytest.mark.parametrize("seed", range(20))
def test_other_texts_of_the_same_words_are_not_found(seed):
    words = letter(seed)
    assert not is_near(" ".join(words), " ".join(letter(seed + 1000)))
    assert not is_near(" ".join(words), " ".join(random.Random(seed).sample(words, len(words))))


def test_white_space_case_marks_and_digits_do_not_matter():
    plain = "Report 17 of 5 May 2026: pumps 1200, valves 30, all cables run well."
    for same in (
        "> report 18 of 6 may 2027:\r\n>> PUMPS 9, valves 1234567,\n\t all   cables run well",
        "Report 17 of 5 May 2026 \u2013 pumps 1,200, \u201cvalves\u201d 30; all cables run well!!".replace(
            "1,200", "1200"
        ),
    ):
        assert signature(same) == signature(plain)
    assert signature(plain.replace("pumps", "pipes")) != signature(plain)


@pytest.mark.parametrize("text", ["", "ok", "thanks, see you then", "> > >", "1 2 3 4", "\u4f60\u597d"])
def test_short_texts_are_like_nothing(text):
    assert signature(text) == b""
    assert near_duplicates([b"", signature(text)], [b"", signature(text)]) == [False, False]


def test_only_the_first_words_count():
    words = letter(1, near.MAX_WORDS)
    assert signature(" ".join(words)) == signature(" ".join([*words, "a", "disclaimer", "of", "five", "words"]))
    assert signature(" ".join(words[:-100])) != signature(" ".join(words))


def test_keys_of_other_lengths_are_like_their_equals():
    known = [b"short", signature("the pumps of the north run well")]
    assert near_duplicates(known, [b"short", b"sh", b"0123456789abcdef", known[1]]) == [True, False, False, True]
    assert near_duplicates([], [b"short", known[1]]) == [False, False]
    assert near_duplicates(known, []) == []


@pytest.mark.parametrize("similarity", [0.75, 1.1, 0.0])
def test_a_similarity_that_bands_cannot_see_is_refused(similarity):
    with pytest.raises(ValueError, match="similarity"):
        near_duplicates([], [], similarity)


def test_the_same_in_another_process():
    code = (
        "from mlx_email.labels.near import signature; print(signature('a letter about \u00e9tudes and pumps 5').hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == signature("a letter about \u00e9tudes and pumps 5").hex()
    # What a table was made with must not change with a version of numpy or Python.
    assert signature("the pumps of the north run well again").hex()[:32] == GOLDEN


def estimates() -> tuple[np.ndarray, np.ndarray]:
    """(exact, estimated) similarity of pairs of all kinds."""
    pairs = []
    for seed in range(300):
        words = letter(seed, 60 + seed % 120)
        other = changed(words, seed % 25, seed)
        one, two = (np.frombuffer(signature(" ".join(text)), "<u4") for text in (words, other))
        pairs.append((exact(words, other), (one == two).mean()))
    return tuple(np.array(pairs).T)


def test_estimates_agree_with_the_exact_similarity():
    truth, estimated = estimates()
    error = estimated - truth
    expected = np.sqrt(truth * (1 - truth) / near.PLACES)
    assert truth.min() < 0.4 and truth.max() == 1
    assert abs(error.mean()) < 3 * np.sqrt((expected**2).sum()) / len(error)
    assert error.std() < 1.25 * np.sqrt((expected**2).mean())
    assert np.abs(error).max() < 0.35


def test_orders_that_are_no_orders_are_seen(monkeypatch):
    """The planted fault: the same random order in every place gives the same mean, but not its spread."""
    monkeypatch.setattr(near, "_FACTORS", near._FACTORS[:1].repeat(near.PLACES))
    monkeypatch.setattr(near, "_SHIFTS", near._SHIFTS[:1].repeat(near.PLACES))
    with pytest.raises(AssertionError):
        test_estimates_agree_with_the_exact_similarity()


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=32, max_size=32), max_size=12),
    st.lists(st.lists(st.integers(0, 2), min_size=32, max_size=32), max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 31), max_size=9)), max_size=12),
    st.sampled_from([0.76, 0.8, 0.9, 1.0]),
)
def test_bands_miss_no_pair(earlier, later, copies, similarity):
    """Against comparing every pair, on signatures with many equal places, some with a few places changed."""
    for index, places in copies:
        if index < len(earlier):
            later.append([7 if at in places else value for at, value in enumerate(earlier[index])])
    before, after = ([np.array(places, "<u4") for places in side] for side in (earlier, later))
    pairs = [any((one == two).mean() >= similarity for one in before) for two in after]
    assert near_duplicates([s.tobytes() for s in before], [s.tobytes() for s in after], similarity) == pairs


def test_a_newsletter_that_comes_ten_thousand_times():
    same = signature(" ".join(letter(1)))
    started = time.process_time()
    assert all(near_duplicates([same] * 10_000, [same] * 10_000))
    assert time.process_time() - started < 1


def test_many_texts_that_share_a_band_are_bounded():
    hot = np.random.default_rng(0).integers(0, 2**32, (6_000, near.PLACES), dtype=np.uint32)
    hot[:, :24] = 7
    values = [row.astype("<u4").tobytes() for row in hot]
    started = time.process_time()
    assert not any(near_duplicates(values[:3_000], values[3_000:]))
    assert time.process_time() - started < 5  # 0.2 s; comparing all with all takes ten times as long


@pytest.mark.parametrize(
    "text", ["x " * 500_000, "x" * 1_000_000, " " * 1_000_000, "\u00a0" * 1_000_000, "0" * 1_000_000]
)
def test_hostile_texts_take_no_time(text):
    started = time.process_time()
    signature(text)
    assert time.process_time() - started < 2
