"""What an address, a link, a directory name and a number look like in mail: the patterns of `redact`.

Every pattern is linear: it begins only where a run of its characters does, or looks a bounded number of them ahead,
and gives nothing back (`++`, `*+`). None looks at what stands before a number or a name, and what follows may only
not go on with the same digits or letters; so a placeholder put beside it changes nothing.
"""

import re

from mlx_email.labels.redact_names import WORD

PLACED_ADDRESS = re.compile(r"person\d+@(?:domain\d+|redacted)\.invalid")
PLACED_MESSAGE, PLACED_THREAD = re.compile(r"<message-\d+@redacted\.invalid>"), re.compile(r"thread-\d+")

LINK = re.compile(r"(?:(?:https?|ftps?|file|mms|rtsp|ldap|news|notes)://|www\.)[^\s<>\"]++", re.IGNORECASE)
QUERY = re.compile(r"\?[\w.%+-]++=[^\s<>\"]*+")  # of a link without its http://
LINK_END = ".,;:!?'*)]}"  # ends the sentence, not the link

_VALUE = r"[^/<>\s,;\"'()\[\]@]{1,80}+"
DIRECTORY = re.compile(
    # /O=NORTHGATE/OU=EU/CN=RECIPIENTS/CN=ALOW
    rf"/o=[^/<>\n]{{1,80}}+(?:/(?:ou|cn)=[^/<>\n]{{1,80}}+(?=/))*/cn=(?P<last>{_VALUE})(?:@[\w.-]++)?"
    # CN=Ann B Low/OU=HOU/O=ECT@ECT
    rf"|cn=(?P<name>[^/<>\n@;\"]{{1,80}}+)(?:/(?:ou|o|c)={_VALUE})++(?:@[\w.-]++)?"
    rf"|cn=(?P<code>{_VALUE})",
    re.IGNORECASE,
)
# Ann B Low/HOU/ECT@ECT: certain by its @; without one, two words and two parts with capitals are asked for.
_CAPITAL = r"[^\W\d_a-z][\w.'\u2019-]{0,40}+"
NOTES = re.compile(
    rf"(?<![^\W\d_]){_CAPITAL}(?:"
    rf"(?: {_CAPITAL}){{0,4}}(?:/(?!person\d)[^\W\d_][\w&.-]{{0,30}}+(?: {_CAPITAL}){{0,2}}){{1,4}}@[^\W\d_][\w.-]*+"
    rf"|(?: {_CAPITAL}){{1,4}}(?:/[^\W\d_a-z][\w&-]{{0,30}}+){{2,4}}+)"
)

_LOCAL = r"[\w.!#$%&'*+=^`{|}~-]"
PUNCTUATION = ".!#$%&'*+=^`{|}~-"  # before an address it is not the address's
_HOST = r"(?:[\w-]++(?:\.[\w-]++)*+|\[[^\]\s]{1,64}\][\w.-]*+)"
SPACED_AT = re.compile(rf"(?<={_LOCAL}) @ (?=[\w-]++\.[^\W\d_])")  # ann @ example.com
ONE_ADDRESS = re.compile(rf"({_LOCAL}++)@({_HOST})(?:\.*+@{_HOST})*+")  # the last part is Notes' wrapping
PRICE = re.compile(r"[\d.,$+~*=-]+@(?:[\d._-]+|\w[\w-]*)")  # 100@3.20, 50@hub
ADDRESSES = re.compile(rf"(?<!{_LOCAL})(?:{ONE_ADDRESS.pattern})++")  # several where nothing is between them

_DASH = "[-\u2010-\u2013]"  # hyphens, and the dash of figures
_DOT = rf"[ \xa0]?(?:{_DASH}|[.])[ \xa0]?"
_WORLD = rf"(?:[ \xa0()]|{_DASH})"
NUMBER = re.compile(
    # 3-2-4 in the ranges that are given out
    rf"(?P<ssn>(?!000|666|9)\d{{3}}({_DASH}|[ ])(?!00)\d\d\2(?!0000)\d{{4}}(?!\d))"
    # 13-19 digits that begin as the issuers' do (not as years and clocks): in one, as 4-4-4-n or 4-6-5; Luhn decides
    r"|(?P<card>(?:[3-6]\d|2[2-7])"
    r"(?:\d{11,17}|\d\d(?:([ -])\d{4}\4\d{4}\4\d{1,4}|[ -]\d{6}[ -]\d{4,5}))(?!\d))"
    r"|(?P<phone>(?:"
    # North America: 1-713-555-0100, 713/555-0100, (713) 555-0100, 713 555 0100, 7135550100, 555-0100
    rf"(?:\+?1(?:{_DOT}|[ ])?)?(?:"
    rf"\d{{3}}(?:{_DOT}|/)\d{{3}}{_DOT}|\(\d{{3}}\)(?:{_DOT}|[ /\xa0]{{0,2}})\d{{3}}(?:{_DOT}|[ \xa0])?"
    rf"|[2-9]\d\d[ \xa0][2-9]\d\d(?:{_DOT}|[ \xa0])|[2-9]\d\d[2-9]\d\d)\d{{4}}"
    rf"|[2-9]\d\d{_DASH}\d{{4}}"
    # the world: +44.20.7946.0123, +44 (0)20 7946 0123, 0044 20 7946 0123, 011 44 20 ..., 020 7946 0123
    rf"|\+[1-9]\d{{0,2}}(?:\.\d{{2,5}}){{2,4}}|\+\(?[1-9](?:{_WORLD}{{0,3}}\d){{7,14}}"
    rf"|(?:00|011[ -])[1-9]\d{{0,2}}(?:{_WORLD}{{1,3}}\d{{1,5}}){{2,5}}"
    rf"|\(?0[1-9](?:\d\)?(?:[ /]|{_DASH})\d{{4}}|\d\d\)?(?:[ /]|{_DASH})\d{{3}}|\d{{3}}\)?(?:[ /]|{_DASH})\d{{2}})"
    rf"(?:[ ]|{_DASH})?\d{{4}}"
    r")(?!\d)(?:[ ,;]{0,3}(?:x|ext\.?|extension)[ .:]{0,2}\d{1,6}(?!\d))?)",
    re.IGNORECASE,
)
CARD_END = re.compile(r"[ -]\d{1,3}(?!\d)")  # of a card of 19 digits in fours

TOKEN = re.compile(
    rf"{PLACED_ADDRESS.pattern}|<(?:name|phone|card|ssn|query)-\d+>"
    rf"|(?P<word>{WORD})|(?P<number>\d+|[+(](?=[\d(]))"
)

_DOUBLED = str.maketrans("0123456789", "0246813579")  # twice a digit, and the sum of its digits


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others, as on payment cards.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    doubled = digits[-2::-2].translate(_DOUBLED)
    return (sum(map(int, digits[-1::-2])) + sum(map(int, doubled))) % 10 == 0


def digits_of(text: str) -> str:
    """The digits of a number, those of other scripts as 0-9."""
    digits = "".join(filter(str.isdecimal, text))
    return digits if digits.isascii() else "".join(str(int(digit)) for digit in digits)
