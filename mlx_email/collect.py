"""The labelled table of a run: linked where the mail is prepared already, else made from it."""

import tempfile
from pathlib import Path

import msgspec

from mlx_email import files
from mlx_email.config import Config
from mlx_email.errors import DataError
from mlx_email.labels.prepare import COUNTS, FEATURES, REJECTED, SENDERS, advice, prepare
from mlx_email.labels.workers import default_count
from mlx_email.progress import Progress
from mlx_email.sealed import seal
from mlx_email.synth.mailbox import write_mailbox
from mlx_email.train import run as runs

RULE = "rule.jsonl"  # of the embedded mailbox: what its owners would do without a slip


def collect(mail: Path | None, data: Path, config: Config, progress: Progress) -> None:
    """Put the labelled table into a run's data folder: linked where it is prepared, else made here; and a manifest."""
    _collect(mail, data, config, progress)
    seal(data)


def _collect(mail: Path | None, data: Path, config: Config, progress: Progress) -> None:
    if mail is not None:
        prepared = mail.parent if mail.name == FEATURES else mail
        if (prepared / FEATURES).is_file():
            adopt(prepared, data)
            return
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=data) as name:
        scratch = Path(name)
        if mail is None:
            with progress.phase("wrote the embedded mailbox"):
                box = write_mailbox(scratch / "mailbox", **msgspec.structs.asdict(config.synthetic))
            runs.link(box.rule_file, data / RULE)
            mail = box.path
        with progress.reading() as advance:
            prepared = prepare([mail], scratch / "table", count=default_count(), progress=advance)
        if warning := advice(prepared):
            progress.note(f"warning: {warning} to mlx-email prepare")
        adopt(scratch / "table", data)


def adopt(prepared: Path, data: Path) -> None:
    """Link what a run needs of a prepared folder, or of another run's data, and what says how it came about."""
    for name in (FEATURES, SENDERS):
        if not (prepared / name).is_file():
            raise DataError(f"{prepared} has no {name}: run mlx-email prepare again")
        runs.link(prepared / name, data / name)
    for name in (COUNTS, REJECTED, RULE):
        if (prepared / name).is_file():
            runs.link(prepared / name, data / name)
