"""Who is who: the keys by which one person is recognised, and the owner's own."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from mlx_email.labels.duplicates import Mail
from mlx_email.labels.folders import folder_kind
from mlx_email.mail.message import Message

# An address is the owner's when it sends this share, or this many, of what lies in the sent folders; below that it is
# an assistant's, or a stray.
OWN_SHARE, OWN_COUNT = 0.05, 20
# Without sent folders: of the mail of others, what must be addressed to one address for it to be the owner's; what, if
# it writes mail too; and how many addresses are looked at, those first that most is for.
MAIN_SHARE, WRITER_SHARE, LIKELY = 0.5, 0.2, 5


class Identity(msgspec.Struct, frozen=True):
    """The addresses under which an owner sends, and the names they give themselves (as keys)."""

    addresses: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


@lru_cache(maxsize=65536)
def name_key(name: str) -> str:
    """First and last name, however written; "" where that is not enough to know a person by.

    >>> name_key("Low, Ann B. (E-mail)"), name_key("Ann B Low/HOU/ECT@ECT"), name_key("cn=alow"), name_key("ann")
    ('ann low', 'ann low', 'cn=alow', '')
    """
    if name.startswith("cn="):
        return name
    plain = re.sub(r"\([^()]*\)", " ", name.lower()).partition("/")[0].partition("@")[0]
    last, comma, first = plain.partition(",")
    words = re.findall(r"[^\W\d_][\w'-]+", f"{first} {last}" if comma else plain)
    return f"{words[0]} {words[-1]}" if len(words) >= 2 else ""


def sender_keys(message: Message) -> frozenset[str]:
    """All keys by which the sender may be named among the recipients of an answer."""
    keys = {name_key(name) for name in message.sender_names}
    return frozenset(keys.union({message.sender}, message.reply_to)) - {""}


def recipient_keys(message: Message) -> frozenset[str]:
    """The addresses and name keys of everyone the message is for."""
    keys = {name_key(name) for name in message.recipient_names}
    return frozenset(keys.union(message.to, message.cc)) - {""}


def find_owner(mails: Sequence[Mail], given: Sequence[str] = ()) -> Identity:
    """The owner's identity: the `given` addresses, else those that write the mail in the sent folders, else, where
    there are no such folders, the address that most of the mail is for. Empty where nothing tells.

    The one thing that is found out of the whole mailbox, its future included: who somebody is does not change.
    """
    sent = [mail.message for mail in mails if in_sent_folder(mail)]
    if given:
        addresses = frozenset(address.strip().lower() for address in given)
        sent = [mail.message for mail in mails if mail.message.sender in addresses]
    elif sent:
        senders = Counter(message.sender for message in sent if message.sender)
        needed = _share(sent)
        addresses = frozenset(address for address, count in senders.items() if count >= needed)
    else:
        addresses = _main_recipient(mails)
        sent = [mail.message for mail in mails if mail.message.sender in addresses]
    names = Counter(key for message in sent if message.sender in addresses for key in _own_names(message.sender_names))
    return Identity(addresses, frozenset(name for name, count in names.items() if count >= _share(sent)))


def _share(sent: Sequence[Message]) -> float:
    return min(OWN_COUNT, OWN_SHARE * len(sent))


def _main_recipient(mails: Sequence[Mail]) -> frozenset[str]:
    """The address that most of the mail of others is for, where there is one that stands out: at least half of it, or a
    fifth if the address also writes here."""
    recipients = Counter(address for mail in mails for address in {*mail.message.to, *mail.message.cc})
    senders = Counter(mail.message.sender for mail in mails)
    for address, count in sorted(recipients.items(), key=lambda item: (-item[1], item[0]))[:LIKELY]:
        needed = WRITER_SHARE if senders[address] else MAIN_SHARE
        if count >= needed * (len(mails) - senders[address]):
            return frozenset({address})
    return frozenset()


def _own_names(names: Iterable[str]) -> set[str]:
    return {name_key(name) for name in names} - {""}


def in_sent_folder(mail: Mail) -> bool:
    return any(folder_kind(folder) == "sent" for folder in mail.folders)


def is_mail(mail: Mail) -> bool:
    """False for calendar entries, contacts, tasks and chats, which some programs store as messages, and for drafts."""
    if "draft" in mail.marks or any(folder_kind(label) == "not_mail" for label in mail.message.labels):
        return False
    return any(folder_kind(folder) not in ("not_mail", "draft") for folder in mail.folders)


def from_owner(message: Message, owner: Identity) -> bool:
    return message.sender in owner.addresses


def is_received(mail: Mail, owner: Identity) -> bool:
    """Mail that someone sent to the owner: in no sent folder and not from one of the owner's addresses."""
    return is_mail(mail) and not in_sent_folder(mail) and not from_owner(mail.message, owner)


def is_sent(mail: Mail, owner: Identity) -> bool:
    """The owner's own mail, and what was sent for them by an assistant."""
    return is_mail(mail) and (in_sent_folder(mail) or from_owner(mail.message, owner))
