"""What the names of folders say, in the languages and programs that name them."""

import pytest

from mlx_email.labels.folders import folder_kind

NAMES = {
    "sent": ["Sent", "sent_items", "_sent_mail", "Sent Messages", "[Gmail]/Sent Mail", "Gesendet", "Gesendete Objekte",
             "Gesendete Elemente", "Messages envoyés", "Éléments envoyés", "Envoyés", "Enviados", "Elementos enviados",
             "Posta inviata", "Inviati", "Itens Enviados", "[Gmail]/E-mails enviados", "Verzonden items",
             "Verzonden berichten", "Takeout/Mail/Sent"],
    "trash": ["Trash", "deleted_items", "Deleted Messages", "[Gmail]/Bin", "Papierkorb", "Gelöschte Elemente",
              "Gelöschte Objekte", "Corbeille", "Éléments supprimés", "Papelera", "Elementos eliminados", "Cestino",
              "Posta eliminata", "Lixeira", "Itens Excluídos", "Prullenbak", "Verwijderde items", "Trash/2001"],
    "draft": ["Drafts", "drafts", "Entwürfe", "Brouillons", "Borradores", "Bozze", "Rascunhos", "Concepten"],
    "junk": ["Junk", "Spam", "[Gmail]/Spam", "junk_e_mail", "Junk E-Mail", "Spam-Verdacht", "Courrier indésirable",
             "Correo no deseado", "Posta indesiderata", "Lixo Eletrônico", "Ongewenste e-mail"],
    "not_mail": ["calendar", "contacts", "tasks", "to_do", "Chats", "Chat"],
    "view": ["all_documents", "discussion_threads"],
    "filed": ["", "inbox", "Inbox", "Posteingang", "Boîte de réception", "notes_inbox", "e_mail_bin", "Oak", "archive",
              "Takeout/Mail/All mail Including Spam and Trash", "essentials", "Chatham", "Concept"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_the_kind_of_a_folder(kind, name):
    assert folder_kind(name) == kind


def test_the_first_kind_of_a_path_counts():
    assert folder_kind("Trash/Drafts") == "trash"
    assert folder_kind("all_documents/spam") == "view"
    assert folder_kind("Drafts/Spam") == "draft"
