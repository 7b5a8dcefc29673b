"""Which messages belong together: by References where mail has them, else by subject, time, people and quotation."""

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from mlx_email.labels.duplicates import Mail, sent_at
from mlx_email.labels.owners import Identity, recipient_keys, sender_keys
from mlx_email.labels.subjects import marked_forward, marked_reply, normal_subject
from mlx_email.mail.message import Message

# A subject that rests this long begins a new thread: "Lunch" of May is not "Lunch" of March. Also the longest time
# after which a reply is looked for.
WINDOW = timedelta(days=30)
MIN_FINGERPRINT = 12  # squashed characters; shorter texts ("thanks") stand in any quotation
REMEMBERED = 8  # threads of one subject, and messages of one thread, that a message is compared with: the latest


class _Thread:
    """What is known of a thread so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.active = datetime.min.replace(tzinfo=UTC)
        self.people: set[str] = set()  # keys of all but the owner
        self.fingerprints: deque[str] = deque(maxlen=REMEMBERED)

    def add(self, mail: Mail, people: frozenset[str]) -> None:
        self.active = sent_at(mail.message)
        self.people |= people
        if len(mail.digest.fingerprint) >= MIN_FINGERPRINT:
            self.fingerprints.append(mail.digest.fingerprint)


def thread_ids(mails: Sequence[Mail], owner: Identity = Identity()) -> list[str]:  # noqa: B008 - frozen
    """One thread id a message; `mails` oldest first.

    A message joins the thread of a message it refers to; else, of the threads of its subject that were active in the
    last 30 days, the one that it quotes, else the latest that has one of its people (other than the owner), else, where
    its subject is marked as an answer's or a forward's, the latest; else it begins one. Decided in the order of time
    and never revised, so a later message cannot change an earlier one's thread.
    """
    by_id: dict[str, str] = {}
    announced: dict[str, str] = {}  # ids that were referred to before their message came
    by_subject: dict[str, deque[_Thread]] = {}
    found: list[str] = []
    for mail in mails:
        message = mail.message
        subject = normal_subject(message.subject)
        people = (sender_keys(message) | recipient_keys(message)) - owner.addresses - owner.names
        referred = (*message.references, *((message.in_reply_to,) if message.in_reply_to else ()))
        name = next((announced.pop(own) for own in mail.ids if own in announced), None)
        name = next((by_id[other] for other in reversed(referred) if other in by_id), name)
        if subject and message.date:
            threads = by_subject.setdefault(subject, deque(maxlen=REMEMBERED))
            thread = _find(threads, mail, people) if name is None else _named(threads, name)
            if thread is None:
                thread = _Thread(name or _root(message))
            else:
                threads.remove(thread)
            thread.add(mail, people)
            threads.append(thread)
            name = thread.name
        name = name or _root(message)
        for own in mail.ids:
            by_id.setdefault(own, name)
        for other in referred:
            if other not in by_id:
                by_id[other] = announced[other] = name
        found.append(name)
    return found


def _named(threads: deque[_Thread], name: str) -> _Thread | None:
    return next((thread for thread in threads if thread.name == name), None)


def _find(threads: deque[_Thread], mail: Mail, people: frozenset[str]) -> _Thread | None:
    """The thread of its subject that a message without references belongs to."""
    date = sent_at(mail.message)
    active = [thread for thread in reversed(threads) if date - thread.active <= WINDOW]
    for thread in active:
        if any(fingerprint in mail.digest.quotes for fingerprint in thread.fingerprints):
            return thread
    for thread in active:
        if thread.people & people:
            return thread
    marked = marked_reply(mail.message.subject) or marked_forward(mail.message.subject)
    return active[0] if active and marked else None


def _root(message: Message) -> str:
    root = "\0".join((message.owner, message.message_id, message.path))
    return sha256(root.encode("utf-8", "surrogatepass")).hexdigest()[:16]
