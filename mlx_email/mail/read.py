"""Bytes to a message. Any bytes are legal: what cannot be an e-mail raises NotMail, nothing else is ever raised."""

import warnings
from email import message_from_bytes, policy
from email.message import Message as Parsed
from hashlib import sha256

from mlx_email.mail.dates import houston_to_utc, parse_date
from mlx_email.mail.headers import decode_header, decode_text, message_ids, parse_addresses
from mlx_email.mail.html import html_to_text
from mlx_email.mail.marks import all_marks, gmail_labels
from mlx_email.mail.message import MAX_BYTES, Era, Mark, Message, NotMail

_TELLING = frozenset({"from", "to", "cc", "date", "subject", "message-id", "received", "x-from"})


def read_message(
    data: bytes, *, owner: str = "", folder: str = "", path: str = "", marks: tuple[Mark, ...] = ()
) -> Message:
    """One e-mail from its bytes.

    The headers are the first of their name. The body is the text of all inline text/plain parts, or, where there is
    none, of the HTML ones; attachments are left out, an attached message is kept below a marker that `quotes` knows.
    A message without an id gets one made of its content, so that the same bytes give the same id. The marks are those
    given, which the place of the message tells, and those that mail programs wrote into its headers.

    Raises NotMail, with a reason that holds no mail text, for bytes that are not one message, and for a message that
    its program deleted and only left in the file.

    >>> read_message(b"From: Ann <ann@x.org>\\r\\nSubject: Hi\\r\\n\\r\\nLunch?\\nAnn").body
    'Lunch?\\nAnn'
    """
    if not data.strip():
        raise NotMail("empty file")
    if len(data) > MAX_BYTES:
        raise NotMail(f"larger than {MAX_BYTES // 2**20} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's remarks on broken mail; it is read as well as can be
            parsed = message_from_bytes(data, policy=policy.compat32)
            headers = _first_headers(parsed)
            if not _TELLING & headers.keys():
                raise NotMail("no mail header")
            body = _body_text(parsed)
    except RecursionError:
        raise NotMail("parts nested too deeply") from None
    except NotMail:
        raise
    except Exception as error:  # the stdlib's parser has raised AttributeError, IndexError, TypeError on hostile mail
        raise NotMail(f"the parser failed ({type(error).__name__})") from None

    sender_pairs = parse_addresses(headers.get("from", ""))[:1]
    x_sender = parse_addresses(headers.get("x-from", ""))[:1]
    to, cc = parse_addresses(headers.get("to", "")), parse_addresses(headers.get("cc", ""))
    x_recipients = parse_addresses(headers.get("x-to", "")) + parse_addresses(headers.get("x-cc", ""))
    reply_to = parse_addresses(headers.get("reply-to", ""))
    era = _era(headers.get("x-filename", ""))
    date = parse_date(headers.get("date", ""))
    labels = gmail_labels(headers.get("x-gmail-labels", ""))
    return Message(
        owner=owner,
        folder=folder,
        path=path,
        message_id=next(iter(message_ids(headers.get("message-id", ""))), "") or _content_id(data),
        date=houston_to_utc(date) if date is not None and era == "notes" else date,
        sender=next((address for _, address in sender_pairs + x_sender if "@" in address), ""),
        sender_names=_names(sender_pairs + x_sender + reply_to),
        to=_addresses(to),
        cc=_addresses(cc),
        recipient_names=_names(to + cc + x_recipients),
        subject=decode_header(headers.get("subject", "")),
        body=body,
        in_reply_to=next(reversed(message_ids(headers.get("in-reply-to", ""))), None),  # before it: an address
        references=message_ids(headers.get("references", "")),
        reply_to=_addresses(reply_to),
        labels=labels,
        marks=all_marks(headers, labels, marks),
        era=era,
    )


def _first_headers(parsed: Parsed) -> dict[str, str]:
    """Lower-case name -> raw value. Raw, because the stdlib's decoded view can raise and loses 8-bit bytes."""
    headers: dict[str, str] = {}
    for name, value in parsed.raw_items():
        headers.setdefault(name.lower(), str(value))
    return headers


def _content_id(data: bytes) -> str:
    return f"<{sha256(data).hexdigest()[:32]}@no-message-id>"


def _era(filename: str) -> Era:
    lowered = filename.strip().lower()
    return "notes" if lowered.endswith(".nsf") else "outlook" if lowered.endswith(".pst") else "other"


def _addresses(pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(address for _, address in pairs if "@" in address))


def _names(pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    """The display names, and the addresses that are exchange directory names (cn=...)."""
    written = [name for name, _ in pairs] + [address for _, address in pairs if address.startswith("cn=")]
    return tuple(dict.fromkeys(name for name in written if name))


def _body_text(parsed: Parsed) -> str:
    """The text of a message, its parts in order; a stack, not recursion, as parts can be nested hundreds deep."""
    plain: list[str] = []
    html: list[str] = []
    stack: list[Parsed] = [parsed]
    while stack:
        part = stack.pop()
        kind = part.get_content_type()
        if part.is_multipart():
            children = [child for child in part.get_payload() if isinstance(child, Parsed)]
            if kind == "message/rfc822" and children:
                plain.append(_attached_heading(children[0]))
                html.append(plain[-1])
            stack.extend(reversed(children))
        elif part is parsed or not _is_attachment(part):
            if kind == "text/html":
                html.append(html_to_text(_part_text(part)))
            elif part.get_content_maintype() == "text" or (part is parsed and kind.startswith("multipart/")):
                plain.append(_part_text(part))  # a multipart without its boundary is read as the text it is
    texts = plain if any(text.strip() and not text.startswith(ATTACHED) for text in plain) else html
    return texts[0] if len(texts) == 1 else "\n".join(text.strip("\n") for text in texts if text.strip())


ATTACHED = "-----Original Message-----"


def _attached_heading(attached: Parsed) -> str:
    headers = _first_headers(attached)
    lines = [f"{name}: {decode_header(headers.get(name.lower(), ''))}" for name in ("From", "Sent", "To", "Subject")]
    return "\n".join([ATTACHED, *lines, ""])


def _is_attachment(part: Parsed) -> bool:
    disposition = next((str(v) for k, v in part.raw_items() if k.lower() == "content-disposition"), "")
    return disposition.strip().lower().startswith("attachment")


def _part_text(part: Parsed) -> str:
    charset = _charset(part)
    del part["content-type"]  # the stdlib would decode by the charset too, and raises on names that are none
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else str(payload).encode("utf-8", "replace")
    return decode_text(data, charset)


def _charset(part: Parsed) -> str | None:
    """The charset parameter, where the stdlib can read it at all."""
    try:
        charset = part.get_content_charset()
    except Exception:  # RFC 2231 parameters of hostile mail make it raise several kinds
        return None
    return charset if isinstance(charset, str) else None
