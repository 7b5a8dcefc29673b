"""What exact scoring costs beside generating the answers, with a trained policy: `python benchmarks/scoring.py RUN`.

Both on the same messages of the run's test split (`--messages 64`), by the same model and adapter, in turn: all five
actions scored (`measure.predict`), and an answer generated greedily by mlx-lm, one message after another, as its
command does. Prompts are rendered in both.
"""

import argparse
import statistics
import time
from pathlib import Path

import mlx_email  # noqa: F401 - loads the fast BLAS before mlx is imported

import mlx.core as mx  # isort: skip
from mlx_lm.generate import generate_step

from mlx_email.jobs import few_rows
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import ACTIONS, Row
from mlx_email.measure import Policy, predict
from mlx_email.model.render import is_over, prompt_ids, text_of
from mlx_email.model.wording import read_answer
from mlx_email.progress import Progress
from mlx_email.train.run import DATA
from mlx_email.trained import open_policy

LONGEST = 64  # tokens of an answer
TURNS = 3


def generated(policy: Policy, row: Row) -> tuple[str | None, int]:
    """The action of an answer that mlx-lm generates, and how many tokens that took."""
    prompt = mx.array(prompt_ids(policy.renderer, row, policy.config.max_prompt_tokens))
    tokens: list[int] = []
    for token, _ in generate_step(prompt, policy.base.model, max_tokens=LONGEST):
        tokens.append(int(token))
        if is_over(policy.renderer, tokens):
            break
    return read_answer(text_of(policy.renderer, tokens)).action, len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--messages", type=int, default=64)
    asked = parser.parse_args()
    policy = open_policy(asked.run)
    rows = few_rows(asked.run / DATA / FEATURES, "test", asked.messages)
    scoring, generating = [], []
    for _ in range(TURNS):
        started = time.perf_counter()
        said = predict(policy, rows, Progress(quiet=True)).argmax(axis=1)
        scoring.append(time.perf_counter() - started)
        started = time.perf_counter()
        answers = [generated(policy, row) for row in rows]
        generating.append(time.perf_counter() - started)
    same = statistics.mean(ACTIONS[number] == action for number, (action, _) in zip(said, answers, strict=True))
    ratios = sorted(slow / fast for slow, fast in zip(generating, scoring, strict=True))
    each = [1000 * statistics.median(times) / len(rows) for times in (scoring, generating)]
    tokens = statistics.mean(count for _, count in answers)
    print(f"{len(rows)} messages: scored {each[0]:.1f} ms each, generated {each[1]:.1f} ms ({tokens:.0f} tokens)")
    print(
        f"{statistics.median(ratios):.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f}); same action {same:.1%}"
    )


if __name__ == "__main__":
    main()
