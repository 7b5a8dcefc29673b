"""Header values to text, addresses and names. Nothing here raises, and all of it is linear in the header's length."""

import codecs
import re
from base64 import b64decode
from binascii import Error as Base64Error
from binascii import a2b_qp
from collections.abc import Iterator

MAX_HEADER = 256 * 1024  # characters of one header that are read; the longest of Enron is 26 kB

_ENCODED_WORD = re.compile(r"=\?([^?\s]{1,75})\?([bBqQ])\?([^?]*)\?=")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOKEN = re.compile(r'"[^"]*"|<[^<>]*>|\([^()]*\)|[,;]|[^,;"<>()]+|.', re.DOTALL)
_DIRECTORY_NAME = re.compile(r"/cn=([^/<>\s]+)\s*$", re.IGNORECASE)
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,998}>")

# Not character sets of mail, and some of them warn, are slow, or depend on the machine.
_NEVER = frozenset({"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem"})


def decode_text(data: bytes, charset: str | None) -> str:
    """Bytes to clean text; a charset that is unknown or lies is replaced by UTF-8 if it fits, else Windows-1252.

    >>> decode_text(b"caf\\xc3\\xa9", "us-ascii"), decode_text(b"caf\\xe9", "utf-8"), decode_text(b"a\\r\\nb", "x-none")
    ('café', 'café', 'a\\nb')
    """
    for name in (charset or "ascii", "utf-8"):
        try:
            codec = codecs.lookup(name).name
            if codec not in _NEVER:
                # Mail labelled latin-1 is nearly always Windows-1252, as browsers assume too.
                return clean(data.decode("cp1252" if codec == "iso8859-1" else codec))
        except (LookupError, ValueError, TypeError, OverflowError):
            continue  # unknown, not a character set, or not what the bytes are (UnicodeError is a ValueError)
    return clean(data.decode("cp1252", "replace"))


def clean(text: str) -> str:
    """Line ends to \\n; NUL and lone surrogates, which no table or tokenizer can hold, away."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        text = text.replace("\0", "")
    return _SURROGATE.sub("\ufffd", text)


def decode_header(value: object) -> str:
    """A raw header to one line of text: raw 8-bit bytes, RFC 2047 words and folding undone, tolerantly.

    >>> decode_header("=?utf-8?Q?caf=C3=A9?= =?utf-8?b?IGF1?=\\n lait"), decode_header("=?nonsense?Q?x?=")
    ('café au lait', 'x')
    """
    raw = str(value)[:MAX_HEADER]
    if not raw.isascii():  # raw bytes come as lone surrogates from the stdlib's parser
        raw = decode_text(raw.encode("utf-8", "surrogateescape") if _escaped(raw) else raw.encode(), "utf-8")
    if "=?" in raw:
        raw = _decode_words(raw)
    return clean(" ".join(raw.split()))


def _escaped(text: str) -> bool:
    """Whether every lone surrogate of the text stands for a raw byte, so that it can be turned back."""
    return all("\udc80" <= character <= "\udcff" for character in _SURROGATE.findall(text))


def _decode_words(text: str) -> str:
    """Encoded words to text. Neighbours of one charset are joined as bytes first: a character may be cut in two."""
    pieces: list[tuple[str, bytes | str]] = []  # (charset, bytes) of a word, ("", text) between words
    end = 0
    for match in _ENCODED_WORD.finditer(text):
        between = text[end : match.start()]
        end = match.end()
        charset, data = match[1].split("*")[0].lower(), _word_bytes(match[2], match[3])
        if between.strip() or not pieces:
            pieces.append(("", between))
        if pieces[-1][0] == charset and isinstance(pieces[-1][1], bytes):
            pieces[-1] = (charset, pieces[-1][1] + data)
        else:
            pieces.append((charset, data))
    pieces.append(("", text[end:]))
    return "".join(piece if isinstance(piece, str) else decode_text(piece, charset) for charset, piece in pieces)


def _word_bytes(encoding: str, word: str) -> bytes:
    raw = word.encode("utf-8", "surrogateescape" if _escaped(word) else "replace")
    if encoding in "qQ":
        return a2b_qp(raw, header=True)
    try:
        return b64decode(raw + b"=" * (-len(raw) % 4))
    except (Base64Error, ValueError):
        return raw


def parse_addresses(value: object) -> list[tuple[str, str]]:
    """(name, address) pairs of an address header; the address is lower case, "" where only a name is given.

    Tolerant of what mail really holds: no quotes around "Last, First", Notes paths, exchange directory names.

    >>> parse_addresses('"Doe, Ann" <Ann@Example.com>, bob@example.com (Bob)')
    [('Doe, Ann', 'ann@example.com'), ('Bob', 'bob@example.com')]
    >>> parse_addresses("Doe, Ann </O=X/CN=RECIPIENTS/CN=ADOE>, Bob B Low/HOU/ECT@ECT")
    [('Doe, Ann', 'cn=adoe'), ('Bob B Low', '')]
    """
    found: list[tuple[str, str]] = []
    names: list[str] = []  # parts without an address, not yet known to be whole
    for text, address, comment in _address_parts(decode_header(value)):
        if address is None and not (comment and "@" in text):
            names.append(text)
            continue
        named = text if address is not None else ""
        *alone, name = _join_last_first([*names, named]) if named else [*_join_last_first(names), ""]
        found.extend(map(_bare, alone))
        found.append((_clean_name(name or comment), _clean_address(text if address is None else address)))
        names = []
    found.extend(map(_bare, _join_last_first(names)))
    return [(name, address) for name, address in found if name or address]


def _address_parts(header: str) -> Iterator[tuple[str, str | None, str]]:
    """(text, what follows it in <>, comment) of each part of an address header; parts end at commas and at >."""
    words: list[str] = []
    comment = ""
    for match in _TOKEN.finditer(header):
        part = match[0]
        if part in ",;":
            yield " ".join(words), None, comment
            words, comment = [], ""
        elif part[0] == "<" and len(part) > 1:
            yield " ".join(words), part[1:-1], comment
            words, comment = [], ""
        elif part[0] == "(" and len(part) > 1:
            comment = part[1:-1].strip()
        elif part.strip():
            words.append(part.strip().strip('"'))
    yield " ".join(words), None, comment


def _join_last_first(parts: list[str]) -> list[str]:
    """Undo the split of unquoted "Last, First": a part of one word without @ or / takes the next part with it."""
    parts = [part for part in parts if part]
    joined: list[str] = []
    index = 0
    while index < len(parts):
        part = parts[index]
        following = parts[index + 1] if index + 1 < len(parts) else ""
        if following and not re.search(r"[\s@/]", part.strip("' ")) and not re.search(r"[@/]", following):
            part = f"{part}, {following}"
            index += 1
        joined.append(part)
        index += 1
    return joined


def _bare(part: str) -> tuple[str, str]:
    """A part without angle brackets: an address, or a name, perhaps with its Notes path."""
    compact = part.replace(" @ ", "@").strip("' ")
    local, _, domain = compact.partition("@")
    if "." in domain and " " not in local and "/" not in local:
        return "", _clean_address(compact.split()[0])
    return _clean_name(compact.partition("/")[0].partition("@")[0]), ""


def _clean_address(text: str) -> str:
    """Lower case; an exchange directory name becomes `cn=` and its last part.

    >>> _clean_address(" Ann@Example.COM "), _clean_address("/O=ENRON/OU=NA/CN=RECIPIENTS/CN=ADOE")
    ('ann@example.com', 'cn=adoe')
    """
    text = text.strip().strip("'\"").lower()
    directory = _DIRECTORY_NAME.search(text[-200:])
    if directory:
        return f"cn={directory[1]}"
    local, _, domain = text.partition("@")
    if not domain:
        return ""
    # Notes wraps foreign addresses: ann@example.com@ENRON
    return "".join(f"{local}@{domain.partition('@')[0]}".split())


def _clean_name(text: str) -> str:
    return " ".join(text.replace("\\", "").strip().strip("'\"").split())[:200]


def message_ids(value: object) -> tuple[str, ...]:
    """The ids of Message-ID, In-Reply-To or References, in order."""
    return tuple(_MESSAGE_ID.findall(clean(str(value)[:MAX_HEADER])))
