"""All stages of the embedded run, beside SFT alone given as long: `python benchmarks/pipeline.py FOLDER`.

For every seed (`--seeds 3`) the run of `mlx-email train` without arguments; with `--alone` SFT alone too, with as many
steps as take as long as the training of all stages took, in its own seconds a step. All figures are of the test split.
FOLDER is made; what is there already is not trained again.

With `--demonstrations 300` SFT has only so many messages to imitate, all through, and the later stages, which have all,
more steps at higher rates (LATER): few demonstrations, much feedback.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlx_email import config as configuration
from mlx_email import pipeline
from mlx_email.benchmarks.stages import interval
from mlx_email.model import source
from mlx_email.progress import Progress
from mlx_email.train import events
from mlx_email.train import run as runs

LATER = (
    "stages.grpo.max_steps=300",
    "stages.grpo.learning_rate=1e-3",
    "stages.grpo.advantages=group",
    "stages.grpo.beta=0.02",
    "stages.dpo.max_steps=200",
    "stages.dpo.learning_rate=5e-4",
    "stages.dpo.wrong_answers=4",
)


def few(demonstrations: int | None) -> list[str]:
    """The settings of a run with few demonstrations."""
    if demonstrations is None:
        return []
    sft = [f"stages.sft.demonstrations={demonstrations}", "stages.sft.max_steps=300", "stages.sft.epochs=100"]
    return [*sft, *LATER]


def made(run: Path, settings: list[str], progress: Progress) -> dict[str, Any]:
    """The metrics of a run, trained where it is not there or not finished."""
    if (run / runs.CONFIG).is_file():
        return pipeline.resume(run, (), progress)
    return pipeline.train(None, configuration.load("quickstart", settings), run, (), progress)


def seconds(run: Path) -> dict[str, float]:
    """How long each stage's training took, what it prepares included."""
    found: dict[str, float] = {}
    for before, event in pairwise(events.read(run)):
        if event["event"] in ("begin", "step", "validation", "checkpoint", "stage") and "stage" in event:
            found[event["stage"]] = found.get(event["stage"], 0.0) + event["time"] - before["time"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="SFT alone too")
    parser.add_argument("--demonstrations", type=int, metavar="N", help="messages that SFT has")
    asked = parser.parse_args()
    progress = Progress()
    runs_of = {seed: asked.folder / f"all-{seed}" for seed in range(asked.seeds)}
    whole = [made(run, [f"seed={seed}", *few(asked.demonstrations)], progress) for seed, run in runs_of.items()]
    print(f"means over {asked.seeds} seeds, with 95% intervals of the mean; test split")
    for name in whole[0]["stages"]:
        measured = [record["stages"][name] for record in whole if name in record["stages"]]
        kept = sum(each.get("kept", True) for each in measured)
        figure = "accuracy" if "accuracy" in measured[0]["test"] else "pair_accuracy"
        said = interval([each["test"][figure] for each in measured])
        took = interval([seconds(run)[name] for run in runs_of.values()])
        print(f"  {name:12s} {figure:14s} {said}  kept {kept} of {len(measured)}, {took} s")
    ends = [record["stages"][record["final"]]["test"]["accuracy"] for record in whole]
    best = [record["test"]["baselines"]["best_possible"] for record in whole]
    print(f"  the end of the run {interval(ends)}; best possible {interval(best)}")
    print(f"  below the best possible {interval([b - e for b, e in zip(best, ends, strict=True)])}", flush=True)
    alone = []
    for seed, run in runs_of.items() if asked.alone else ():
        took = seconds(run)
        steps = round(source.read_object(run / "sft" / "stage.json")["steps"] * sum(took.values()) / took["sft"])
        length = [f"stages.0.max_steps={steps}", "stages.0.epochs=100"]  # as long as that takes
        if asked.demonstrations is not None:
            length.append(f"stages.0.demonstrations={asked.demonstrations}")
        settings = [f"seed={seed}", f"stages=[{sft_alone()}]", *length]
        record = made(asked.folder / f"sft-{seed}", settings, progress)
        alone.append(record["stages"]["sft"]["test"]["accuracy"])
        print(f"  SFT alone, seed {seed}, {steps} steps: {alone[-1]:.3f}", flush=True)
    if alone:
        print(f"  SFT alone, as long {interval(alone)}")


def sft_alone() -> str:
    """The first stage of the shipped configuration, as one to give by --set."""
    sft = configuration.load("quickstart").stages[0]
    return f"{{algorithm: sft, name: sft, batch_size: {sft.batch_size}, accumulation: {sft.accumulation}, " + (
        f"learning_rate: {sft.learning_rate}, validate_every: null}}"
    )


if __name__ == "__main__":
    main()
