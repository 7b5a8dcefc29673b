"""What programs wrote into a message's headers: marks, labels, where the answers go."""

import pytest

from mlx_email.mail.message import Message, NotMail
from mlx_email.mail.names import folder_key
from mlx_email.mail.read import read_message


def read(headers: str, marks=()) -> Message:
    return read_message(f"From: bob@y.org\n{headers}\n\nhi".encode(), marks=marks)


@pytest.mark.parametrize(
    ("headers", "marks"),
    [
        ("Subject: x", ()),
        ("Status: RO", ()),
        ("Status: R", ()),
        ("Status: O", ("unseen",)),
        ("Status:", ("unseen",)),
        ("Status: ro", ()),
        ("Status: RO\nX-Status: AFDT", ("answered", "draft", "flagged", "trashed")),
        ("X-Status: F", ("flagged", "unseen")),
        ("X-Status: A\nStatus: O", ("answered", "unseen")),
        ("X-Mozilla-Status: 0000", ("unseen",)),
        ("X-Mozilla-Status: 0001", ()),
        ("X-Mozilla-Status: 1007", ("answered", "flagged", "forwarded")),
        ("X-Mozilla-Status: 1006", ("answered", "flagged", "forwarded", "unseen")),
        ("X-Mozilla-Status: 0010", ("unseen",)),
        ("X-Mozilla-Status: seen", ()),
        ("X-Mozilla-Status: 0xffffffffffff", ()),
        ("X-Mozilla-Status: -1", ()),
        ("X-Mozilla-Status: 0000\nStatus: RO", ()),
        ("X-Gmail-Labels: Oak,Starred,Unread,Drafts", ("draft", "flagged", "unseen")),
        ("X-Gmail-Labels: Oak,Unread mail", ()),
    ],
    ids=str,
)
def test_marks_of_the_headers(headers, marks):
    assert read(headers).marks == marks


@pytest.mark.parametrize("bits", ["0008", "0009", "1009", "ffff"])
def test_what_thunderbird_deleted_is_no_mail(bits):
    with pytest.raises(NotMail, match=r"^deleted from its folder, not yet compacted$"):
        read(f"X-Mozilla-Status: {bits}")


def test_marks_given_and_found_are_sorted_and_each_once():
    assert read("Status: RO\nX-Status: FA", ("trashed", "flagged")).marks == ("answered", "flagged", "trashed")
    assert read("Status: RO", ("unseen",)).marks == ("unseen",)


@pytest.mark.parametrize(
    ("language", "starred", "drafts", "unread"),
    [
        ("en", "Starred", "Drafts", "Unread"),
        ("de", "Markiert", "Entwürfe", "Ungelesen"),
        ("fr", "Suivis", "Brouillons", "Non lus"),
        ("es", "Destacados", "Borradores", "No leídos"),
        ("it", "Speciali", "Bozze", "Da leggere"),
        ("pt", "Com estrela", "Rascunhos", "Não lidas"),
        ("nl", "Met ster", "Concepten", "Ongelezen"),
    ],
)
def test_gmails_own_labels_in_seven_languages(language, starred, drafts, unread):
    for label, mark in ((starred, "flagged"), (drafts, "draft"), (unread, "unseen")):
        message = read(f"X-Gmail-Labels: Oak,{label}")
        assert message.labels == ("Oak", label)
        assert message.marks == (mark,)


@pytest.mark.parametrize(
    ("header", "labels"),
    [
        ("Inbox,Opened,Category Personal", ("Inbox", "Opened", "Category Personal")),
        ("=?UTF-8?Q?Gesendet,Entw=C3=BCrfe?=", ("Gesendet", "Entwürfe")),
        ("=?UTF-8?Q?Kategorie:_=22Neuigkeiten=22,Wichtig?=", ('Kategorie: "Neuigkeiten"', "Wichtig")),
        ('=?UTF-8?Q?Messages_archiv=C3=A9s,Cat=C3=A9gorie:_pers?=\n =?UTF-8?Q?onnels,"Oak,_Elm"?=',
         ("Messages archivés", "Catégorie: personnels", "Oak, Elm")),
        ("=?UTF-8?B?T2FrLEVsbQ==?=", ("Oak", "Elm")),
        ("Oak,\n Elm/Ash", ("Oak", "Elm/Ash")),
        ('"Oak, old",Elm', ("Oak, old", "Elm")),
        ('"Oak ""the old""",Elm', ('Oak "the old"', "Elm")),
        ('"Oak, never closed', ("Oak, never closed",)),
        (",,Oak,,Oak, ,", ("Oak",)),
        ("", ()),
    ],
    ids=["plain", "encoded", "quotes inside", "encoded, folded, with a comma", "base64", "folded", "quoted",
         "quoted quotes", "quote never closed", "twice and empty", "none"],
)  # fmt: skip
def test_gmail_labels(header, labels):
    assert read(f"X-Gmail-Labels: {header}").labels == labels


def test_many_labels_are_cut():
    assert len(read("X-Gmail-Labels: " + ",".join(map(str, range(5000)))).labels) == 1000
    assert read("X-Gmail-Labels: " + "a" * 200_000).labels == ("a" * 200_000,)


def test_where_answers_go():
    assert read("Reply-To: Oak List <Oak@lists.org>, elm@lists.org").reply_to == ("oak@lists.org", "elm@lists.org")
    assert read("Subject: x").reply_to == ()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Sent Items", "sent_items"),
        ("_sent_mail", "sent_mail"),
        ("Gesendete Objekte", "gesendete_objekte"),
        ("Éléments envoyés", "elements_envoyes"),
        ("E\u0301le\u0301ments envoye\u0301s", "elements_envoyes"),  # as macOS writes names
        ("GELÖSCHTE ELEMENTE", "geloschte_elemente"),
        ("Straße", "strasse"),
        ("[Gmail]", "gmail"),
        ("受信トレイ", "受信トレイ"),
        ("...", ""),
    ],
)
def test_folder_keys(name, key):
    assert folder_key(name) == key
