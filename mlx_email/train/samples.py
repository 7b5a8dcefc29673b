"""Tables of what a policy says while it is trained, for people to read.

STAGE/samples/step-000051.md   what the rollout before that step was: prompts, completions, what each is worth
"""

from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path

from mlx_email import files
from mlx_email.model.wording import prompt_text
from mlx_email.rewards.judge import Judged

FOLDER = "samples"
GROUPS = 4  # prompts in a table
BODY = 300  # characters of a mail's body


def write(stage: Path, step: int, judged: Sequence[Judged]) -> None:
    """Write the table of a rollout. It is made of mail: nobody else may read it, as all of a run."""
    folder = stage / FOLDER
    folder.mkdir(exist_ok=True)
    files.write(folder / f"step-{step:06d}.md", table(step, judged))


def table(step: int, judged: Sequence[Judged]) -> str:
    """A rollout's first groups in Markdown: each prompt, then its completions by what they are worth.

    Samples of one group stand side by side.
    """
    parts = [f"# What was sampled before step {step}\n"]
    for _, group in islice(groupby(judged, key=lambda each: id(each.sample.prompt)), GROUPS):
        ordered = sorted(group, key=lambda each: -each.reward)
        sample = ordered[0].sample
        parts.append(f"## {_cell(sample.row.message_id)}: the owner did {sample.done}\n")
        shown = prompt_text(sample.row, BODY, history=False).splitlines()
        parts.append("\n".join(f"    {line}" for line in shown) + "\n")
        names = list(ordered[0].parts)
        parts.append("| reward | " + " | ".join(names) + " | completion |\n|" + "---|" * (len(names) + 2))
        for each in ordered:
            numbers = [f"{each.reward:.3f}", *(f"{each.parts[name]:.3f}" for name in names)]
            end = "" if each.sample.ended else " (cut)"
            parts.append(f"| {' | '.join(numbers)} | {_cell(each.sample.text)}{end} |")
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    """A text inside a table."""
    return " / ".join(text.replace("|", "\\|").splitlines())
