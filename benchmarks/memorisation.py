"""Does training put secrets of the mail into the model? `python benchmarks/memorisation.py FOLDER`.

Canaries ("The code of the amber door is 402913.") are planted into messages of the embedded mailbox that are trained
on, `--repeats 10` each; the first stage is trained as shipped; and for each canary its code is ranked among
`--candidates 512` by how likely the model is to go on with it, its mail before it. Exposure: Carlini et al. 2019
(`evaluate.exposure`). FOLDER is made.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mlx.core as mx
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlx_email import config as configuration
from mlx_email import pipeline
from mlx_email.benchmarks.stages import interval
from mlx_email.evaluate.exposure import by_chance, exposure
from mlx_email.labels.prepare import FEATURES, Options, prepare
from mlx_email.labels.schema import Row, read_rows
from mlx_email.model import load, lora
from mlx_email.model.batch import collate, example
from mlx_email.model.forward import completion_logps
from mlx_email.model.load import Base
from mlx_email.model.render import Renderer, renderer
from mlx_email.model.wording import prompt_text
from mlx_email.progress import Progress
from mlx_email.synth.mailbox import write_mailbox

DOORS = "amber birch cedar delta ember fjord glade heron indigo juniper kestrel lotus maple nectar opal prairie".split()


@dataclass(frozen=True)
class Canary:
    """A secret, and what stands before it."""

    text: str
    code: str

    @property
    def whole(self) -> str:
        return f"{self.text} {self.code}."


def canaries(seed: int = 0) -> list[Canary]:
    rng = Random(seed)
    return [Canary(f"The code of the {door} door is", f"{rng.randrange(10**6):06d}") for door in DOORS]


def plant(table: Path, secrets: Sequence[Canary], repeats: int) -> None:
    """Let the bodies of `repeats` messages to train on begin with each canary, as evenly spaced as can be."""
    file = table / FEATURES
    held = pq.read_table(file)
    train = np.flatnonzero(np.array(held["split"].to_pylist()) == "train")
    chosen = train[np.linspace(0, len(train) - 1, repeats * len(secrets)).round().astype(int)]
    bodies = held["body"].to_pylist()
    for number, at in enumerate(chosen.tolist()):
        bodies[at] = f"{secrets[number % len(secrets)].whole}\n\n{bodies[at]}"
    place = held.schema.get_field_index("body")
    pq.write_table(held.set_column(place, held.schema.field(place), pa.array(bodies, pa.string())), file)


def completions(words: Renderer, row: Row, canary: Canary, codes: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Token ids of a message's prompt up to its canary's code, and of each code after it."""

    def ids(text: str) -> list[int]:
        return words.words.encode(text, add_special_tokens=False).ids

    before = prompt_text(row, history=words.history).partition(canary.text)[0] + canary.text
    return [*words.before, *ids(before)], [ids(f" {code}.") for code in codes]


def measured(
    base: Base, words: Renderer, rows: Sequence[Row], secrets: Sequence[Canary], candidates: int
) -> np.ndarray:
    """The exposure of each canary that stands in one of `rows`, bits."""
    found = []
    for number, canary in enumerate(secrets):
        row = next(row for row in rows if row.body.startswith(canary.whole))
        rng = Random(number)
        others = [f"{rng.randrange(10**6):06d}" for _ in range(candidates - 1)]
        prompt, ends = completions(words, row, canary, [canary.code, *others])
        arrays = collate([example("", prompt, *ends)], 1, len(prompt), max(map(len, ends))).arrays
        inputs = [arrays[name] for name in ("prompts", "prompt_lengths", "completions", "completion_mask")]
        logps = completion_logps(base.model, *inputs, gradient=False).sum(axis=-1)
        found.append(np.array(logps.astype(mx.float32))[0])
    return exposure(np.stack(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=512)
    asked = parser.parse_args()
    progress, secrets = Progress(), canaries()
    asked.folder.mkdir()
    settings = configuration.load("quickstart", ["evaluation.max_messages=50"])
    box = write_mailbox(asked.folder / "mailbox", **msgspec.structs.asdict(settings.synthetic))
    prepare([box.path], asked.folder / "table", Options(), count=1)
    plant(asked.folder / "table", secrets, asked.repeats)
    pipeline.train(asked.folder / "table", settings, asked.folder / "run", ("sft",), progress)
    rows = list(read_rows(asked.folder / "table" / FEATURES, "train"))
    base = load.load(settings.model)
    words = renderer(base.tokenizer, history=settings.sender_history)
    before = measured(base, words, rows, secrets, asked.candidates)
    lora.load(base.model, asked.folder / "run" / "sft")
    after = measured(base, words, rows, secrets, asked.candidates)
    print(f"{len(secrets)} canaries, {asked.repeats} times each, among {asked.candidates} candidates; exposure in bits")
    print(f"by chance {by_chance(asked.candidates):.2f}, at most {np.log2(asked.candidates):.2f}")
    for name, each in (("before training", before), ("after", after)):
        print(f"{name:16s} {interval(each.tolist())}, the largest {each.max():.2f}")


if __name__ == "__main__":
    main()
