"""Which messages belong together: by References where mail has them, else by subject."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from mlx_email.labels.duplicates import Mail
from mlx_email.labels.subjects import normal_subject

# A subject that rests this long begins a new thread: "Lunch" of May is not "Lunch" of March. Also the longest time
# after which a reply is looked for.
WINDOW = timedelta(days=30)


def thread_ids(mails: Sequence[Mail]) -> list[str]:
    """One thread id a message; `mails` oldest first.

    A message joins the thread of a message it refers to, else the thread of its subject if that was active in the
    last 30 days, else it begins one. Decided in the order of time and never revised, so a later message cannot
    change an earlier one's thread; the id is made of the thread's first message.
    """
    by_id: dict[str, str] = {}
    by_subject: dict[str, tuple[str, datetime]] = {}
    found: list[str] = []
    for mail in mails:
        message = mail.message
        subject = normal_subject(message.subject)
        referred = (*message.references, *((message.in_reply_to,) if message.in_reply_to else ()))
        thread = next((by_id[name] for name in reversed(referred) if name in by_id), None)
        if thread is None and subject and message.date and subject in by_subject:
            last, active = by_subject[subject]
            if message.date - active <= WINDOW:
                thread = last
        if thread is None:
            root = "\0".join((message.owner, message.message_id, message.path))
            thread = sha256(root.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for name in (message.message_id, *referred):
            by_id.setdefault(name, thread)
        if subject and message.date:
            by_subject[subject] = (thread, message.date)
        found.append(thread)
    return found
