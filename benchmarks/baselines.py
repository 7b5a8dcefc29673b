"""What needs no language model on a prepared table: `python benchmarks/baselines.py TABLE`.

TABLE is a folder that `prepare` wrote; all figures are of its test split.
"""

import argparse
from pathlib import Path

from mlx_email import baselines, tables
from mlx_email.jobs import few_rows
from mlx_email.labels.prepare import FEATURES
from mlx_email.measure import baseline_summary, outcomes
from mlx_email.progress import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    table = parser.parse_args().table / FEATURES
    rows, known = few_rows(table, "test", None), outcomes(table)
    fitted = baselines.of_fitted(table, "", len(known), rows, None, Progress())
    found = baselines.joined(baseline_summary(None, known, rows), fitted)
    print(f"{len(known)} messages to learn from, {len(rows)} to test on")
    print("\n".join(tables.baseline_lines(found)))


if __name__ == "__main__":
    main()
