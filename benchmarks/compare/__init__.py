"""Our training core beside its peers': same weights, same adapters, same token ids, side by side on this machine.

workload.py   the model and the examples, numpy only
harness.py    the parent process: starts the sides, lets them step in turn, compares
child.py      the process of one side;  pace.py  its clock;  policy.py  what both sides load
ours.py       the one place that calls our training loop;  peers.py  what both peers share
sft.py  dpo.py  grpo.py   what is done, by us and by the peer, and what ratio is to be reached
report.py     the table
"""

from mlx_email.benchmarks.compare.harness import run
from mlx_email.benchmarks.compare.report import table

__all__ = ["run", "table"]
