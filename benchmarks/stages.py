"""What each offline stage alone does to the embedded model, from one SFT start: `python benchmarks/stages.py FOLDER`.

For every seed (`--seeds 3`) SFT is trained as `mlx-email train` does it. From its adapters each of the other stages is
trained alone. All figures are of the test split.
FOLDER is made; what is there already is not trained again.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mlx_email import collect, files, jobs, measure, pipeline
from mlx_email import config as configuration
from mlx_email.algorithms import Context
from mlx_email.config import Config, Dpo, Grpo, Kto, Reward, RewardTerm, Stage
from mlx_email.labels.examples.contrasts import contrasts
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import ACTIONS, Row, predicted_action
from mlx_email.model import lora, reward, source
from mlx_email.model.load import load
from mlx_email.model.render import renderer
from mlx_email.progress import Progress
from mlx_email.synth.mailbox import kept_to_rule
from mlx_email.train import events, resume
from mlx_email.train import run as runs
from mlx_email.train.checkpoint import put_adapters
from mlx_email.train.examples import settled
from mlx_email.train.session import Job
from mlx_email.train.stage import result, train_stage

TEST_MESSAGES = 700  # of the test split, evenly spaced
ONLINE: dict[str, Any] = {
    "batch_size": 8,
    "accumulation": 1,
    "learning_rate": 3e-4,
    "max_steps": 60,
    "validate_every": 60,
    "stop_accuracy": None,
    "rewards": (RewardTerm(function="action"),),
}
STAGES: tuple[Stage, ...] = (  # they validate, on the test split here, at their end only
    Dpo(epochs=1, batch_size=8, accumulation=1, learning_rate=1e-3, max_steps=150, validate_every=150),
    Kto(epochs=1, batch_size=16, accumulation=1, learning_rate=1e-3, max_steps=100, validate_every=100),
    Reward(epochs=1, batch_size=8, accumulation=1, learning_rate=1e-3, max_steps=450, validate_every=450),
    # The same steps, prompts and rewards: once with eight completions sampled of each, once with all actions scored.
    Grpo(name="grpo", **ONLINE),
    Grpo(name="grpo-enumerate", rollout="enumerate", **ONLINE),
)
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t: half a 95% interval of a mean of so many


@dataclass(frozen=True)
class Start:
    """An SFT run of one seed."""

    run: Path
    config: Config
    rows: Sequence[Row]  # of the test split
    measured: dict[str, Any]


def start(folder: Path, seed: int, steps: int, progress: Progress) -> Start:
    """Train SFT, or read what was trained before."""
    run = folder / f"sft-{seed}"
    length = [f"stages.sft.max_steps={steps}", "stages.sft.validate_every=null"]
    config = configuration.load("quickstart", [f"seed={seed}", f"evaluation.max_messages={TEST_MESSAGES}", *length])
    if not (run / "sft" / runs.METRICS).is_file():
        pipeline.train(None, config, run, ("sft",), progress)
    rows = jobs.few_rows(run / runs.DATA / FEATURES, "test", TEST_MESSAGES)
    return Start(run, config, rows, source.read_object(run / "sft" / runs.METRICS))


def alone(begin: Start, stage: Stage, seed: int, progress: Progress) -> dict[str, float]:
    """Train one stage from the SFT adapters and measure it."""
    run = begin.run.with_name(f"{stage.name}-{seed}")
    if (run / runs.METRICS).is_file():
        return source.read_object(run / runs.METRICS)
    config = msgspec.structs.replace(begin.config, stages=(stage,))
    base = load(config.model)
    words = renderer(base.tokenizer, history=config.sender_history)
    adapters = runs.adapt(base, config, stage)
    put_adapters(result(begin.run, "sft") / lora.ADAPTERS, base.model)
    table = begin.run / runs.DATA / FEATURES
    train_rows = jobs.few_rows(table, "train", None)
    _, examples = jobs.gather(stage, train_rows, words, config)
    run.mkdir(parents=True, exist_ok=True)
    with progress.steps(f"{stage.name}, seed {seed}") as bar:
        job = Job(
            run=run,
            base=base,
            config=config,
            stage=settled(stage, examples, progress.note),
            adapters=adapters,
            parent=None,
            examples=examples,
            held_out=jobs.gather(stage, begin.rows, words, config, jobs.whole(stage, table, "test"))[1],
            identity=resume.identity(base, begin.run / runs.DATA, config),
            on_step=bar.step,
            note=progress.note,
            context=Context(renderer=words, judge=jobs.judge_of(stage, config, run, base)),
        )
        started = time.perf_counter()
        train_stage(job)
        seconds = time.perf_counter() - started
    if isinstance(stage, Reward):
        model = reward.load(base, result(run, stage.name))
        kept = kept_to_rule(begin.run / runs.DATA / collect.RULE, begin.rows)
        followed = [row for row, of_rule in zip(begin.rows, kept, strict=True) if of_rule]
        split = jobs.whole(stage, table, "test")
        found = ranking("", measure.evaluate_reward(model, words, stage, config, begin.rows, split))
        kept_to = measure.evaluate_reward(model, words, stage, config, followed, None)
        found |= ranking(", owner kept to the rule", kept_to)
        found |= {"the same by how often an action is taken": blind(train_rows, followed)}
    elif isinstance(stage, Grpo):
        after = measure.evaluate(measure.Policy(base, words, config, stage.name), begin.rows, progress)
        gained = after["accuracy"] - begin.measured["accuracy"]
        found = {
            "accuracy after": after["accuracy"],
            "accuracy gained": gained,
            "macro_f1 gained": after["macro_f1"] - begin.measured["macro_f1"],
            "seconds": seconds,
            "accuracy gained a minute": 60 * gained / seconds,
        }
    else:
        (said,) = [event for event in events.read(run) if event["event"] == "validation"]
        chosen, rejected = ("chosen", "rejected") if isinstance(stage, Dpo) else ("desirable", "undesirable")
        after = measure.evaluate(measure.Policy(base, words, config, stage.name), begin.rows, progress)
        found = {
            "loss": said["val/loss"],
            "reward margin": said[f"val/rewards/{chosen}"] - said[f"val/rewards/{rejected}"],
            **{f"{name} after": after[name] for name in ("accuracy", "macro_f1")},
            **{f"{name} gained": after[name] - begin.measured[name] for name in ("accuracy", "macro_f1")},
        }
    files.write_json(run / runs.METRICS, found)
    return found


def blind(train_rows: Sequence[Row], rows: Sequence[Row]) -> float:
    """Pairs in order for who looks at no mail, but prefers the action that is taken more often."""
    taken = Counter(predicted_action(row.action, row.response_time_hours) for row in train_rows)
    made = contrasts(rows, 0, per_message=len(ACTIONS) - 1)
    return statistics.fmean(taken[each.chosen] > taken[each.rejected] for each in made)


def ranking(where: str, measured: dict[str, Any]) -> dict[str, float]:
    """The figures of a reward model by readable names."""
    found = {f"pairs in order{where}": measured["pair_accuracy"], f"right answer first{where}": measured["first"]}
    if not where:
        found |= {"margin": measured["margin"], "calibration error": measured["calibration_error"]}
        if "messages" in measured:
            found |= {"pairs of messages in order": measured["messages"]["pair_accuracy"]}
    return found


def interval(values: Sequence[float]) -> str:
    """Mean and 95% interval over the seeds, by Student's t."""
    mean = statistics.fmean(values)
    if len(values) not in T_975:
        return f"{mean:.3f}"
    half = T_975[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f}  ({mean - half:.3f} to {mean + half:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sft-steps", type=int, default=400, help="of SFT; the embedded run's by default")
    parser.add_argument("--stage", action="append", choices=[stage.name for stage in STAGES])
    asked = parser.parse_args()
    progress = Progress()
    begins = {seed: start(asked.folder, seed, asked.sft_steps, progress) for seed in range(asked.seeds)}
    print(f"means over {asked.seeds} seeds, with 95% intervals of the mean; {TEST_MESSAGES} messages of the test split")
    for name in ("accuracy", "macro_f1"):
        print(f"  SFT, {asked.sft_steps} steps: {name:20s} {interval([b.measured[name] for b in begins.values()])}")
    for stage in STAGES:
        if asked.stage and stage.name not in asked.stage:
            continue
        found = [alone(begin, stage, seed, progress) for seed, begin in begins.items()]
        print(
            f"{stage.name}: {stage.max_steps} steps of {stage.batch_size * stage.accumulation}, in each seed's own run"
        )
        for figure in found[0]:
            print(f"  {figure:45s} {interval([each[figure] for each in found])}")


if __name__ == "__main__":
    main()
