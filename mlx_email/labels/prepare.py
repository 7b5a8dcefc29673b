"""Mail to labelled tables: the steps in order, each a function of its own that can be called alone.

    sources -> messages -> spool                                    pass 1, a chunk of files at a time
    for each owner: unique -> dates -> owner -> actions -> history -> split -> shard     pass 2, an owner at a time
    shards -> tables

Both passes run on several cores. What they have done lies in a work folder beside the tables (`.prepare-NAME`), so that
a preparation that was killed goes on where it was; the bytes of the tables depend on the mail alone.
"""

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlx_email import files
from mlx_email.errors import DataError, MlxEmailError, UserError
from mlx_email.labels.duplicates import Mail, unique
from mlx_email.labels.letters import Letter, letter
from mlx_email.labels.mailbox import label_owner
from mlx_email.labels.people import Standing
from mlx_email.labels.redact import Redactor
from mlx_email.labels.spool import Done, Range, Spool
from mlx_email.labels.tables import read_shard, table_writer, write_people, write_shard
from mlx_email.labels.workers import Run, workers
from mlx_email.mail.message import NotMail
from mlx_email.mail.read import read_message
from mlx_email.mail.sources import HINT, Format, RawMail, Refused, Survey, read_source, survey
from mlx_email.sealed import seal

MESSAGES, FEATURES, SENDERS = "messages.parquet", "features.parquet", "people.parquet"
REJECTED, COUNTS = "rejected.jsonl", "prepare.json"
WORK, JOB = ".prepare-", "job.json"

CHUNK_FILES, CHUNK_BYTES = 1000, 16 * 1024 * 1024  # a chunk ends when either is reached
SMALL = 16 * 1024 * 1024  # bytes of mail below which starting workers costs more than they bring

Advance = Callable[[str, int, int], object]  # what is done ("read": bytes, "label": messages), how many more, of all


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the tables besides the mail."""

    format: Format | None = None  # of the sources; None: detected
    owner: tuple[str, ...] = ()  # the addresses of the one owner; () : inferred
    redact: bool = False


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What `prepare` found: what `prepare.json` holds. files = messages + not_mail + duplicates + rejected."""

    files: int = 0  # for an mbox, its messages
    rejected: dict[str, int] = {}  # reason -> files
    duplicates: int = 0  # files that are copies of a message counted elsewhere
    not_mail: int = 0  # unique drafts, calendar entries, contacts and tasks: in no table
    messages: int = 0  # unique: rows of messages.parquet
    owners: int = 0
    addresses: list[str] = []  # of the owner, where there is one; not told of a redacted mailbox
    sent: int = 0  # unique messages by an owner
    received: int = 0  # unique messages that someone sent to an owner
    undated: int = 0  # received, but without a usable date: in messages.parquet only
    repeated: int = 0  # nearly the same as a message of an earlier split: in messages.parquet only
    labelled: int = 0  # rows of features.parquet
    actions: dict[str, int] = {}
    label_quality: dict[str, int] = {}
    splits: dict[str, int] = {}
    straddling: dict[str, int] = {}  # of the labelled: in a thread that began in an earlier split


class Shard(msgspec.Struct, frozen=True):
    """What was found of one owner, beside the rows."""

    user: str
    people: dict[str, Standing]
    counts: list[tuple[str, str, int]]
    size: int  # bytes of the rows: fewer on disk, and the shard is not whole
    addresses: list[str] = []  # the owner's


def prepare(
    sources: Sequence[Path],
    out: Path,
    options: Options = Options(),  # noqa: B008 - frozen
    *,
    count: int = 1,
    progress: Advance | None = None,
) -> Prepared:
    """Read the sources and write messages.parquet, features.parquet, people.parquet, rejected.jsonl and prepare.json,
    and a manifest of them.

    `count` workers read and label. `out` appears only when complete, with files that only their owner can read; the
    same mail gives the same bytes, whatever `count` and however often it was interrupted. Raises DataError where a
    source is no mail source or holds no mail that can be labelled, UserError where `out` exists and is not empty, lies
    in a source, or cannot be made, MlxEmailError where the disk is full.
    """
    _check(sources, out, options)
    advance = progress or _silent
    surveys = [survey(source, options.format) for source in sources]
    work = _work_folder(out)
    with files.locked(work):
        try:
            _begin(work, surveys, options)
            with workers(count if sum(s.size for s in surveys) > SMALL else 1) as run:
                chunks, shards = _read_and_label(surveys, work, options, run, advance)
            prepared = _counted(chunks, shards)
            if not prepared.labelled:
                raise DataError(f"{', '.join(map(str, sources))}: {_why_nothing(prepared)}")
            with files.publish(out) as folder:
                _write_tables(folder, work, shards)
                _write_rejected(folder / REJECTED, chunks, redact=options.redact)
                files.write_json(folder / COUNTS, msgspec.to_builtins(prepared))
                seal(folder)
        except UserError:
            shutil.rmtree(work, ignore_errors=True)  # nothing that could be gone on with
            raise
        except OSError as error:  # a full disk; what cannot be read of a source is no OSError any more
            raise MlxEmailError(
                f"cannot write {error.filename or out}: {error.strerror or error} (what is done is kept in {work}; the "
                "same command goes on from there)"
            ) from error
        shutil.rmtree(work, ignore_errors=True)
    return prepared


def _read_and_label(
    surveys: Sequence[Survey], work: Path, options: Options, run: Run, advance: Advance
) -> tuple[list[Done], list[Shard]]:
    chunks = _read_all(surveys, work, run, advance)
    owners = _by_owner(chunks)
    if options.owner and len(owners) > 1:
        raise UserError(f"--owner names one person, but the sources hold the mailboxes of {len(owners)}: leave it out")
    return chunks, _label_all(owners, work, options, run, advance)


def _silent(what: str, more: int, total: int) -> None:
    """Progress that nobody watches."""


def _check(sources: Sequence[Path], out: Path, options: Options) -> None:
    if not sources:
        raise DataError(f"no mail source: {HINT}")
    for address in options.owner:
        if "@" not in address:
            raise UserError(f"--owner {address!r} is not an address: give one of yours, as me@example.com")
    for source in sources:
        if not source.exists():
            raise DataError(f"{source} does not exist: {HINT}")
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{out} lies in the mail source {source}: name a folder outside it")


def _work_folder(out: Path) -> Path:
    """Where the job's work lies; UserError where the tables could not be written beside it."""
    files.check_new(out)
    try:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return out.resolve().with_name(f"{WORK}{out.resolve().name}")


def _begin(work: Path, surveys: Sequence[Survey], options: Options) -> None:
    """Keep what an earlier try at the very same job has left in `work`; remove all else."""
    job = json.dumps(
        {
            "sources": [[str(survey.source.resolve()), survey.fingerprint] for survey in surveys],
            "options": msgspec.to_builtins(options),
            "code": _code(),
        },
        indent=2,
    )
    if not (work / JOB).is_file() or (work / JOB).read_text() != job:
        for left in work.iterdir():
            if left.name != files.LOCK:
                left.unlink()
        files.write(work / JOB, job)


def _code() -> str:
    """A digest of the code that decides what a table holds: another version starts afresh."""
    code = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted([*package.glob("mail/**/*.py"), *package.glob("labels/**/*.py")]):
        code.update(path.read_bytes())
    return code.hexdigest()


# --- pass 1: files to the spool ---------------------------------------------------------------------------------------


def _read_all(surveys: Sequence[Survey], work: Path, run: Run, advance: Advance) -> list[Done]:
    """Every file of the sources into the spool, or into a chunk's list of the rejected."""
    spool, total = Spool(work), sum(survey.size for survey in surveys)
    known: dict[int, Done] = {}  # chunks of an earlier try

    def missing() -> Iterator[tuple[Path, int, list[RawMail | Refused]]]:
        for number, items in enumerate(_chunks(item for each in surveys for item in read_source(each.source, each))):
            done = spool.done(number)
            if done is None:
                yield work, number, items
            else:
                known[number] = done
                advance("read", done.size, total)

    made: list[Done] = []
    for done in run(read_chunk, missing()):
        made.append(done)
        advance("read", done.size, total)
    fresh = iter(made)  # in order, as the others were left out
    return [known.get(number) or next(fresh) for number in range(len(known) + len(made))]


def _chunks(items: Iterable[RawMail | Refused]) -> Iterator[list[RawMail | Refused]]:
    chunk: list[RawMail | Refused] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += _size(item)
        if len(chunk) >= CHUNK_FILES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(item: RawMail | Refused) -> int:
    return len(item.data) if isinstance(item, RawMail) else item.size


def read_chunk(work: Path, number: int, items: Sequence[RawMail | Refused]) -> Done:
    """Parse some files into a chunk of the spool."""
    letters: list[Letter] = []
    rejected: list[tuple[str, str]] = []
    for item in items:
        if isinstance(item, Refused):
            rejected.append((item.path, item.reason))
            continue
        try:
            message = read_message(item.data, owner=item.owner, folder=item.folder, path=item.path, marks=item.marks)
        except NotMail as error:
            rejected.append((f"{item.owner}/{item.path}" if item.owner else item.path, str(error)))
        else:
            letters.append(letter(message))
    return Spool(work).write(number, letters, files=len(items), size=sum(map(_size, items)), rejected=rejected)


def _by_owner(chunks: Sequence[Done]) -> dict[str, list[tuple[int, Range]]]:
    owners: dict[str, list[tuple[int, Range]]] = {}
    for number, chunk in enumerate(chunks):
        for owner, part in chunk.owners.items():
            owners.setdefault(owner, []).append((number, part))
    return dict(sorted(owners.items()))


# --- pass 2: the spool to shards --------------------------------------------------------------------------------------


def _label_all(
    owners: Mapping[str, list[tuple[int, Range]]], work: Path, options: Options, run: Run, advance: Advance
) -> list[Shard]:
    """Label one owner after another, the largest first so that no core is left with it alone at the end."""
    sizes = {owner: sum(part.letters for _, part in parts) for owner, parts in owners.items()}
    numbers = {owner: number for number, owner in enumerate(owners)}
    order = sorted(owners, key=lambda owner: (-sizes[owner], owner))
    tasks = [(work, numbers[owner], owner, owners[owner], options) for owner in order]
    found: dict[int, Shard] = {}
    for owner, shard in zip(order, run(label_shard, tasks), strict=True):
        found[numbers[owner]] = shard
        advance("label", sizes[owner], sum(sizes.values()))
    return [found[number] for number in range(len(owners))]


def label_shard(work: Path, number: int, name: str, parts: list[tuple[int, Range]], options: Options) -> Shard:
    """Label one owner's mail and write its rows; what an earlier try has written is taken as it is."""
    path, summary = work / f"{number:06d}.rows", work / f"{number:06d}.shard"
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        shard = msgspec.msgpack.decode(summary.read_bytes(), type=Shard)
        if path.stat().st_size == shard.size:
            return shard
    spool = Spool(work)

    def body_of(mail: Mail) -> str:
        return spool.body(mail.place) if mail.place else mail.message.body

    letters = list(spool.letters(parts))
    mails = unique(letters)
    labelled = label_owner(mails, name=name, addresses=options.owner, body_of=body_of)
    user, people = labelled.user, labelled.people
    rows: Iterable[dict[str, Any]] = labelled.rows(body_of)
    if options.redact:
        redactor = Redactor(number + 1, _names(letters))
        user = redactor.owner
        rows = map(redactor.redact_row, rows)
    write_shard(path, rows)
    if options.redact:  # after the rows, whose placeholders are numbered in the order of time
        people = {redactor.redact_address(sender): standing for sender, standing in people.items()}
    counts = labelled.counts()
    counts["not_mail", ""] = len(mails) - len(labelled.mails)
    counts["duplicates", ""] = sum(mail.copies - 1 for mail in mails)
    shard = Shard(
        user=user,
        people=people,
        counts=[(*key, value) for key, value in counts.items()],
        size=path.stat().st_size,
        addresses=[] if options.redact else sorted(labelled.owner.addresses),
    )
    files.write(summary, msgspec.msgpack.encode(shard))
    return shard


def _names(letters: Sequence[Letter]) -> set[str]:
    """Everyone's names that the headers of a mailbox give, those of all copies."""
    return {name for each in letters for name in (*each.message.sender_names, *each.message.recipient_names)}


def _counted(chunks: Sequence[Done], shards: Sequence[Shard]) -> Prepared:
    """The counts of the reading and of all owners together."""
    reasons = Counter(reason for chunk in chunks for _, reason in chunk.rejected)
    total: dict[str, Any] = {"files": sum(chunk.files for chunk in chunks), "rejected": reasons}
    if len(shards) == 1:
        total["addresses"] = shards[0].addresses
    for shard in shards:
        for name, kind, value in shard.counts:
            if kind:
                total.setdefault(name, Counter())[kind] += value
            else:
                total[name] = total.get(name, 0) + value
    return msgspec.convert({name: _sorted(value) for name, value in total.items()}, Prepared)


def _sorted(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, Counter) else value


def _why_nothing(prepared: Prepared) -> str:
    if prepared.files == sum(prepared.rejected.values()):
        reason = max(prepared.rejected, key=lambda name: prepared.rejected[name], default="no files")
        return f"none of {prepared.files} files is a message ({reason}): {HINT}"
    if not prepared.received:
        return f"all {prepared.messages} messages are the owner's own: add the mail that was received, or give --owner"
    return f"{prepared.received} received messages, none with a usable date"


def advice(prepared: Prepared) -> str:
    """What the user should know of a preparation that went well but cannot be right; "" where there is nothing."""
    if prepared.sent:
        return ""
    who = f"{', '.join(prepared.addresses)} wrote nothing of it" if prepared.addresses else "whose it is cannot be told"
    return f"no mail of the owner's in {prepared.messages} messages ({who}), so no reply is seen: give --owner ADDRESS"


# --- the tables -------------------------------------------------------------------------------------------------------


def _write_tables(folder: Path, work: Path, shards: Sequence[Shard]) -> None:
    with table_writer(folder / MESSAGES) as messages, table_writer(folder / FEATURES) as features:
        for number in range(len(shards)):
            for batch in read_shard(work / f"{number:06d}.rows"):
                messages.add(batch)
                features.add(batch.filter(batch["split"].is_valid()))
    write_people(
        folder / SENDERS,
        {(shard.user, sender): standing for shard in shards for sender, standing in shard.people.items()},
    )


def _write_rejected(path: Path, chunks: Sequence[Done], *, redact: bool) -> None:
    with files.open_private(path) as file:
        entries = [entry for chunk in chunks for entry in chunk.rejected]
        for number, (name, reason) in enumerate(entries, 1):
            shown = f"rejected-{number}" if redact else name  # a file may be called by a subject, its folder by a name
            file.write((json.dumps({"path": shown, "reason": reason}, ensure_ascii=False) + "\n").encode())
