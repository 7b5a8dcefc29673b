"""Tables without addresses, numbers and names: what they stand for is replaced by numbered placeholders.

    person12@domain3.invalid   an address, in columns and in text; the same domain keeps the same number
    <name-7>                   a person's name that the redactor knows, a Notes name or a directory code (cn=)
    <phone-2> <card-1> <ssn-1> numbers that look like these
    http://host/path?<query-4> what follows ? or # in a link; user and password before the host are dropped
    <message-9@redacted.invalid>, thread-5, owner-1   the ids of a row

One `Redactor` reads one mailbox, in the order of time: a value has one placeholder, numbered as it first appears. A
number is a count and nothing of the value, and no list of what stood for what is kept, so nothing leads back.
Text that already looks like a placeholder is left as it is: redacting twice changes nothing.

Left out: names that the redactor is not given, and those that `redact_names` leaves out; addresses in words ("ann at
example dot com"); numbers in words; what a text says of a person without a name; the host and path of a link, but for
names and addresses in them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlx_email.labels.redact_names import APOSTROPHES, find_name, known_names, name_words
from mlx_email.labels.redact_patterns import (
    ADDRESSES,
    CARD_END,
    DIRECTORY,
    LINK,
    LINK_END,
    NOTES,
    NUMBER,
    ONE_ADDRESS,
    PLACED_ADDRESS,
    PLACED_MESSAGE,
    PLACED_THREAD,
    PRICE,
    PUNCTUATION,
    QUERY,
    SPACED_AT,
    TOKEN,
    digits_of,
    luhn,
)


class Redactor:
    """Redacts the rows of one mailbox; feed them in the order of time.

    >>> redactor = Redactor(1, ["Low, Ann B.", "Bob Reed/HOU/ECT@ECT"])
    >>> redactor.redact_text("Ann, call Bob Reed <bob@example.com> at 713-555-0100 by 5/16. Low")
    '<name-1>, call <name-2> <person1@domain1.invalid> at <phone-1> by 5/16. <name-1>'
    """

    def __init__(self, owner_number: int, names: Iterable[str] = ()) -> None:
        self.owner = f"owner-{owner_number}"  # what stands in the column `user`
        self._names = known_names(names)
        self._numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)  # kind -> value -> its number

    def redact_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of `schema.COLUMNS`, or some of its columns, redacted; dates, labels and scores stay as they are."""
        columns: dict[str, Callable[[str], str]] = {
            "message_id": self.redact_message_id,
            "in_reply_to": self.redact_message_id,
            "references": self.redact_message_id,
            "thread_id": self._thread,
            "user": lambda _: self.owner,
            "from": self.redact_address,
            "to": self.redact_address,
            "cc": self.redact_address,
            "subject": self.redact_text,
            "body": self.redact_text,
        }
        redacted = dict(row)
        for column, redact in columns.items():
            value = row.get(column)
            if value is not None:
                redacted[column] = redact(value) if isinstance(value, str) else [redact(item) for item in value]
        return redacted

    def redact_address(self, address: str) -> str:
        """What stands in an address column: an address, or a name or code without @, which then has no domain.

        >>> [Redactor(1).redact_address(text) for text in ("Ann@Example.com", "cn=alow", "")]
        ['person1@domain1.invalid', 'person1@redacted.invalid', '']
        """
        if not address.strip() or PLACED_ADDRESS.fullmatch(address):
            return address
        local, _, rest = address.strip().lower().partition("@")
        domain = rest.partition("@")[0]  # Notes wraps foreign addresses: ann@example.com@ENRON
        person = self._number("person", f"{local.lstrip(PUNCTUATION) or local}@{domain}")
        host = f"domain{self._number('domain', domain)}" if domain else "redacted"
        return f"person{person}@{host}.invalid"

    def redact_message_id(self, message_id: str) -> str:
        """The same id, wherever it stands, has one number.

        >>> Redactor(1).redact_message_id("<20260105.ann@mail.example.com>")
        '<message-1@redacted.invalid>'
        """
        if PLACED_MESSAGE.fullmatch(message_id):
            return message_id
        return f"<message-{self._number('message', message_id)}@redacted.invalid>"

    def redact_text(self, text: str) -> str:
        """A subject or a body, what it quotes included. Linear in its length.

        >>> Redactor(1).redact_text("http://ann:pw@example.com/list?user=ann#top or Ann B Low/HOU/ECT@ECT")
        'http://example.com/list?<query-1> or <name-1>'
        """
        # Each pattern is asked only where the text has what it cannot do without.
        if " @ " in text:
            text = SPACED_AT.sub("@", text)
        if "://" in text or "www." in text.lower():
            text = LINK.sub(self._link, text)
        if "?" in text:
            text = QUERY.sub(lambda match: self._query("", match[0][1:]), text)
        if "=" in text:
            text = DIRECTORY.sub(self._directory, text)
        if "/" in text:
            text = NOTES.sub(lambda match: self._name(self._person(match[0])), text)
        if "@" in text:
            text = ADDRESSES.sub(self._addresses, text)
        return self._numbers_and_names(text)

    def _numbers_and_names(self, text: str) -> str:
        """One walk over words and numbers; what is replaced may be longer than the token that it begins with."""
        kept: list[str] = []
        starts = self._names.starts
        done = start = 0
        while start < len(text):
            for token in TOKEN.finditer(text, start):
                found = None
                at = token.start()
                if token.lastgroup == "word":
                    word = token[0].lower()
                    if word not in starts:
                        if word[1:2] not in APOSTROPHES or word[2:] not in starts:
                            continue
                        at += 2  # d'Ann
                    name = find_name(self._names, text, at, token.end())
                    found = name and (name[0], self._name(name[1]))
                elif token.lastgroup == "number":
                    found = self._number_at(text, at)
                if found:
                    kept += text[done:at], found[1]
                    done = start = found[0]
                    break  # the tokens go on behind what was replaced
            else:
                break
        return "".join([*kept, text[done:]])

    def _number_at(self, text: str, start: int) -> tuple[int, str] | None:
        match = NUMBER.match(text, start)
        if not match or not match.lastgroup:
            return None
        kind, end = match.lastgroup, match.end()
        if kind == "card":
            tail = CARD_END.match(text, end)
            ends = [tail.end(), end] if tail else [end]
            end = next((at for at in ends if luhn(digits_of(text[start:at]))), 0)
            if not end:
                return None
        digits = digits_of(text[start:end])
        if kind == "phone":  # +1, 1 and nothing before the area code are one number
            digits = digits.lstrip("0")
            digits = digits[1:] if len(digits) >= 11 and digits[0] == "1" else digits
        return end, f"<{kind}-{self._number(kind, digits)}>"

    def _number(self, kind: str, value: str) -> int:
        return self._numbers[kind].setdefault(value, len(self._numbers[kind]) + 1)

    def _thread(self, thread: str) -> str:
        return thread if PLACED_THREAD.fullmatch(thread) else f"thread-{self._number('thread', thread)}"

    def _name(self, person: str) -> str:
        return f"<name-{self._number('name', person)}>"

    def _person(self, written: str) -> str:
        """Who a Notes name is; of one word, the one whose name has it."""
        first, last = name_words(written)
        words = (*first, *last)
        if len(words) > 1:
            return f"{words[0]} {words[-1]}"
        return self._names.single.get(words[0], words[0]) if words else written.lower()

    def _directory(self, match: re.Match[str]) -> str:
        code = match["last"] or match["code"]
        return self._name(f"cn={code}".lower() if code else self._person(match["name"]))

    def _addresses(self, match: re.Match[str]) -> str:
        return match[0] if PRICE.fullmatch(match[0]) else ONE_ADDRESS.sub(self._address, match[0])

    def _address(self, match: re.Match[str]) -> str:
        bare = match[0].lstrip(PUNCTUATION)
        if PLACED_ADDRESS.fullmatch(bare):
            return match[0]
        return match[0][: len(match[0]) - len(bare)] + self.redact_address(f"{match[1]}@{match[2]}")

    def _link(self, match: re.Match[str]) -> str:
        link = match[0].rstrip(LINK_END)
        end = match[0][len(link) :]
        head = re.split(r"[?#]", link, maxsplit=1)[0]
        scheme, *hosts = head.replace("%40", "@").split("://")
        hosts = [_without_user(host) for host in hosts]
        return self._query("://".join([scheme, *hosts]), link[len(head) + 1 :], link[len(head) :][:1]) + end

    def _query(self, head: str, query: str, mark: str = "?") -> str:
        value = query.rstrip(LINK_END)
        return f"{head}?<query-{self._number('query', value)}>{query[len(value) :]}" if value else head + mark + query


def _without_user(link: str) -> str:
    """A link's host and path, without what stands before an @ in the host."""
    host, slash, path = link.partition("/")
    return (host if PLACED_ADDRESS.match(host) else host.rpartition("@")[2]) + slash + path
