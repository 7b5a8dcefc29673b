"""Bodies that are nearly the same: the weekly report with new numbers, the notice with another name in it.

Source: Broder, "On the resemblance and containment of documents" (1997): of two sets of shingles, here runs of three
words, a random order puts the same shingle first with the probability of their Jaccard similarity. 32 orders make a
signature; the share of equal places of two signatures estimates the similarity, with a standard error of at most 0.09
(0.07 at 0.8). Candidates are those with an equal band of four places, as Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets" (chapter 3), put it.
Left out: what follows the first 400 words; similarity by meaning, or of texts in a script without blanks.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from zlib import crc32

import numpy as np

MAX_WORDS = 400  # of a text that count; disclaimers and quoted mail stand behind
MIN_WORDS = 5  # fewer are the same by chance ("thanks, see you then"), and have too few shingles to estimate from
SHINGLE = 3  # words
PLACES = 32  # of a signature, four bytes each
BANDS = 8  # of four places each
SIZE = 4 * PLACES  # bytes
MAX_CANDIDATES = 256  # earlier texts with the same band that are compared, the latest ones: keeps hot bands linear

_NOT_WORD = re.compile(r"[\W_]+")
# Of ASCII: digits to 0, and what is neither digit nor letter to a blank.
_FOLD = bytes(48 if chr(code).isdecimal() else code if code > 127 or chr(code).isalpha() else 32 for code in range(256))


def _constants(count: int) -> np.ndarray:
    """Fixed random numbers by splitmix64 (Steele, Lea and Flood 2014): no library's generator, which may change."""
    state, values = 0, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        values.append(mixed ^ (mixed >> 31))
    return np.array(values, np.uint64)


_NUMBERS = _constants(SHINGLE + 2 * PLACES) | np.uint64(1)  # odd, so that multiplying by them loses nothing
_IN_SHINGLE, _FACTORS, _SHIFTS = np.split(_NUMBERS, [SHINGLE, SHINGLE + PLACES])


def signature(text: str) -> bytes:
    """128 bytes that nearly equal texts mostly share; b"" for a text of fewer than five words, which is like no other.

    Case, white space, punctuation, quote marks and the digits of numbers do not count. The same on every machine.

    >>> one, two = signature("> Report 17: all pumps\\n> run well."), signature("report 2026, all PUMPS run well")
    >>> one == two, len(one), signature("thanks, see you then")
    (True, 128, b'')
    """
    if not text.isascii():
        text = _NOT_WORD.sub(" ", text)
    words = text.lower().encode("utf-8", "surrogatepass").translate(_FOLD).split(None, MAX_WORDS)[:MAX_WORDS]
    if len(words) < MIN_WORDS:
        return b""
    folded = b" ".join(words)
    while b"00" in folded:
        folded = folded.replace(b"00", b"0")
    hashes = np.array([crc32(word) for word in folded.split(b" ")], np.uint64)
    count = len(hashes) - SHINGLE + 1
    shingles = sum(factor * hashes[at : at + count] for at, factor in enumerate(_IN_SHINGLE))
    # The orders below are linear, so what they order must look random itself: the finish of MurmurHash3 (Appleby).
    shingles ^= shingles >> np.uint64(33)
    shingles *= np.uint64(0xFF51AFD7ED558CCD)
    shingles ^= shingles >> np.uint64(33)
    orders = shingles[None, :] * _FACTORS[:, None] + _SHIFTS[:, None]  # (PLACES, shingles)
    return (orders.min(axis=1) >> np.uint64(32)).astype("<u4").tobytes()


def near_duplicates(earlier: Sequence[bytes], later: Sequence[bytes], similarity: float = 0.8) -> list[bool]:
    """For each signature of `later`, whether one of `earlier` is estimated to be at least so similar.

    A key of another length than a signature's is like its equal only, and b"" is like nothing.
    `similarity` lies above 0.75: then two signatures differ in at most seven places, which leave one of eight bands
    untouched, so no pair is missed but where more than 256 different texts share a band. Equal signatures count as
    one; the time is linear in the number of different ones.

    >>> same = signature("the pumps of the north run well again")
    >>> near_duplicates([same], [same, signature("nobody answered the letter about the cables")])
    [True, False]
    """
    if not 1 - BANDS / PLACES < similarity <= 1:
        raise ValueError(f"similarity {similarity} is not above {1 - BANDS / PLACES} and at most 1")
    found = dict.fromkeys(earlier, True) | {b"": False}
    known = [value for value in reversed(found) if len(value) == SIZE]  # the latest first
    bands: list[defaultdict[bytes, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
    for index, value in enumerate(known):
        for band, key in zip(bands, _band_keys(value), strict=True):
            if len(band[key]) < MAX_CANDIDATES:
                band[key].append(index)
    places = np.frombuffer(b"".join(known), "<u4").reshape(-1, PLACES)
    for value in later:
        if value in found:
            continue
        keys = _band_keys(value) if len(value) == SIZE else []
        candidates = {index for band, key in zip(bands, keys, strict=False) for index in band.get(key, ())}
        found[value] = bool(candidates) and _most_equal(places[list(candidates)], value) >= similarity * PLACES
    return [found[value] for value in later]


def _most_equal(places: np.ndarray, value: bytes) -> int:
    """Of the signatures that are the rows of `places`, the most places in which one is equal to `value`."""
    return int((places == np.frombuffer(value, "<u4")).sum(axis=1).max())


def _band_keys(value: bytes) -> list[bytes]:
    width = SIZE // BANDS
    return [value[at : at + width] for at in range(0, SIZE, width)]
