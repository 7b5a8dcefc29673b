"""All stages of the embedded run, beside SFT alone given as long: `python benchmarks/pipeline.py FOLDER`.

For every seed (`--seeds 3`) the run of `mlx-email train` without arguments; then SFT alone, with as many steps as take
as long as the training of all stages took, in its own seconds a step. All figures are of the test split.
FOLDER is made; what is there already is not trained again.
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
    asked = parser.parse_args()
    progress = Progress()
    whole, alone = [], []
    for seed in range(asked.seeds):
        whole.append(made(asked.folder / f"all-{seed}", [f"seed={seed}"], progress))
        took = seconds(asked.folder / f"all-{seed}")
        steps = source.read_object(asked.folder / f"all-{seed}" / "sft" / "stage.json")["steps"]
        as_long = round(steps * sum(took.values()) / took["sft"])
        # As many steps as the schedule is made for, in as many epochs as that takes.
        length = [f"stages.0.max_steps={as_long}", "stages.0.epochs=20"]
        only = [f"seed={seed}", "stages=[" + sft_alone() + "]", *length]
        alone.append((as_long, made(asked.folder / f"sft-{seed}", only, progress)))
    print(f"means over {asked.seeds} seeds, with 95% intervals of the mean; test split, {whole[0]['final']} at the end")
    for name in whole[0]["stages"]:
        measured = [record["stages"][name] for record in whole if name in record["stages"]]
        kept = sum(each.get("kept", True) for each in measured)
        figure = "accuracy" if "accuracy" in measured[0]["test"] else "pair_accuracy"
        print(f"  {name:12s} {figure:14s} {interval([each['test'][figure] for each in measured])}  kept {kept}")
    ends = [record["stages"][record["final"]]["test"]["accuracy"] for record in whole]
    best = [record["test"]["baselines"]["best_possible"] for record in whole]
    print(f"  the end of the run          {interval(ends)}; best possible {interval(best)}")
    print(f"  below the best possible     {interval([b - e for b, e in zip(best, ends, strict=True)])}")
    steps_alone = ", ".join(str(count) for count, _ in alone)
    only_sft = [record["stages"]["sft"]["test"]["accuracy"] for _, record in alone]
    print(f"  SFT alone, as long ({steps_alone} steps) {interval(only_sft)}")


def sft_alone() -> str:
    """The first stage of the shipped configuration, as one to give by --set."""
    sft = configuration.load("quickstart").stages[0]
    return f"{{algorithm: sft, name: sft, batch_size: {sft.batch_size}, accumulation: {sft.accumulation}, " + (
        f"learning_rate: {sft.learning_rate}, validate_every: null}}"
    )


if __name__ == "__main__":
    main()
