"""What the commands print for people: records in, text out."""

from pathlib import Path
from typing import Any

from mlx_email import shown
from mlx_email.labels.schema import ACTIONS


def training(record: dict[str, Any], run: Path) -> str:
    """What a run ends with: accuracies on the test split."""
    baselines = record["test"]["baselines"]
    lines = ["accuracy on messages later than all those trained on", ""]
    if counts := [stage["test"]["messages"] for stage in record["stages"].values() if "accuracy" in stage["test"]]:
        lines = [f"accuracy on {counts[0]} messages, later than all those trained on", ""]
    lines += _baseline_lines(baselines)
    lines += [_stage_line(name, stage) for name, stage in record["stages"].items()]
    if "best_possible" in baselines:
        lines.append(f"  {'best possible':30s} {baselines['best_possible']:.3f}")
    if record["final"] is not None:
        lines += ["", f"the run ends with {record['final']}"]
    return "\n".join([*lines, "", f"run folder: {run}"])


def _baseline_lines(baselines: dict[str, float]) -> list[str]:
    named = {"majority": "majority", "majority_per_owner": "majority per owner"}
    return [f"  {title:30s} {baselines[key]:.3f}" for key, title in named.items() if key in baselines]


METHODS = {
    "sft": "supervised",
    "reward": "reward model",
    "grpo": "GRPO",
    "dpo": "DPO",
    "kto": "KTO",
    "temporal": "temporal RLHF",
    "rsf": "rejection sampling",
}


def _stage_line(name: str, stage: dict[str, Any]) -> str:
    summary, method = stage["test"], METHODS[stage["method"]]
    title = name if name == stage["method"] == method.lower() else f"{name} ({method})"
    if "accuracy" in summary:
        return _accuracy_line(title, summary) + ("" if stage["kept"] else "  rolled back")
    if not summary["pairs"]:
        return f"  {title:30s} no message to test on says for certain what was not done"
    return _ranking_line(title, summary)


def _ranking_line(name: str, summary: dict[str, Any]) -> str:
    low, high = summary["pair_accuracy_interval"]
    interval = f"(95% interval {low:.3f}-{high:.3f})"
    return f"  {name:30s} {summary['pair_accuracy']:.3f}  {interval}  of {summary['pairs']} pairs in the right order"


def _accuracy_line(name: str, summary: dict[str, Any]) -> str:
    low, high = summary["accuracy_interval"]
    interval = f"(95% interval {low:.3f}-{high:.3f})"
    return f"  {name:30s} {summary['accuracy']:.3f}  {interval}  macro-F1 {summary['macro_f1']:.3f}"


def evaluation(record: dict[str, Any]) -> str:
    """What was measured of one run."""
    lines = [f"{record['run']}: stage {record['stage']}, {record['messages']} messages of the {record['split']} split"]
    lines += _baseline_lines(record["baselines"])
    lines.append(_accuracy_line(record["stage"], record))
    if "best_possible" in record["baselines"]:
        lines.append(f"  {'best possible':30s} {record['baselines']['best_possible']:.3f}")
    titles = {"straddling": "threads begun before", "apart": "other threads", "good_labels": "certain labels"}
    for name, part in record["subsets"].items():
        lines.append(f"    {titles[name]:20s} {part['accuracy']:.3f}  of {part['messages']} messages")
    lines += ["", f"  {'right / predicted':>18s} " + " ".join(f"{action:>11s}" for action in ACTIONS) + "      F1"]
    for action, row in zip(ACTIONS, record["confusion"], strict=True):
        lines.append(f"  {action:>18s} " + " ".join(f"{n:11d}" for n in row) + f"  {record['f1'][action]:6.3f}")
    return "\n".join(lines)


def prepared(counts: dict[str, Any], out: Path) -> str:
    """What `prepare` has counted."""
    owners = f"{counts['owners']} owner{'' if counts['owners'] == 1 else 's'}"
    lines = [f"{out}: {counts['labelled']} labelled messages of {owners}"]
    for name, value in counts.items():
        shown = ", ".join(f"{key} {n}" for key, n in value.items()) if isinstance(value, dict) else value
        shown = ", ".join(shown) if isinstance(shown, list) else shown
        if shown != "":
            lines.append(f"  {name:12s} {shown}")
    return "\n".join(lines)


def prediction(record: dict[str, Any], subject: str) -> str:
    """What should be done with a message, on a line of 99 columns at most; a second one with what was said of it."""
    alone = {None: "", True: "act", False: "ask"}[record["may_act"]]
    place = f"{record['file']}/{record['path']}" if record["path"] else record["file"]
    of_mail = f"{shown.fitted(subject, 43)}  {shown.fitted(place, 30, keep_end=True)}"
    line = f"{record['action']:11s}  {record['confidence']:.2f}  {alone:3s}  {of_mail}".rstrip()
    if "reasoning" not in record:
        return line
    priority = "-" if record["priority"] is None else f"{record['priority']:.2f}"
    return f"{line}\n{'':13s}priority {priority}: {shown.fitted(record['reasoning'] or '-', 70).rstrip()}"


def exported(record: dict[str, Any], out: Path) -> str:
    """How well a merged model agrees with what it was made from."""
    agreement = record["agreement"]
    return "\n".join(
        [
            f"{out}: {record['model']} with the adapter of stage {record['stage']}, {record['megabytes']:.1f} MB",
            f"the same action as before merging on {agreement['same_action']:.1%} of {agreement['messages']} messages",
            f"try: mlx_lm.generate --model {out} --prompt '...'",
        ]
    )
