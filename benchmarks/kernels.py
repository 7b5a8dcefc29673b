"""Memory of the vocabulary head, and fused against unpacked quantised products: `python benchmarks/kernels.py`."""

import time
from collections.abc import Callable

import mlx_email  # noqa: F401 - loads the fast BLAS, which must come before mlx

# isort: split
import mlx.core as mx
import mlx.nn as nn

from mlx_email.kernels.logprob import linear_logprob
from mlx_email.kernels.quantized import Quantized

MIB = 2**20


def head_peak(tokens: int, vocabulary: int, *, gradient: bool) -> float:
    """Peak memory of the log-probabilities of `tokens` tokens, beyond weights and inputs, in MiB."""
    head = nn.Linear(8, vocabulary, bias=False)
    hidden, targets = mx.random.normal((tokens, 8)), mx.zeros((tokens,), mx.int32)
    mx.eval(head.parameters(), hidden, targets)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(linear_logprob(hidden, head, targets, gradient=gradient))
    return (mx.get_peak_memory() - before) / MIB


def milliseconds(function: Callable[[], mx.array], repeats: int = 7) -> float:
    """Median time of a call, the first one not counted."""
    mx.eval(function())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        mx.eval(function())
        times.append(time.perf_counter() - started)
    return 1e3 * sorted(times)[repeats // 2]


def main() -> None:
    print("linear_logprob, vocabulary 4,096: peak MiB beyond weights and inputs")
    for tokens in (8_192, 16_384, 65_536):
        peak, values_only = (head_peak(tokens, 4096, gradient=gradient) for gradient in (True, False))
        everything = tokens * 4096 * 4 / MIB
        print(f"  {tokens:6d} tokens  with gradient {peak:.0f}  without {values_only:.0f}  all logits {everything:.0f}")
    print("4-bit product, 1024 x 1024, group 64: milliseconds")
    weight, scales, biases = mx.quantize(mx.random.normal((1024, 1024)), group_size=64, bits=4)
    packed = Quantized(weight, scales, biases, 64, 4)
    for rows in (1, 2, 3, 4, 8, 64, 512):
        x = mx.random.normal((rows, 1024))
        mx.eval(x)
        fused = milliseconds(lambda x=x: packed.fused(x, transpose=True))
        unpacked = milliseconds(lambda x=x: x @ packed.dense().T)
        print(f"  {rows:4d} rows  fused {fused:7.2f}  unpacked {unpacked:7.2f}")


if __name__ == "__main__":
    main()
