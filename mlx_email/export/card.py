"""The model card: README.md of an exported folder, as the Hugging Face hub reads it.

It says what the model is, what it was measured to be worth, and what it must not be used for. It is made of numbers and
settings: no mail, no owner's name, no address, no path of the machine.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mlx_email.model import source

# Of the models that the package brings: what the hub calls them, and their licence.
KNOWN = {"smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
LICENSE = re.compile(r"[A-Za-z0-9][\w.-]{0,60}", re.ASCII)
FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
LICENSE_BYTES = 1_000_000  # of a README, at most


@dataclass(frozen=True)
class Facts:
    """What a card is made of."""

    model: str  # as `public_name` gives it
    license: str
    stage: str
    method: str
    settings: dict[str, Any]  # of the stage, plain values
    metrics: dict[str, Any]  # of the stage, on the test split; {} where it was not measured
    baselines: dict[str, float]
    data: str  # SHA-256 of the labelled table
    versions: dict[str, Any]
    strategy: str
    candidates: Sequence[dict[str, Any]]  # what was measured of each way to export
    notes: Sequence[str] = ()


def public_name(model: str) -> str:
    """What may be said of a base model: its name on the hub, or that it is a folder; a path may hold a name.

    >>> public_name("mlx-community/Qwen2.5-7B-Instruct-4bit"), public_name("/home/ann/mine")
    ('mlx-community/Qwen2.5-7B-Instruct-4bit', 'a local model')
    """
    if model in KNOWN:
        return KNOWN[model][0]
    named = model in source.NAMED or (source.HUB_NAME.fullmatch(model) and not Path(model).exists())
    return model if named else "a local model"


def license_of(model: str, folder: Path) -> str:
    """The licence that a base model's own folder names (front matter of README.md, config.json), else `other`."""
    said: list[Any] = []
    readme = folder / "README.md"
    if readme.is_file() and readme.stat().st_size < LICENSE_BYTES:
        front = FRONT.match(readme.read_text(errors="replace"))
        said.append(_yaml(front[1]).get("license") if front else None)
    if (folder / "config.json").is_file():
        said.append(source.read_object(folder / "config.json").get("license"))
    said.append(KNOWN[model][1] if model in KNOWN else None)
    return next((each for each in said if isinstance(each, str) and LICENSE.fullmatch(each)), "other")


def _yaml(text: str) -> dict[str, Any]:
    try:
        found = msgspec.yaml.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def text(facts: Facts) -> str:
    """The card."""
    front: dict[str, Any] = {"license": facts.license, "library_name": "mlx", "pipeline_tag": "text-generation"}
    if source.HUB_NAME.fullmatch(facts.model):
        front["base_model"] = facts.model
    front["tags"] = ["mlx", "mlx-email", "email", facts.method]
    merged = "its adapter beside it" if facts.strategy == "adapter" else "its adapter merged in"
    path = " --adapter-path DIR/adapter" if facts.strategy == "adapter" else ""
    parts = [
        f"---\n{msgspec.yaml.encode(front).decode()}---",
        "# What one person does with their mail",
        f"A private model that was trained with mlx-email on the mail of its owner: {facts.model}, {merged}. For a new "
        "message it says what the owner would do: answer at once, answer later, forward, archive or delete.",
        f"    mlx_lm.generate --model DIR{path} --prompt '...'\n    mlx-email evaluate DIR --data TABLE",
        "## What it is worth",
        _metrics(facts),
        "## How the export was chosen",
        f"`{facts.strategy}`: the smallest that gives the same action as the trained adapter on enough of the owner's "
        "validation messages.",
        candidates_table(facts.candidates),
        *facts.notes,
        "## How it was trained",
        f"The last stage is `{facts.stage}` ({facts.method}). Its settings:",
        "\n".join(f"- `{name}`: {json.dumps(_plain(value))}" for name, value in facts.settings.items()),
        f"The labelled table has the SHA-256 `{facts.data}`. "
        + ", ".join(f"{name} {facts.versions[name]}" for name in VERSIONS if name in facts.versions)
        + ".",
        "## What it is for, and what not",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


VERSIONS = ("mlx_email", "mlx", "mlx_lm", "python")
LIMITS = """- For the person whose mail it learned from, on their own mail, with the prompts that mlx-email writes. Of
  others' mail it knows nothing.
- What it learned is what the owner did, not what would have been right. A confidence is what the model gives its own
  answer, measured on earlier mail.
- Nothing should be deleted, sent or forwarded on its word alone.
- A message can try to talk it into an action; it can only choose among the five.
- A model that was trained on mail may have kept parts of it: share it as you would share the mail."""


def _metrics(facts: Facts) -> str:
    said = facts.metrics
    if "accuracy" not in said:
        return "It was not measured on a test split."
    low, high = said["accuracy_interval"]
    lines = [
        f"Measured before the export on {said['messages']} messages, later than all those trained on.",
        "",
        "| | |\n|---|---|",
        f"| accuracy | {said['accuracy']:.3f} (95% interval {low:.3f} to {high:.3f}) |",
        f"| macro-F1 | {said['macro_f1']:.3f} |",
    ]
    names = {"majority": "always the most frequent action", "majority_per_owner": "the same, per owner"}
    names |= {"best_possible": "best possible"}
    lines += [
        f"| {names.get(key, key)} | {value:.3f} |"
        for key, value in sorted(facts.baselines.items())
        if key != "measured"
    ]
    return "\n".join(lines)


def candidates_table(candidates: Sequence[dict[str, Any]]) -> str:
    """What was measured of each way to export, in Markdown."""
    lines = ["| strategy | MB | same action | mean difference | largest |", "|---|---|---|---|---|"]
    for each in candidates:
        said = each["agreement"]
        numbers = f"{said['mean_difference']:.2g} | {said['largest_difference']:.2g}"
        lines.append(f"| {each['strategy']} | {each['megabytes']:.1f} | {said['same_action']:.1%} | {numbers} |")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """A setting without paths of the machine: of a reward function in a file only the file's name."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return re.sub(r"\A.*[/\\](?=[^/\\])", "", value, flags=re.DOTALL) if isinstance(value, str) else value
