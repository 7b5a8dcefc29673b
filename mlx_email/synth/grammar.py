"""From facts to words: the people of a made-up firm, and the subject and body of one message.

Every fact of `rule.Facts` can be read off the result: role and department off the addresses and the signature, the rest
off the body. Used by the mailbox and, with other seeds and other people, by the pre-training of the tiny model.
"""

from dataclasses import dataclass
from random import Random

from mlx_email.synth import words
from mlx_email.synth.rule import Department, Facts

TITLED_STAFF = 0.3  # share of colleagues who sign with a title too: a title alone does not make a boss


@dataclass(frozen=True)
class Person:
    """Somebody who writes or receives mail."""

    name: str
    address: str
    title: str = ""  # under the signature; a boss always has one


@dataclass(frozen=True)
class Owner:
    """Whose mailbox it is, and whom the owner hears from."""

    person: Person
    department: Department
    group: str  # address of the department's list
    bosses: tuple[Person, ...]
    colleagues: tuple[Person, ...]
    customers: tuple[Person, ...]
    projects: tuple[str, ...]  # the owner's; they name the folders too


@dataclass(frozen=True)
class Mail:
    """The text of one received message."""

    sender: Person
    to: Person
    subject: str
    body: str
    project: str
    other: str  # the name of the person whom the body may name


def make_owner(rng: Random, department: Department, taken: set[str]) -> Owner:
    """An owner and the people they hear from; `taken` holds the names in use, so that no two people share one."""
    own_host = f"{department}.{words.COMPANY}.example"
    titles = [title.format(Department=department.title()) for title in words.BOSS_TITLES]
    bosses = tuple(_person(rng, own_host, rng.choice(titles), taken) for _ in range(2))
    colleagues = tuple(_person(rng, own_host, _staff_title(rng), taken) for _ in range(12))
    customers = tuple(_person(rng, f"{rng.choice(words.COMPANIES)}.example", "", taken) for _ in range(25))
    return Owner(
        person=_person(rng, own_host, "", taken),
        department=department,
        group=f"everybody@{own_host}",
        bosses=bosses,
        colleagues=colleagues,
        customers=customers,
        projects=tuple(rng.sample(words.PROJECTS, 8)),
    )


def write_mail(rng: Random, owner: Owner, facts: Facts) -> Mail:
    """One message to `owner` that says `facts`, about 25 to 60 words."""
    sender = _sender(rng, owner, facts)
    other = rng.choice([person for person in owner.colleagues if person != sender]).name
    slots = _slots(rng, owner, sender, other)
    slots["matter"] = slots["system"] if facts.role == "automated" else slots["project"]
    subjects = words.KIND_SUBJECTS[facts.kind]
    if facts.role in ("boss", "colleague", "customer") and rng.random() < 0.7:
        subjects = words.SUBJECTS
    subject = rng.choice(subjects).format_map(slots)
    lines = _machine_lines(rng, facts) if facts.role in words.FOOTERS else _human_lines(rng, facts, sender)
    body = "\n".join(line.format_map(slots) for line in lines if line)
    to = Person("Everybody", owner.group) if facts.to_group else owner.person
    return Mail(sender, to, _upper_first(subject), body, slots["project"], other)


def _human_lines(rng: Random, facts: Facts, sender: Person) -> list[str]:
    core = words.CORE[facts.kind]
    if facts.kind == "information" and facts.role == "customer":
        core = words.CUSTOMER_INFORMATION
    handler = {"you": words.YOU, "other": words.OTHER, "none": words.NOBODY}[facts.handler]
    urgency = {"now": words.NOW, "later": words.LATER, "none": words.TIMELESS}[facts.urgency]
    said = [rng.choice(core), rng.choice(handler), rng.choice(urgency)]
    if facts.role == "customer":
        said.append(rng.choice(words.CUSTOMER_LINES))
    first, rest = said[0], said[1:]
    rng.shuffle(rest)
    rest.insert(rng.choice([0, 0, 1]), first)  # mostly the matter comes first
    greeting = rng.choice(words.GROUP_GREETINGS if facts.to_group else words.GREETINGS)
    name = sender.name if sender.title or rng.random() < 0.3 else sender.name.split()[0]
    return [greeting, _sentences(rest), rng.choice(words.SIGN_OFFS), name, sender.title]


def _machine_lines(rng: Random, facts: Facts) -> list[str]:
    core = words.SEMINARS if facts.kind == "invitation" else words.CORE[facts.kind]
    said = [rng.choice(core)]
    if facts.kind == "alarm":
        said.append(rng.choice(words.ALARM_NOW) if facts.urgency == "now" else "")
        said.append(rng.choice(words.RUN_BY if facts.handler == "other" else words.RUN_BY_NOBODY))
    elif facts.urgency == "now":
        said.append(rng.choice(words.LAST_CHANCE))
    return [_sentences(said), rng.choice(words.FOOTERS[facts.role])]


def _sentences(said: list[str]) -> str:
    return " ".join(sentence for sentence in said if sentence)


def _sender(rng: Random, owner: Owner, facts: Facts) -> Person:
    if facts.role == "boss":
        return rng.choice(owner.bosses)
    if facts.role == "colleague":
        return rng.choice(owner.colleagues)
    if facts.role == "customer":
        return rng.choice(owner.customers)
    if facts.role == "automated":
        local = rng.choice(words.AUTOMATED_LOCALS)
        return Person(f"{local.title()} Service", f"{local}@systems.{words.COMPANY}.example")
    company = rng.choice(words.COMPANIES)
    local = rng.choice(words.NEWSLETTER_LOCALS if facts.role == "newsletter" else words.PROMOTER_LOCALS)
    return Person(f"{company.title()} {local.title()}", f"{local}@{company}.example")


def _slots(rng: Random, owner: Owner, sender: Person, other: str) -> dict[str, str]:
    return {
        "you": owner.person.name.split()[0],
        "other": other,
        # Half of the matters are somebody else's: that it is the owner's project says nothing of who is in charge.
        "project": rng.choice(owner.projects if rng.random() < 0.5 else words.PROJECTS),
        "document": rng.choice(words.DOCUMENTS),
        "goods": rng.choice(words.GOODS),
        "topic": rng.choice(words.TOPICS),
        "system": rng.choice(words.SYSTEMS),
        "place": rng.choice(words.PLACES),
        "month": rng.choice(words.MONTHS),
        "day": rng.choice(words.DAYS),
        "hour": rng.choice(words.HOURS),
        "n": str(rng.randrange(3, 99)),
        "amount": f"${rng.randrange(2, 98)},{rng.randrange(10):d}00",
        "ref": f"{rng.choice('ABCDEFGHKLMN')}{rng.randrange(10, 100)}-{rng.randrange(10, 100)}",
        "sender_company": sender.address.split("@")[1].split(".")[0].title(),
    }


def _person(rng: Random, host: str, title: str, taken: set[str]) -> Person:
    while (name := f"{rng.choice(words.FIRST)} {rng.choice(words.LAST)}") in taken:
        pass
    taken.add(name)
    return Person(name, f"{name.lower().replace(' ', '.')}@{host}", title)


def _staff_title(rng: Random) -> str:
    return rng.choice(words.STAFF_TITLES) if rng.random() < TITLED_STAFF else ""


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]
