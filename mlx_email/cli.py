"""The command line: each command calls one function of the package. stdout is the result, stderr the progress."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import click

from mlx_email import __version__, tables
from mlx_email.cli_models import models
from mlx_email.errors import MlxEmailError
from mlx_email.labels.schema import SPLITS
from mlx_email.mail.sources import FORMATS
from mlx_email.progress import Progress
from mlx_email.tracking import TRACKERS

# mlx and mlx-lm are imported inside the commands: --help and a typing error answer at once.

PATH = click.Path(path_type=Path)
EXPORTS = ("requantise", "requantise8", "bf16", "dense", "adapter")  # export.fuse.STRATEGIES


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mlx-email")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Train a private model of what you do with your mail, on your own machine."""


@cli.command()
@click.argument("source", type=PATH, required=False)
@click.option("--config", "config_name", metavar="FILE|NAME", help="A YAML file, or a shipped configuration's name.")
@click.option("--model", help="tiny, smollm2, a folder of an mlx-lm model, or a Hugging Face id.")
@click.option("--out", type=PATH, metavar="RUN", help="The run folder to make.  [default: runs/<date>-<time>]")
@click.option("--stage", "stages", multiple=True, metavar="NAME", help="Train only this stage (repeatable).")
@click.option("--resume", type=PATH, metavar="RUN", help="Go on with a run that was interrupted or killed.")
@click.option("--force", is_flag=True, help="With --resume: other settings too; train again what had others.")
@click.option(
    "--target-accuracy", type=click.FloatRange(0, 1), help="Stop when validation reaches it.  [default: 0.95]"
)
@click.option("--track", multiple=True, type=click.Choice(TRACKERS), help="A tracker to tell too (repeatable).")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change one setting (repeatable).")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json instead of the table.")
def train(
    source: Path | None,
    config_name: str | None,
    model: str | None,
    out: Path | None,
    stages: tuple[str, ...],
    resume: Path | None,
    force: bool,
    target_accuracy: float | None,
    track: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train on SOURCE and test on its later mail.

    SOURCE is a folder that `prepare` wrote, or a mail source. Without it: an embedded synthetic mailbox.

    \b
    Example: mlx-email train prepared --model smollm2 --stage sft
    Example: mlx-email train --resume runs/20260102-101500
    """
    import msgspec

    from mlx_email import config, pipeline

    if target_accuracy is not None:
        overrides = (*overrides, f"target_accuracy={target_accuracy}")
    if resume is not None:
        given = {"SOURCE": source, "--config": config_name, "--model": model, "--out": out, "--stage": stages}
        if extra := [name for name, value in given.items() if value]:
            raise click.UsageError(f"--resume goes on with what was begun: leave out {', '.join(extra)}")
        record = pipeline.resume(resume, overrides, Progress(quiet=as_json), force=force, track=track)
        click.echo(_json(record) if as_json else tables.training(record, resume))
        return
    if force:
        raise click.UsageError("--force goes with --resume: without it a run is made anew")
    if any(override.startswith("model=") for override in overrides):
        raise click.UsageError("--set model=...: use --model, which chooses the model's own configuration too")
    chosen = config.load(config_name or config.for_model(model), overrides)
    if model is not None:
        chosen = msgspec.structs.replace(chosen, model=model)
    run = out or Path("runs", datetime.now().strftime("%Y%m%d-%H%M%S"))
    record = pipeline.train(source, chosen, run, stages, Progress(quiet=as_json), track=track)
    click.echo(_json(record) if as_json else tables.training(record, run))


@cli.command()
@click.argument("sources", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The folder to make.")
@click.option(
    "--format", "source_format", type=click.Choice(FORMATS), help="What the sources are.  [default: detected]"
)
@click.option("--owner", "owners", multiple=True, metavar="ADDRESS", help="An address of yours (repeatable).")
@click.option("--redact", is_flag=True, help="Replace names, addresses and numbers by placeholders.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes.  [default: one a core, up to 8]")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def prepare(
    sources: tuple[Path, ...],
    out: Path,
    source_format: Any,
    owners: tuple[str, ...],
    redact: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Turn mail into labelled tables: messages.parquet and features.parquet in DIR.

    A source is an mbox (Gmail Takeout), a Maildir, a folder of .eml files or of Apple Mail, or the CMU Enron corpus; as
    files, or in a .zip, .tar or .tar.gz. Interrupted, the same command goes on from where it was.

    \b
    Example: mlx-email prepare takeout.zip --out prepared
    """
    import msgspec

    from mlx_email.labels import prepare as preparing
    from mlx_email.labels.workers import default_count

    options = preparing.Options(format=source_format, owner=owners, redact=redact)
    with Progress(quiet=as_json).reading() as advance:
        prepared = preparing.prepare(sources, out, options, count=workers or default_count(), progress=advance)
    if warning := preparing.advice(prepared):
        click.echo(f"warning: {warning}", err=True)
    counts = msgspec.to_builtins(prepared)
    click.echo(_json(counts) if as_json else tables.prepared(counts, out))


@cli.command()
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("--data", type=PATH, metavar="D", help="A prepared folder.  [default: the run's own data]")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--ensemble", is_flag=True, help="What they are worth as one, too.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was measured as JSON.")
def evaluate(runs: tuple[Path, ...], data: Path | None, split: Any, ensemble: bool, as_json: bool) -> None:
    """Measure trained runs, single stages of them (RUN:STAGE), or exported models (with --data), on a split of mail,
    beside what needs no language model, and beside the first of them.

    \b
    Example: mlx-email evaluate runs/20260102-101500 --split validation
    Example: mlx-email evaluate runs/20260102-101500:sft runs/20260102-101500:dpo --ensemble
    Example: mlx-email evaluate my-model --data prepared
    """
    from mlx_email import trained

    measured = trained.evaluate(runs, data, split, Progress(quiet=as_json))
    records, comparisons = [each.record for each in measured], trained.compared(measured)
    ensembles = trained.together(measured) if ensemble else []
    shown = [*map(tables.evaluation, records), *map(tables.comparison, comparisons), *map(tables.ensemble, ensembles)]
    click.echo(_json([*records, *comparisons, *ensembles]) if as_json else "\n\n".join(shown))


@cli.command()
@click.argument("run", type=PATH)
def report(run: Path) -> None:
    """Write RUN/report.html, as `train` does at its end: what the run is worth, and whether it may act alone.

    One file with everything in it, private as the mail is: it shows some senders and subjects.

    \b
    Example: mlx-email report runs/20260102-101500
    """
    from mlx_email import reasons
    from mlx_email import report as reporting

    file = reporting.write(run, reasons.of_run(run))
    if not reporting.drawn():
        click.echo(f"{file}: {reporting.TABLES}", err=True)
    click.echo(file)


@cli.command()
@click.argument("run", type=PATH)
@click.argument("files", nargs=-1)
@click.option("--owner", metavar="NAME", help="Whose mailbox it is, as in the training data, when there are several.")
@click.option("--goal", type=click.FloatRange(0, 1), help="How often it must be right to act alone.  [default: 0.95]")
@click.option("--explain", is_flag=True, help="Also the priority and the reasoning that the model writes.")
@click.option("--text", is_flag=True, help="FILE is the text of a message, without headers.")
@click.option("--subject", default="", help="With --text: its subject.")
@click.option("--from", "sender", default="", metavar="ADDRESS", help="With --text: who sent it.")
@click.option("--watch", type=PATH, metavar="MAILDIR", help="Instead of FILE: the mail of a Maildir, as it arrives.")
@click.option("--interval", type=click.FloatRange(0.01), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--all", "everything", is_flag=True, help="With --watch: the mail that is there already, too.")
@click.option("--once", is_flag=True, help="With --watch: the mail that is there, and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def predict(
    context: click.Context,
    run: Path,
    files: tuple[str, ...],
    owner: str | None,
    goal: float | None,
    explain: bool,
    text: bool,
    subject: str,
    sender: str,
    watch: Path | None,
    interval: float,
    everything: bool,
    once: bool,
    as_json: bool,
) -> None:
    """Say what to do with messages, and how sure that is: a line each, as they are read.

    FILE is an e-mail as it was sent (.eml), or many of them: anything that `prepare` reads. `-` or nothing is stdin, an
    e-mail or an mbox. A line has the action, its confidence, `act` where the run may do it without asking (else `ask`),
    the subject and the file.

    \b
    Example: mlx-email predict runs/20260102-101500 letter.eml
    Example: mlx-email predict runs/20260102-101500 --watch ~/Maildir --json

    \b
    Exit code: 0 all was predicted
               1 some could not be read: each is named on stderr, the rest was predicted
               2 nothing could be read, or the command is wrong
               130 an interrupt ended it: as --watch ends, without --once
    """
    from mlx_email import predict as asking
    from mlx_email import shown

    if watch is None and (everything or once):
        raise click.UsageError("--all and --once go with --watch")
    if watch is not None and (files or text):
        raise click.UsageError("--watch says what is read: leave out FILE and --text")
    if not text and (subject or sender):
        raise click.UsageError("--subject and --from go with --text: an e-mail has its own")
    asked = asking.Question(run, owner, goal, explain)
    names = files or ("-",)
    if watch is not None:
        found = asking.predict_maildir(asked, watch, interval=interval, once=once, everything=everything)
    elif text:
        found = asking.predict_texts(asked, names, subject, sender)
    else:
        found = asking.predict_files(asked, names)
    read = unread = 0
    for each in found:
        if isinstance(each, asking.Prediction):
            read += 1
            record = asking.record(each)
            # JSON in ASCII alone: a terminal may obey what it is shown.
            click.echo(json.dumps(record) if as_json else shown.printed(tables.prediction(record, each.subject)))
        else:
            unread += 1
            click.echo(f"error: {shown.one_line(each.reason)}", err=True)
    if unread:
        context.exit(1 if read else 2)


@cli.command()
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The model folder to make.")
@click.option(
    "--strategy", type=click.Choice(EXPORTS), help="How the adapter is merged.  [default: the smallest that agrees]"
)
@click.option("--force", is_flag=True, help="With --strategy: even where it agrees on fewer than 99% of messages.")
@click.option("--upload-repo", metavar="ORG/NAME", help="Upload DIR to the Hugging Face hub, as a private repository.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
def export(run: Path, out: Path, strategy: str | None, force: bool, upload_repo: str | None, as_json: bool) -> None:
    """Make a model folder of a run, for `mlx_lm.generate --model DIR`: the smallest that agrees with its adapter.

    Where that is the base with the adapter beside it, it is used with `--adapter-path DIR/adapter` too, as the command
    then prints.

    \b
    Example: mlx-email export runs/20260102-101500 --out my-model
    """
    from mlx_email import exporting

    if force and strategy is None:
        raise click.UsageError("--force goes with --strategy: without it the smallest that agrees is taken")
    progress = Progress(quiet=as_json)
    record = exporting.export(run, out, progress, strategy=strategy, force=force, upload_repo=upload_repo)
    click.echo(_json(record) if as_json else tables.exported(record, out))


@cli.command()
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print what was checked as JSON.")
def verify(paths: tuple[Path, ...], as_json: bool) -> None:
    """Check that runs, checkpoints, tables and exported models are as they were written.

    \b
    Example: mlx-email verify runs/20260102-101500 my-model
    """
    from mlx_email import verify as verifying

    found = [finding for path in paths for finding in verifying.check(path)]
    click.echo(_json(list(map(verifying.plain, found))) if as_json else "\n".join(map(verifying.line, found)))
    verifying.refuse(found)


@cli.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--quick", is_flag=True, help="Toy sizes: does everything work? No ratio means anything.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was measured as JSON.")
def bench(names: tuple[str, ...], quick: bool, as_json: bool) -> None:
    """Measure training beside mlx-lm and mlx-lm-lora: same weights, same examples, side by side.

    NAME is sft, dpo, grpo (its updates), rollout, step (rollout and update), rejection or scoring; without one: all. A
    peer that is not installed is left out and named (pip install 'mlx-email[bench]').

    \b
    Example: mlx-email bench sft
    """
    from mlx_email.benchmarks import compare

    progress = Progress(quiet=as_json)
    record = compare.run(names, quick=quick, note=progress.note)
    click.echo(_json(record) if as_json else compare.table(record))


@cli.command()
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The folder to make.")
@click.option("--messages", type=click.IntRange(1), default=10_700, show_default=True, help="Received messages.")
@click.option("--noise", type=click.FloatRange(0, 1), default=0.08, show_default=True, help="Share of slips.")
@click.option("--seed", type=int, default=0, show_default=True)
def synth(out: Path, messages: int, noise: float, seed: int) -> None:
    """Write a synthetic mailbox of several owners, with a known best possible accuracy.

    \b
    Example: mlx-email synth --out mailbox --messages 2000
    """
    from mlx_email.synth.mailbox import write_mailbox

    box = write_mailbox(out, messages=messages, noise=noise, seed=seed)
    click.echo(f"{out / 'maildir'}: {box.received} received messages of {len(box.owners)} owners, {box.sent} sent")
    click.echo(f"the best possible accuracy over all of them is {box.best_possible:.3f} ({out / 'rule.jsonl'})")


cli.add_command(models)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code: 2 for what the user gave, 1 for what went wrong, 130 for an interrupt."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    os.umask(0o077)  # what we write is made from mail
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        left = cli.main(given, prog_name="mlx-email", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        return _report(error.format_message(), 2, debug)
    except (KeyboardInterrupt, click.Abort) as stopped:
        said = str(stopped.__cause__ or stopped)  # click makes an Abort of an interrupt, which says nothing
        return _report(f"interrupted: {said}" if said else "interrupted", 130, debug=False)
    except MlxEmailError as error:
        return _report(str(error), error.exit_code, debug)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nobody reads any more; keep the exit from failing again
        return 1
    except OSError as error:
        return _report(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 1, debug)
    except Exception as error:
        hint = "" if debug else " (a defect: `mlx-email --debug ...` shows where)"
        return _report(f"{type(error).__name__}: {error}{hint}", 1, debug)
    return left if isinstance(left, int) else 0  # with which `Context.exit` was called


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """A termination is an interrupt: what was begun is removed, not left half-written.

    By the interrupt's own handler: a signal is lost where interrupts are ignored, as in a script's background jobs.
    """
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


def _report(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
