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
    lines += baseline_lines(baselines)
    lines += [_stage_line(name, stage) for name, stage in record["stages"].items()]
    if "best_possible" in baselines:
        lines.append(f"  {'best possible':30s} {baselines['best_possible']:.3f}")
    if record["final"] is not None:
        ends = record["stages"][record["final"]]["test"]
        lines += ["", f"the run ends with {record['final']}", *_acting_lines(ends.get("acting", {}))]
    written = [f"report: {run / 'report.html'}"] if (run / "report.html").is_file() else []
    return "\n".join([*lines, "", f"run folder: {run}", *written])


BASELINES = {
    "majority": "majority",
    "majority_per_owner": "majority per owner",
    "tfidf": "TF-IDF, logistic regression",
    "boosted_trees": "boosted trees",
}


def baseline_lines(baselines: dict[str, Any]) -> list[str]:
    """What needs no language model, a line each."""
    return [_accuracy_line(title, baselines["measured"][key]) for key, title in BASELINES.items() if key in baselines]


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
    lines += baseline_lines(record["baselines"])
    lines.append(_accuracy_line(record["stage"], record))
    if "best_possible" in record["baselines"]:
        lines.append(f"  {'best possible':30s} {record['baselines']['best_possible']:.3f}")
    acting = [f"    {line}" for line in _acting_lines(record.get("acting", {}))]
    return "\n".join([*lines, *_sureness_lines(record), *acting, *_part_lines(record), "", *_confusion_lines(record)])


def _acting_lines(goals: dict[str, Any]) -> list[str]:
    """On how much of the mail it may act alone, a line a goal."""
    lines = []
    for goal, rule in goals.items():
        wanted = f"to be right {100 * float(goal):g}% of the time"
        if rule["threshold"] is None:
            lines.append(f"{wanted}, it may not act alone: on validation mail no confidence was clearly enough")
            continue
        sure = f"it may be believed on {rule['coverage']:.0%} of the mail (right on {rule['accuracy']:.1%} of that)"
        lines.append(f"{wanted}, {sure}; alone it acts on {rule['acts']:.0%} ({rule['acts_accuracy']:.1%})")
    return lines


def _sureness_lines(record: dict[str, Any]) -> list[str]:
    equal = f"in {record['calibration_bins']} bins of equal width"
    errors = f"{record['calibration_error']:.3f} {equal}, {record['adaptive_calibration_error']:.3f} of equal mass"
    if "calibrated" in record:
        errors += f"; calibrated {record['calibrated']['calibration_error']:.3f}"
    said = {
        "calibration error": errors,
        "Brier score": f"{record['brier']:.3f}",
        "negative log-likelihood": f"{record['nll']:.3f} nats",
    }
    if "cost" in record.get("calibrated", {}):
        paid = record["calibrated"]
        said["cost of mistakes"] = f"{paid['cost']:.3f} a message; {paid['cost_of_cheapest']:.3f} by the least expected"
    if "priority" in record:
        rank = record["priority"]["spearman"]
        agreed = "" if rank is None else f", rank correlation {rank:.3f}"
        said["priority"] = f"{record['priority']['mae']:.3f} off on average{agreed}"
    return [f"    {name:28s} {value}" for name, value in said.items()]


def _part_lines(record: dict[str, Any]) -> list[str]:
    titles = {"straddling": "threads begun before", "apart": "other threads", "good_labels": "certain labels"}
    of_all = [(titles[name], part) for name, part in record["subsets"].items()]
    of_owners, of_months = ([*record[name].items()] if len(record[name]) > 1 else [] for name in ("owners", "months"))
    lines = []
    for name, part in (*of_all, *of_owners[:FEW], *of_months[-FEW:]):
        measured = f"{part['accuracy']:.3f}  macro-F1 {part['macro_f1']:.3f}  of {part['messages']} messages"
        certain = part.get("good_labels", part)
        if certain["messages"] < part["messages"]:
            measured += f"; {certain['accuracy']:.3f} of the {certain['messages']} with certain labels"
        lines.append(f"    {shown.fitted(name, 28)} {measured}")
    return lines


FEW = 6  # owners, and months, in a table for people; --json has all


def _confusion_lines(record: dict[str, Any]) -> list[str]:
    measured = ("precision", "recall", "f1")
    heads = " ".join(f"{action:>11s}" for action in ACTIONS) + "  precision  recall      F1"
    lines = [f"  {'right / predicted':>18s} {heads}"]
    for action, row in zip(ACTIONS, record["confusion"], strict=True):
        shares = "  ".join(f"{record[name][action]:{6 if name != 'precision' else 9}.3f}" for name in measured)
        lines.append(f"  {action:>18s} " + " ".join(f"{n:11d}" for n in row) + f"  {shares}")
    return lines


def ensemble(record: dict[str, Any]) -> str:
    """Several policies as one."""
    titles = {"average": "mean of calibrated probabilities", "vote": "majority vote"}
    line = _accuracy_line(titles[record["ensemble"]], record)
    return "\n".join([f"{' + '.join(record['of'])}", line, *_sureness_lines(record)])


def comparison(record: dict[str, Any]) -> str:
    """One run beside another on the same messages."""
    first, second = record["compared"]
    if "reason" in record:
        return f"{second} is not compared with {first}: {record['reason']}"
    lines = [f"{second} beside {first}, {record['messages']} messages in {record['threads']} threads"]
    for name, title in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        low, high = record["change"][f"{name}_interval"]
        lines.append(f"  {title:30s} {record['change'][name]:+.3f}  (95% interval {low:+.3f} to {high:+.3f})")
    only = f"{record['only_second_right']} to {record['only_first_right']}"
    lines.append(f"  {'right where the other is not':30s} {only}  (p {record['mcnemar']:.2g}, McNemar's exact test)")
    return "\n".join([*lines, f"  {'the same action':30s} {record['same_action']:.3f}"])


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
    """How well each way of merging agrees with the adapter, and which was taken."""
    said = record["agreement"]
    return "\n".join(
        [
            f"{out}: {record['model']} with the adapter of stage {record['stage']}, {record['megabytes']:.1f} MB",
            "",
            f"  {'strategy':14s} {'MB':>8s}  same action  mean difference  largest",
            *map(_candidate, record["candidates"]),
            "",
            f"{record['strategy']} was taken: the same action as before on {said['same_action']:.1%} of "
            f"{said['messages']} messages",
            f"try: {_try(record['strategy'], out)}",
            *([f"uploaded: {record['uploaded']}"] if "uploaded" in record else []),
        ]
    )


def _candidate(candidate: dict[str, Any]) -> str:
    said = candidate["agreement"]
    numbers = f"{said['same_action']:11.1%}  {said['mean_difference']:15.2g}  {said['largest_difference']:7.2g}"
    return f"  {candidate['strategy']:14s} {candidate['megabytes']:8.1f}  {numbers}"


def _try(strategy: str, out: Path) -> str:
    beside = f" --adapter-path {out / 'adapter'}" if strategy == "adapter" else ""
    return f"mlx_lm.generate --model {out}{beside} --prompt '...'"
