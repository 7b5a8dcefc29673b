"""The process of one side: `python -m mlx_email.benchmarks.compare.child '{"work": "sft", "side": "ours", ...}'`.

It writes one JSON object a line to stdout and goes on when it is sent a line. Importing anything of `mlx_email` first
loads the fast BLAS, for the peers as for us.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_email.benchmarks.compare.keep import Keep
from mlx_email.benchmarks.compare.pace import Pace
from mlx_email.benchmarks.compare.side import Job, Side
from mlx_email.benchmarks.compare.workload import Sizes
from mlx_email.benchmarks.compare.works import WORKS
from mlx_email.kernels import compiling


def main(told: dict[str, Any]) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the peers print their progress
    work = WORKS[told["work"]]
    side = work.sides[told["side"]]
    sizes, folder = Sizes(**told["sizes"]), Path(told["folder"])
    if told["gradients"]:
        print(json.dumps(gradients(side, sizes, folder, told["gradients"])), file=out, flush=True)
        return
    steps = side.steps(sizes)
    warmup = steps if compiling.by_default() else 1  # every shape is traced once
    pace = Pace(warmup, steps, out, sys.stdin)
    side.run(Job(folder, sizes, warmup, steps, work.repetitions(sizes), pace))


def gradients(side: Side, sizes: Sizes, folder: Path, file: str) -> dict[str, Any]:
    """One step that moves nothing: the gradient to a file, the loss to the parent."""
    seen: list[float] = []
    keep = Keep()
    side.run(Job(folder, sizes, 0, 1, 1, lambda loss, tokens: seen.append(loss), keep))  # noqa: ARG005
    mx.save_safetensors(file, keep.gradients())
    return {"loss": seen[0]}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
