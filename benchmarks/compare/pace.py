"""The clock of one side: what a step took, and whose turn it is."""

import json
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

import mlx.core as mx

from mlx_email.kernels import compiling


@dataclass
class Pace:
    """Called by a side after each of its steps, when the step's arrays are computed.

    After the warm-up and after each repetition it reports and waits until the parent lets it go on: never do two
    sides compute at once.
    """

    warmup: int  # steps
    steps: int  # of one repetition
    out: TextIO
    go: TextIO
    _done: int = field(default=0, init=False)
    _loss: float = field(default=0.0, init=False)
    _tokens: int = field(default=0, init=False)
    _held: int = field(default=0, init=False)
    _started: float = field(default=0.0, init=False)
    _started_cpu: float = field(default=0.0, init=False)  # tells a busy machine from a slow step

    def __call__(self, loss: float, tokens: int) -> None:
        self._done += 1
        self._loss += loss
        self._tokens += tokens
        if self._done == self.warmup:
            self._report(device())
        elif self._done > self.warmup and (self._done - self.warmup) % self.steps == 0:
            self._report(
                {
                    "seconds": (time.perf_counter() - self._started) / self.steps,
                    "cpu_seconds": (time.process_time() - self._started_cpu) / self.steps,
                    "tokens": self._tokens / self.steps,
                    "loss": self._loss / self.steps,
                    "peak": mx.get_peak_memory(),
                    "held": self._held,
                }
            )

    def _report(self, record: dict) -> None:
        print(json.dumps(record), file=self.out, flush=True)
        if self.go.readline() == "":
            raise EOFError("the process that started this one is gone")
        self._loss = self._tokens = 0
        mx.reset_peak_memory()
        self._held = mx.get_active_memory()  # weights, optimiser state, and a peer's second model
        self._started, self._started_cpu = time.perf_counter(), time.process_time()


def device() -> dict[str, Any]:
    """Where this process computes."""
    return {
        "device": f"{mx.default_device().type.name} {mx.device_info().get('device_name', '')}".strip(),
        "compiled": compiling.by_default(),
    }
