"""The names of folders, in the languages and programs that name them: one form to compare, and the sets of known ones.

Languages: English, German, French, Spanish, Italian, Portuguese, Dutch; programs: Gmail, Outlook, Apple Mail,
Thunderbird, Lotus Notes. Names are written as `folder_key` writes them.
Left out: names that are as likely a person's own folder (`Werbung`, `Concept`), and Notes' and Outlook's calendars in
other languages than English.
"""

import re
import unicodedata
from base64 import b64decode
from functools import lru_cache

INBOX = frozenset(
    "inbox notes_inbox posteingang boite_de_reception bandeja_de_entrada recibidos posta_in_arrivo in_arrivo"
    " caixa_de_entrada postvak_in".split()
)
SENT = frozenset(
    "sent sent_mail sent_items sent_messages gesendet gesendete_objekte gesendete_elemente gesendete_nachrichten"
    " gesendete_e_mails envoye envoyes messages_envoyes elements_envoyes objets_envoyes mails_envoyes"
    " enviado enviados enviadas elementos_enviados mensajes_enviados correo_enviado correos_enviados inviata inviati"
    " posta_inviata elementi_inviati messaggi_inviati itens_enviados mensagens_enviadas e_mails_enviados verzonden"
    " verzonden_items verzonden_berichten verzonden_e_mail".split()
)
TRASH = frozenset(  # private bins (`e_mail_bin`) are no trash; `Bin` is what Gmail says in Britain
    "deleted deleted_items deleted_messages trash bin papierkorb geloscht geloschte_objekte geloschte_elemente"
    " geloschte_nachrichten geloeschte_objekte geloeschte_elemente corbeille elements_supprimes messages_supprimes"
    " papelera elementos_eliminados mensajes_eliminados cestino posta_eliminata elementi_eliminati"
    " messaggi_eliminati lixeira lixo itens_excluidos itens_eliminados mensagens_excluidas prullenbak prullenmand"
    " verwijderde_items verwijderde_berichten".split()
)
DRAFTS = frozenset(
    "draft drafts entwurf entwurfe entwuerfe brouillon brouillons borrador borradores bozza bozze rascunho rascunhos"
    " concepten".split()
)
JUNK = frozenset(
    "junk junk_mail junk_email junk_e_mail spam bulk_mail spam_verdacht spamverdacht unerwunscht"
    " courrier_indesirable indesirables pourriel pourriels correo_no_deseado correo_basura no_deseado"
    " posta_indesiderata indesiderata lixo_eletronico lixo_electronico ongewenst ongewenste_e_mail ongewenste_mail"
    " ongewenste_reclame".split()
)
NOT_MAIL = frozenset("calendar contacts tasks to_do chat chats".split())
VIEWS = frozenset("all_documents discussion_threads".split())  # Notes shows the whole mailbox there

# The folders by which a mailbox is known.
KNOWN_FOLDERS = INBOX | SENT | (TRASH - {"bin"}) | DRAFTS | VIEWS | frozenset({"calendar", "contacts"})

_SHIFTED = re.compile(r"&([A-Za-z0-9+,]*)-")


@lru_cache(maxsize=65536)
def folder_key(name: str) -> str:
    """One part of a folder's path in a form to compare: without case, accents and the style of its spaces.

    >>> folder_key("Sent Items"), folder_key("_sent_mail"), folder_key("Éléments envoyés"), folder_key("Входящие")
    ('sent_items', 'sent_mail', 'elements_envoyes', 'входящие')
    """
    plain = unicodedata.normalize("NFKD", name.casefold())
    return re.sub(r"[\W_]+", "_", "".join(c for c in plain if not unicodedata.combining(c))).strip("_")


def decode_utf7(name: str) -> str:
    """A folder's name as IMAP servers write it on disk (RFC 3501, 5.1.3); what is not such a name is left as it is.

    >>> decode_utf7("Entw&APw-rfe"), decode_utf7("Oak &- Elm"), decode_utf7("R&D-x")
    ('Entwürfe', 'Oak & Elm', 'R&D-x')
    """
    return _SHIFTED.sub(_shifted, name) if "&" in name else name


def _shifted(match: re.Match[str]) -> str:
    code = match[1].replace(",", "/")
    if not code:
        return "&"
    try:
        return b64decode(code + "=" * (-len(code) % 4)).decode("utf-16-be")
    except ValueError:  # not base64, or not characters
        return match[0]


def printable(name: str) -> str:
    """A file name that is not UTF-8 arrives with lone surrogates, which no table can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
