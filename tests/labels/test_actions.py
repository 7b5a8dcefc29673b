"""Labels from small hand-made threads: copies, owners, threads, and what was done."""

import random
from datetime import timedelta

import pytest
from msgspec.structs import replace

from mlx_email.labels.actions import Outcome, find_actions, priority_target
from mlx_email.labels.duplicates import mails_of
from mlx_email.labels.folders import folder_kind
from mlx_email.labels.owners import find_owner, is_mail, is_received
from mlx_email.labels.quality import drop_stray_dates, label_quality
from mlx_email.labels.threads import thread_ids


def outcomes(*messages) -> dict[str, Outcome]:
    """Message id -> outcome. Whatever order the files come in, the labels are the same."""
    found = []
    for order in (messages, messages[::-1], random.Random(1).sample(messages, len(messages))):
        mails = mails_of(order)
        by_index = find_actions(mails, find_owner(mails))
        found.append({mails[index].message.message_id: outcome for index, outcome in by_index.items()})
    assert found[0] == found[1] == found[2]
    return found[0]


def one(*messages) -> Outcome:
    """The outcome of the first message."""
    return outcomes(*messages)[messages[0].message_id]


QUOTING = "ok\n-----Original Message-----\nFrom: x\nSent: then\nTo: y\nSubject: z\n\n"


def test_a_reply_and_its_time(letter):
    outcome = one(letter(0), letter(1.5, "sent_items", "RE: Budget"))
    assert (outcome.action, outcome.response_hours) == ("replied", 1.5)


@pytest.mark.parametrize("subject", ["Re: budget", "RE: RE: FW: Budget", "Re[2]: Budget", "AW: Budget", "FW: Budget"])
def test_subjects_that_answer(letter, subject):
    assert one(letter(0), letter(1, "sent", subject)).action == "replied"


@pytest.mark.parametrize(
    ("hours", "subject", "fields"),
    [
        (1, "Budget", {}),  # no mark: a new letter
        (1, "RE: Budgets", {}),  # another subject
        (1, "RE: Budget", {"to": ("cy@y.org",)}),  # not to the sender, and nothing is forwarded
        (30 * 24 + 1, "RE: Budget", {}),  # too late
        (-0.1, "RE: Budget", {}),  # before it came
        (None, "RE: Budget", {}),  # at no known time
    ],
)
def test_what_is_no_reply(letter, hours, subject, fields):
    assert one(letter(0), letter(hours, "sent", subject, **fields)).action == "archived"


def test_empty_subjects_match_nothing(letter):
    assert one(letter(0, subject=""), letter(1, "sent", "RE: ")).action == "archived"


def test_clocks_may_differ_by_two_minutes(letter):
    outcome = one(letter(0), letter(-119 / 3600, "sent", "RE: Budget"))
    assert (outcome.action, outcome.response_hours) == ("replied", 0.0)
    assert one(letter(0), letter(-121 / 3600, "sent", "RE: Budget")).action == "archived"


@pytest.mark.parametrize(
    "fields",
    [
        {"to": ("cy@y.org", "bob@y.org")},  # reply to all
        {"to": ("cy@y.org",), "cc": ("bob@y.org",)},
        {"to": ("bob.roe@home.org",), "recipient_names": ("Roe, Bob R.",)},  # the same name at another address
        {"to": (), "recipient_names": ("cn=broe",)},
    ],
)
def test_the_sender_is_found_among_the_recipients(letter, fields):
    asked = letter(0, sender_names=("Bob Roe/HOU/Y@Y", "cn=broe"))
    assert one(asked, letter(1, "sent", "RE: Budget", **fields)).action == "replied"


def test_a_reply_by_another_person_is_not_the_owners(letter):
    theirs = letter(1, "inbox", "RE: Budget", sender="cy@y.org", to=("bob@y.org", "ann@x.org"))
    assert one(letter(0), theirs, letter(2, "sent", "Hello")).action == "archived"


def test_a_forward(letter):
    outcome = one(letter(0), letter(1, "sent", "FW: Budget", to=("cy@y.org",)))
    assert (outcome.action, outcome.response_hours) == ("forwarded", None)


def test_a_notes_forward_has_no_mark_in_its_subject(letter):
    body = "see this\n----- Forwarded by Ann Low on 01/05/2026\n10:00 AM -----\nletter 1"
    assert one(letter(0), letter(1, "sent", "Budget", to=("cy@y.org",), body=body)).action == "forwarded"


@pytest.mark.parametrize("folder", ["deleted_items", "Deleted Items/old", "Trash"])
def test_deleted(letter, folder):
    assert one(letter(0, folder)).action == "deleted"


@pytest.mark.parametrize("folder", ["junk_e_mail", "e_mail_bin", "all_documents", "projects/oak"])
def test_other_folders_are_the_archive(letter, folder):
    assert one(letter(0, folder)).action == "archived"


def test_precedence(letter):
    asked, reply = letter(0, "deleted_items"), letter(5, "sent", "RE: Budget")
    forward = letter(1, "sent", "FW: Budget", to=("cy@y.org",))
    assert one(asked, forward, reply).action == "replied"
    assert one(asked, forward).action == "forwarded"
    assert one(asked).action == "deleted"


def test_the_first_reply_gives_the_time(letter):
    asked = letter(0)
    assert one(asked, letter(2, "sent", "RE: Budget"), letter(9, "sent", "RE: Budget")).response_hours == 2


def test_of_two_letters_the_quoted_one_was_answered(letter):
    first = letter(0, body="Can we raise the budget for oak?")
    second = letter(1, subject="RE: Budget", body="And what about the elm trees?")
    quoting_first = letter(2, "sent", "RE: Budget", body=f"{QUOTING}Can we raise\nthe budget for oak?")
    quoting_none = letter(2, "sent", "RE: Budget", body="yes")
    assert [o.action for o in outcomes(first, second, quoting_first).values()] == ["replied", "archived"]
    assert [o.action for o in outcomes(first, second, quoting_none).values()] == ["archived", "replied"]


def test_of_a_quoted_thread_the_uppermost_letter_was_answered(letter):
    first = letter(0, body="Can we raise the budget for oak?")
    second = letter(1, subject="RE: Budget", body="And what about the elm trees?")
    both = f"{QUOTING}And what about the elm trees?\n{QUOTING}Can we raise the budget for oak?"
    answered = outcomes(first, second, letter(2, "sent", "RE: Budget", body=both))
    assert [outcome.action for outcome in answered.values()] == ["archived", "replied"]


def test_mail_from_oneself_and_sent_mail_are_not_received(letter):
    own = letter(0, "inbox", sender="ann@x.org", to=("ann@x.org",))
    received = letter(0)
    assert list(outcomes(own, received, letter(1, "sent", "Hello"))) == [received.message_id]


@pytest.mark.parametrize("folder", ["calendar", "Contacts", "tasks", "to_do"])
def test_what_is_no_mail_has_no_action(letter, folder):
    assert outcomes(letter(0, folder), letter(1, "sent", "Hello")) == {}


def test_copies_are_one_message_in_several_folders(letter):
    first, second = letter(0, "inbox", body="one\ntwo"), letter(0, "deleted_items", body="one two ")
    (mail,) = mails_of([second, first])
    assert mail.folders == ("deleted_items", "inbox")
    assert mail.copies == 2
    assert mail.message == second  # its path sorts first
    assert one(second, first).action == "deleted"  # moved to the trash


@pytest.mark.parametrize("change", [{"date": None}, {"sender": "cy@y.org"}, {"subject": "B"}, {"body": "other"}])
def test_what_differs_is_no_copy(letter, change):
    assert len(mails_of([letter(0, body="same"), letter(0, **({"body": "same"} | change))])) == 2


def test_an_owner_has_several_addresses_and_an_assistant_is_none_of_them(letter):
    mails = [letter(n, "sent", f"s{n}") for n in range(60)]
    mails += [letter(100 + n, "_sent_mail", f"t{n}", sender="a..low@x.org") for n in range(4)]  # 4 of 65: above 5%
    mails += [letter(200, "sent", "for Ann", sender="assistant@x.org")]
    found = mails_of(mails)
    assert find_owner(found).addresses == {"ann@x.org", "a..low@x.org"}
    assert not any(is_received(mail, find_owner(found)) for mail in found)


def test_an_owner_without_sent_mail(letter):
    assert one(letter(0), letter(1)).action == "archived"


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("sent", "sent"), ("_sent_mail", "sent"), ("Sent Items", "sent"), ("a/sent", "sent"), ("essentials", "filed"),
     ("Deleted Items", "trash"), ("all_documents", "view"), ("calendar/untitled", "not_mail"), ("", "filed")],
)  # fmt: skip
def test_folder_kinds(folder, kind):
    assert folder_kind(folder) == kind


def test_threads_by_subject_rest_and_reference(letter):
    messages = [
        letter(0),
        letter(1, subject="Lunch"),
        letter(2, "sent", "RE: Budget"),
        letter(3, subject="Renamed", in_reply_to="<1@x.org>"),
        letter(24 * 29, subject="FW: Budget"),
        letter(24 * 80, subject="Budget"),  # long after: another budget
        letter(24 * 81, subject=""),
        letter(24 * 81, subject=""),
    ]
    threads = thread_ids(mails_of(messages))
    assert threads[0] == threads[2] == threads[3] == threads[4]
    assert len(set(threads)) == 5


def test_two_peoples_letters_of_one_subject_are_two_threads(letter):
    messages = [
        letter(0, subject="Lunch", body="Shall we eat at the harbour today?"),
        letter(1, subject="Lunch", sender="cy@y.org", body="The canteen is closed until Monday, alas."),
        letter(2, "sent", "RE: Lunch", to=("cy@y.org",)),  # by its people
        letter(3, subject="Lunch"),  # by its people, though another spoke last
        letter(4, "sent", "FW: Lunch", to=("dee@y.org",), body=f"{QUOTING}Shall we eat at the harbour today?"),
        letter(5, subject="RE: Lunch", sender="eve@z.org"),  # nobody known, nothing quoted: the latest
        letter(6, subject="Lunch", sender="flo@z.org"),
    ]
    mails = mails_of(messages)
    threads = thread_ids(mails, find_owner(mails))
    bobs, cys, flos = threads[0], threads[1], threads[6]
    assert threads == [bobs, cys, cys, bobs, bobs, bobs, flos]
    assert len({bobs, cys, flos}) == 3


def test_references_may_go_in_circles(letter):
    first = letter(0, references=("<2@x.org>",), in_reply_to="<1@x.org>")
    second = letter(1, subject="Other", references=("<1@x.org>", "<2@x.org>"))
    assert len(set(thread_ids(mails_of([first, second])))) == 1


def test_priorities_fall_from_quick_replies_to_deletion():
    ordered = [
        Outcome("replied", None, 0.1),
        Outcome("replied", None, 20.0),
        Outcome("replied", None, 700.0),
        Outcome("forwarded"),
        Outcome("archived"),
        Outcome("deleted"),
    ]
    priorities = [priority_target(outcome) for outcome in ordered]
    assert priorities == sorted(set(priorities), reverse=True)
    assert all(0 <= priority <= 1 for priority in priorities)


def test_label_quality(letter):
    end = letter(24 * 100).date

    def quality(hours, action="archived", trash=True, era="outlook", **fields):
        (mail,) = mails_of([letter(hours, era=era, **fields)])
        return label_quality(mail, Outcome(action), trash_exported=trash, export_end=end)

    assert quality(0) == "good"
    assert quality(24 * 71) == "kept_late"
    assert quality(24 * 71, "deleted") == quality(24 * 71, "replied") == "good"
    assert quality(0, era="notes") == quality(0, trash=False) == "no_trash"
    assert quality(0, "deleted", era="notes") == "good"
    assert quality(0, folder="Junk") == "junk"
    assert quality(0, marks=("unseen",)) == "unseen"
    assert quality(0, "deleted", marks=("unseen",)) == "good"


def test_stray_dates_are_dropped(letter):
    """Those after the rest. Whether one before the rest is stray would depend on what comes later."""
    mails = mails_of([letter(hours) for hours in (-24 * 8000, *range(200), 24 * 800, 24 * 8000)])
    dates = [mail.message.date for mail in drop_stray_dates(mails)]
    assert dates[-2:] == [None, None]
    assert None not in dates[:-2]
    assert dates[200] - dates[1] == timedelta(hours=199)


def test_who_writes_again_after_years_keeps_their_dates(letter):
    mails = mails_of([letter(hours) for hours in (*range(5000), *range(24 * 1000, 24 * 1000 + 90, 2))])
    assert drop_stray_dates(mails) == mails


def test_a_notice_of_absence_is_no_answer(letter):
    asked = letter(0)
    away = letter(0.01, "sent", "RE: Budget", in_reply_to=asked.message_id, marks=("automatic",))
    assert one(asked, away).action == "archived"
    assert one(asked, away, letter(5, "sent", "RE: Budget")).response_hours == 5


def test_a_chat_is_no_mail(letter):
    assert not is_mail(mails_of([letter(0, labels=("Chat", "Opened"))])[0])


def test_the_owner_is_found_among_mail_of_many_lists(letter):
    """Without sent folders: 30 letters are for Ann, who writes too; the list's address, to which 40 go, does not."""
    lists = [letter(n, "all", f"l{n}", to=("trees@list.org",), sender=f"p{n}@z.org") for n in range(40)]
    own = [letter(n + 0.5, "all", f"o{n}", sender="ann@x.org", to=(f"p{n}@z.org",)) for n in range(40)]
    received = [letter(n + 0.7, "all", f"r{n}", to=("ann@x.org",), sender=f"q{n}@z.org") for n in range(30)]
    found = find_owner(mails_of([*lists, *own, *received]))
    assert found.addresses == {"ann@x.org"}


def test_a_small_mailbox_with_a_long_rest_keeps_its_dates(letter):
    mails = mails_of([letter(0), letter(24 * 800)])
    assert drop_stray_dates(mails) == mails


def test_a_reply_is_known_by_the_id_it_names(letter):
    """Whatever its subject, its recipient and its time; of two letters of one subject it is the named one's."""
    asked, later = letter(0), letter(1, sender="cy@y.org")
    reply = letter(24 * 40, "sent", "Something else", to=("list@y.org",), in_reply_to=asked.message_id)
    by_reference = letter(2, "sent", "RE: Budget", to=("cy@y.org", "bob@y.org"), references=("<0@x>", asked.message_id))
    assert one(asked, later, reply).response_hours == 24 * 40
    assert one(later, asked, reply).action == "archived"
    assert one(asked, later, by_reference).response_hours == 2
    assert one(later, asked, by_reference).action == "archived"


def test_a_named_forward_is_one_unless_it_goes_to_the_sender(letter):
    asked = letter(0)
    forward = letter(1, "sent", "FW: Budget", to=("cy@y.org",), in_reply_to=asked.message_id)
    assert one(asked, forward).action == "forwarded"
    assert one(asked, replace(forward, to=("bob@y.org",))).action == "replied"


def test_an_id_cannot_name_what_came_later(letter):
    later = letter(5)
    assert one(later, letter(1, "sent", "RE: Budget", in_reply_to=later.message_id)).action == "archived"


def test_going_on_from_ones_own_letter_answers_nobody(letter):
    received = letter(0)
    own = letter(1, "sent", "Budget", to=("cy@y.org",))
    assert one(received, own, letter(2, "sent", "RE: Budget", in_reply_to=own.message_id)).action == "archived"


def test_sending_on_ones_own_letter_is_no_action_on_a_later_one(letter):
    own = letter(0, "sent", "Budget", to=("cy@y.org",), body="These are my figures for the year.")
    received = letter(1, body="Those are the figures of mine.")
    quoted_own = f"{QUOTING}These are my figures for the year."
    assert one(received, own, letter(2, "sent", "FW: Budget", to=("dee@y.org",), body=quoted_own)).action == "archived"
    quoted_his = f"{QUOTING}Those are the figures of mine."
    assert one(received, own, letter(2, "sent", "FW: Budget", to=("dee@y.org",), body=quoted_his)).action == "forwarded"


def test_an_answer_goes_to_where_the_sender_wants_it(letter):
    asked = letter(0, reply_to=("office@z.org",))
    assert one(asked, letter(1, "sent", "RE: Budget", to=("office@z.org",))).action == "replied"


def test_what_the_mail_program_noted_counts_where_no_letter_shows_it(letter):
    assert one(letter(0, marks=("answered",))) == Outcome("replied")
    assert one(letter(0, marks=("forwarded",))) == Outcome("forwarded")
    assert one(letter(0, marks=("trashed",))) == Outcome("deleted", trashed=True)
    assert one(letter(0, marks=("flagged",))) == Outcome("archived")
    found = one(letter(0, marks=("answered",)), letter(3, "sent", "RE: Budget"))
    assert found.response_hours == 3
    assert priority_target(Outcome("archived"), flagged=True) == priority_target(Outcome("replied")) == 0.6


def test_a_draft_is_no_mail_yet(letter):
    asked = letter(0)
    assert one(
        asked, letter(1, "Drafts", "RE: Budget", sender="ann@x.org", to=("bob@y.org",)), letter(2, "sent", "x")
    ) == (Outcome())
    draft = letter(1, "sent", "RE: Budget", marks=("draft",))
    assert not is_mail(mails_of([draft])[0])


def test_gmail_labels_are_the_folders(letter):
    (mail,) = mails_of([letter(0, "All mail Including Spam and Trash", labels=("Inbox", "Work"))])
    assert mail.folders == ("Inbox", "Work")
    assert one(letter(0, "All mail", labels=("Trash",))).action == "deleted"


def test_copies_share_their_marks_but_one_seen_copy_is_enough(letter):
    first = letter(0, marks=("answered", "unseen"))
    second = replace(first, folder="oak", path="oak/1.", marks=("flagged",))
    (mail,) = mails_of([first, second])
    assert mail.marks == ("answered", "flagged")


def test_the_owner_without_sent_folders_is_whom_the_mail_is_for(letter):
    received = [letter(hours, to=("ann@x.org",)) for hours in range(3)]
    reply = letter(5, "inbox", "RE: Budget", sender="ann@x.org", to=("bob@y.org",))
    assert outcomes(*received, reply)[received[2].message_id].action == "replied"
    assert find_owner(mails_of([letter(n, to=(f"p{n}@x.org",)) for n in range(5)])).addresses == frozenset()


def test_given_addresses_are_the_owners(letter):
    mails = mails_of([letter(0), letter(1, "sent", "RE: Budget"), letter(2, sender="ann.low@home.org", subject="x")])
    owner = find_owner(mails, ["Ann.Low@home.org ", "ann@x.org"])
    assert owner.addresses == {"ann.low@home.org", "ann@x.org"}
    assert not is_received(mails[2], owner)
