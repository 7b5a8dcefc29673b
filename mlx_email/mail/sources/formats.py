"""What the names in a tree say: which format a file is of, why it is none of a format's mail, its folder, its marks."""

import re

from mlx_email.mail.message import MAX_BYTES, Mark
from mlx_email.mail.names import KNOWN_FOLDERS, decode_utf7, folder_key, printable
from mlx_email.mail.sources.raw import Format

TOO_LARGE = f"larger than {MAX_BYTES // 2**20} MiB"

_CMU_NAME = re.compile(r"\d+[._]")  # the files of the CMU corpus: 1., 2., ...
_MBOX_SUFFIXES = (".mbox", ".mbx", ".mbox.gz")
_MBOX_ENDS = re.compile(r"(?:\.mbo?x)?(?:\.gz)?$|\.sbd$", re.IGNORECASE)
_MAILDIR_FLAGS = re.compile(r"[:;!]2,([A-Za-z]*)$")  # where a file's name may hold no colon, ; or ! stands for it
_MAILDIR_MARKS: dict[str, Mark] = {"R": "answered", "P": "forwarded", "T": "trashed", "D": "draft", "F": "flagged"}
_SERVER_FILES = re.compile(
    r"dovecot|courier|cyrus\.|maildir(?:size|folder)|subscriptions|uidvalidity|uidlist", re.IGNORECASE
)


def claim(parts: tuple[str, ...]) -> Format | None:
    """The format a file's name speaks for; None where it says nothing.

    >>> claim(("ann", "inbox", "1.")), claim((".Sent", "cur", "1735.M1.host:2,S")), claim(("Mail", "Inbox.msf"))
    ('cmu', 'maildir', 'mbox')
    """
    name = parts[-1].lower()
    if name.endswith(".emlx"):
        return None if "Attachments" in parts else "emlx"
    if len(parts) > 1 and parts[-2] in ("cur", "new") and not _CMU_NAME.fullmatch(name):
        return "maildir"
    if name.endswith(".eml"):
        return "eml"
    if name.endswith((*_MBOX_SUFFIXES, ".msf")) or _is_apple_mbox(parts):
        return "mbox"
    if _CMU_NAME.fullmatch(name):
        return "cmu"
    return "mbox" if folder_key(parts[-1]) in KNOWN_FOLDERS else None  # a file called Inbox is a whole folder


def refusal(of: Format, parts: tuple[str, ...], size: int) -> str:
    """Why a file is not read as mail of the format, as far as its name and size tell; "" where it is read."""
    if parts[-1].startswith("."):
        return "hidden file"
    name = parts[-1].lower()
    reason = ""
    if of == "maildir":
        reason = _maildir_refusal(parts)
    elif of == "eml" and not name.endswith(".eml"):
        reason = "not an .eml file"
    elif of == "emlx" and ("Attachments" in parts or name.endswith(".emlxpart")):
        reason = "attachment kept beside its message"
    elif of == "emlx" and not name.endswith(".emlx"):
        reason = "not an .emlx file"
    elif of == "mbox" and name.endswith(".msf"):
        reason = "not an mbox"
    return reason or (TOO_LARGE if size > MAX_BYTES and of != "mbox" else "")


def _maildir_refusal(parts: tuple[str, ...]) -> str:
    box = parts[-2] if len(parts) > 1 else ""
    if box in ("cur", "new"):
        return ""
    if box == "tmp":
        return "still being delivered"
    return "index file of the mail server" if _SERVER_FILES.match(parts[-1]) else "not in cur or new"


def maildir_marks(parts: tuple[str, ...]) -> tuple[Mark, ...]:
    """The marks in the name of a Maildir's file; without S, or in `new`, it was never opened.

    Thunderbird's Maildir is another: it names its files .eml and writes the flags into the message.

    >>> maildir_marks(("cur", "1735.M1.host:2,RS")), maildir_marks(("new", "1735.M1.host"))
    (('answered',), ('unseen',))
    """
    found = _MAILDIR_FLAGS.search(parts[-1])
    flags = found[1] if found else ""
    if not found and parts[-1].endswith(".eml"):
        return ()
    unseen: set[Mark] = set() if "S" in flags and parts[-2] == "cur" else {"unseen"}
    return tuple(sorted(unseen | {mark for flag, mark in _MAILDIR_MARKS.items() if flag in flags}))


def maildir_root(common: tuple[str, ...]) -> tuple[str, ...]:
    """What lies above a Maildir, from what the paths of all its folders have in common.

    >>> maildir_root(("backup", "Maildir")), maildir_root(("Maildir", ".Sent")), maildir_root(("Sent",))
    (('backup', 'Maildir'), ('Maildir',), ())
    """
    while common and (common[-1].startswith(".") or folder_key(common[-1]) in KNOWN_FOLDERS):
        common = common[:-1]
    return common


def maildir_folder(parts: tuple[str, ...], root: tuple[str, ...]) -> str:
    """The folder of a Maildir's file: `.Archive.2020` is Maildir++ for Archive/2020; the root itself is the inbox.

    >>> maildir_folder(("Maildir", ".Archive.2020", "cur", "1:2,S"), ("Maildir",)), maildir_folder(("cur", "1"), ())
    ('Archive/2020', 'INBOX')
    """
    steps: list[str] = []
    for part in parts[len(root) : -2]:
        steps.extend(part[1:].split(".") if part.startswith(".") else [part])
    return "/".join(decode_utf7(printable(step)) for step in steps if step) or "INBOX"


def mbox_folder(parts: tuple[str, ...]) -> str:
    """The folder that an mbox file is: its path, without the endings that say what it is.

    >>> mbox_folder(("Mail", "Oak.mbox")), mbox_folder(("Inbox.sbd", "Oak")), mbox_folder(("Oak.mbox", "mbox"))
    ('Mail/Oak', 'Inbox/Oak', 'Oak')
    """
    named = parts[:-1] if _is_apple_mbox(parts) else parts
    return "/".join(decode_utf7(printable(_MBOX_ENDS.sub("", part, count=1) or part)) for part in named)


def _is_apple_mbox(parts: tuple[str, ...]) -> bool:
    return len(parts) > 1 and parts[-1] == "mbox" and parts[-2].lower().endswith(".mbox")


def emlx_folder(parts: tuple[str, ...]) -> str:
    """The folder of Apple Mail's file: the mailboxes on its way, without what stands between them.

    >>> emlx_folder(("V10", "0E-1", "Oak.mbox", "2020.mbox", "7F-2", "Data", "Messages", "12.emlx"))
    'Oak/2020'
    """
    boxes = [part[: -len(".mbox")] for part in parts[:-1] if part.lower().endswith(".mbox")]
    return "/".join(printable(part) for part in boxes or parts[:-1])
