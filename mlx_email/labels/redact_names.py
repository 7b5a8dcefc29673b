"""The names of people that a mailbox knows, and where they stand in a text.

A text is looked at word by word and every word is looked up; there is no pattern of names, so a thousand of them cost
no more than one. A person is found as "Ann Low", "Ann B. Low", "Low, Ann" (in small letters and in capitals too), and
by one word of the name where it has three letters, begins with a capital and is not an everyday word.
Left out: one word of a name in small letters or of one or two letters, diminutives ("Annie"), and names that the
caller does not give.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

# Names that are everyday words too, and words of mail itself. Alone they are left; in a full name they are a name.
EVERYDAY = frozenset(
    "a able about act adds after all along also am amber and angel any apr april are art aug august autumn award away "
    "bank banks bar barn bay bcc beach begin bell bender best big bill bird bishop black blue bolt bond book both box "
    "branch bridge bright brook brown bull bush but call can care case cases cash cc chance chase chill chilly church "
    "clay close coach coal cook cost cotton could cross dance dawn day dean dear dec december diamond do dollar door "
    "double drew driver duke dusty duty earl early east easy edge end english even every fair faith faithful fax feb "
    "february ferry field fields fine fire first fish fleet flood flower floyd force ford forest forward forwarded "
    "fox frank free french fri friday from frost fund fw fwd garden gas gay gene general german glass gold golden "
    "good goods gore grace grand grant grass grave gray great green grey ground guess guy hack had hall hammer hand "
    "hard harden harmony has haste have hay head heard heart heath hello help high highest hill him his hobby holiday "
    "home hook hope horse house how hunt i ice ii iii in iron it its iv ivy jack jan january jet job join joy jr "
    "judge jul july jun june just justice key keys kid kind king knight lake land lane large last late later law "
    "leader leaf lee let life light lily line link little lock long look lord loud love mail main major man mar march "
    "mark market marks mars marsh mason master max may means meek mercy merry message mid mile miles mill million "
    "mills minor miss mobile mon monday moody moon more must myself name needs new next nice noble nobody north not "
    "notes nov november now oak oct october of office oil old on one only open or order original other our own pack "
    "page paid pair paris park parks part pass pat path pay peace penny pepper person phone pickle pike place plant "
    "please plum pm pond pool poor pope post pound power price pride prince pro proper purple quarter quick race "
    "radio rain ray re read ready real red reed regards regular reply rest result results rice rich ridge ring ripe "
    "rivers road rob rock rocket roll root rose round royal rule rush rust said saint sales salt sand sat saturday "
    "savage scale school sea season second see send senior sent sep sept september set seven shall sharp short should "
    "silver sincerely single six sky sleep small smart smooth snow so solar song sound south spark speed spice spoon "
    "spring square stack stage stamp stand standard star state states station stay steel stick still stock stone "
    "storm story strange stranger street strength stretch strike strong style subject sue suite summer sun sunday "
    "sweet swift table tall team tell ten tender thanks that the them then there these they this three thu thur thurs "
    "thursday tide tiger time times to today toll tool top total tough tower town train tree trees true trust tue "
    "tues tuesday twig two under union upper us vale value victor view vote wade wagon wait walk wall ward warm was "
    "waters wave way we wed wednesday week weeks welcome well west wheel when where white who whole wide wild will "
    "wing winner winter wise wish with wolf wonder wood woods word work world worth would wrote yard year years "
    "yellow yes yet york you young your".split()
)
# A sender with one of these in its name is no person: its words stay, only the whole name is replaced.
_OFFICES = frozenset(
    "accounting account accounts admin administration administrator alert alerts all announcement announcements "
    "association bank board bulletin center centre club committee communications company conference corp corporate "
    "corporation customer daily data department desk digest distribution division dl email employees energy "
    "enterprise events exchange express finance financial foundation global group groups health help helpdesk human "
    "inc info information institute international job journal legal list llc llp ltd mail mailer manager magazine "
    "management market marketing markets media members membership network news newsletter newswire notification "
    "notifications offers office online operations order orders outlook partners payroll postmaster power press "
    "program project promotions recipients registration relations report reports research resources response sales "
    "security server service services shop site staff store street subscription subscriptions support system systems "
    "team tech technology test ticket times today trading training travel undisclosed university update updates user "
    "users webmaster weekly world".split()
)
_TITLES = frozenset("dr esq ii iii iv jr md mr mrs ms phd prof sr".split())

MIN_SINGLE, MIN_CODE = 3, 4  # letters of one word, and of a code (cn=alow) or two names in one, that are a name alone
MAX_WORDS = 4  # of a person's name; what is longer is a company, a list or a sentence

APOSTROPHES = ("'", "\u2019")
WORD = r"(?:[^\W\d_]['\u2019])?[^\W\d_]+"  # O'Brien is one word, Ann-Marie two
_WORD = re.compile(WORD)
_BETWEEN = r"(?:,?[ \t\xa0]{1,3}|[,._'\u2019+-]|%20|,?[ \t]?\n[>| \t]{0,6})"
_NEXT = re.compile(rf"(?:{_BETWEEN}[^\W\d_](?![^\W\d_])\.?)?{_BETWEEN}({WORD})")  # an initial between is skipped
_INITIAL = re.compile(r'[ \t][^\W\d_](?:\.|(?=[ \t]*(?:[;<>"\n()\[\]/]|$)))')  # the B of "Low, Ann B."
_DIGITS = re.compile(r"\d+")
_CODE = re.compile(r"([^\W\d_]+)(\d*)")


class Names(msgspec.Struct, frozen=True):
    """Who is known, in forms that a text's words are looked up in; made by `known_names`. All words in lower case."""

    full: Mapping[str, Sequence[tuple[tuple[str, ...], str]]]  # first word -> the words after it and who, longest first
    single: Mapping[str, str]  # a word -> the person, or the word itself where several have it
    starts: frozenset[str]  # every word with which one of them begins, as it may be written: most words are in none
    codes: Mapping[str, Mapping[str, str]]  # letters of a directory code -> its digits, "" for none -> person


def known_names(names: Iterable[str]) -> Names:
    """The people of names in any form that mail has them in.

    >>> names = known_names(["Low, Ann B. (E-mail)", "Bob Low/HOU/ECT@ECT", "cn=alow", "Price Desk"])
    >>> find_name(names, "ask ann low", 4, 7), find_name(names, "Ann", 0, 3), find_name(names, "Low", 0, 3)
    ((11, 'ann low'), (3, 'ann low'), (3, 'low'))
    """
    full: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    people: dict[str, set[str]] = defaultdict(set)  # a word -> who has it in their name
    codes: dict[str, dict[str, str]] = defaultdict(dict)
    for name in sorted(set(names)):
        if name.lower().startswith("cn="):
            code = _CODE.fullmatch(name[3:].lower())
            if code and len(code[0]) >= MIN_CODE and code[0] not in EVERYDAY:
                codes[code[1]][code[2]] = f"cn={code[0]}"
            continue
        first, last = name_words(name)
        words = (*first, *last)
        if len(words) == 1:
            people[words[0]] |= set() if words[0] in _OFFICES else {words[0]}
        elif words:
            person = f"{words[0]} {words[-1]}"
            is_person = len(words) <= MAX_WORDS and not _OFFICES.intersection(words)
            short = {(words[0], words[-1]), (words[-1], words[0])} if is_person else set()
            for form in {words, (*last, *first)} | short:
                full[form[0]][form[1:]] = person
            for word in words if is_person else ():
                people[word].add(person)
            for fused in {f"{one}{two}".replace("'", "") for one, two in short}:  # AnnLow, lowann
                if len(fused) >= MIN_CODE and fused not in EVERYDAY:
                    codes[fused].setdefault("", person)
    single = {word: _owner(word, who) for word, who in people.items() if len(word) >= MIN_SINGLE and who}
    single = {word: person for word, person in single.items() if word not in EVERYDAY}
    starts = {*full, *single, *codes}
    return Names(
        {first: sorted(forms.items(), key=lambda form: (-len(form[0]), form)) for first, forms in full.items()},
        single,
        frozenset(starts | {word.replace("'", "\u2019") for word in starts}),
        dict(codes),
    )


def _owner(word: str, people: set[str]) -> str:
    """The one person of that word; the word where it is several people's, or nobody's full name is known."""
    whole = people - {word}
    return min(whole) if len(whole) == 1 else word


def name_words(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """First (and middle) names, and last names, without initials and titles; () for what is an address or no name.

    >>> name_words("Van Der Low Jr., Ann B. (E-mail)"), name_words("Ann Low/HOU/ECT@ECT"), name_words("ann@example.com")
    ((('ann',), ('van', 'der', 'low')), (('ann',), ('low',)), ((), ()))
    """
    plain = name.partition("(")[0].partition("/")[0].lower().replace("\u2019", "'")
    before, at, after = plain.partition("@")
    if at and "." in after:
        return (), ()
    last, comma, first = before.partition(",")
    words, rest = _real_words(last), _real_words(first)
    if comma and rest:
        return rest, words
    return words[:-1], words[-1:]


def _real_words(text: str) -> tuple[str, ...]:
    return tuple(word for word in _WORD.findall(text) if len(word) > 1 and word not in _TITLES)


def find_name(names: Names, text: str, start: int, end: int) -> tuple[int, str] | None:
    """(where it ends, who) for the name that begins with the word text[start:end]; None for no name."""
    written = text[start:end]
    word = written.lower().replace("\u2019", "'")
    if word in names.full:
        found = _find_full(names, text, word, written, end)
        if found:
            return found
    if word in names.codes:
        digits = _DIGITS.match(text, end)
        if digits and digits[0] in names.codes[word]:
            return digits.end(), names.codes[word][digits[0]]
        if "" in names.codes[word]:
            return end, names.codes[word][""]
    if word in names.single and not written[0].islower():
        return end, names.single[word]
    return None


def _find_full(names: Names, text: str, word: str, written: str, end: int) -> tuple[int, str] | None:
    longest = len(names.full[word][0][0])
    words, ends, written_words = [], [], [written]
    while len(words) < longest and (following := _NEXT.match(text, ends[-1] if ends else end)):
        words.append(following[1].lower().replace("\u2019", "'"))
        ends.append(following.end())
        written_words.append(following[1])
    for rest, person in names.full[word]:
        count = len(rest)
        if tuple(words[:count]) != rest:
            continue
        # "We will price it" is not about Will Price
        capitals = not any(part[0].islower() for part in written_words[: count + 1])
        if capitals or not EVERYDAY.issuperset((word, *rest)):
            initial = _INITIAL.match(text, ends[count - 1])
            return initial.end() if initial else ends[count - 1], person
    return None
