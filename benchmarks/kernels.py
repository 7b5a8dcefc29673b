"""The vocabulary head, the parts of a layer, and quantised products both ways: `python benchmarks/kernels.py`.

It runs on the device that MLX uses here; with names, only those parts of it: `memory`, `time`, `tiles`, `layers`,
`products`. Two ways of doing one thing are timed in turn, in one process, and compared by their fastest runs: on a
shared machine only such ratios mean something.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version

import mlx_email  # noqa: F401 - loads the fast BLAS, which must come before mlx

# isort: split
import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import activations

from mlx_email.kernels import attention, gate, logprob
from mlx_email.kernels.logprob import linear_logprob
from mlx_email.kernels.quantized import Quantized, packed

MIB = 2**20
SHAPES = ((4096, 192, 128), (32_768, 192, 512), (49_152, 128, 576), (151_936, 512, 896))  # vocabulary, tokens, width
QWEN = 151_936, 4096, 896


def head_of(vocabulary: int, width: int, bits: int) -> nn.Module:
    """A head without bias, dense for bits = 0."""
    head = nn.Linear(width, vocabulary, bias=False)
    head = head.to_quantized(64, bits) if bits else head
    mx.eval(head.parameters())
    return head


def inputs(tokens: int, vocabulary: int, width: int) -> tuple[mx.array, mx.array]:
    hidden, targets = mx.random.normal((tokens, width)), mx.random.randint(0, vocabulary, (tokens,))
    mx.eval(hidden, targets)
    return hidden, targets


def plain(hidden: mx.array, head: nn.Module, targets: mx.array, *, gradient: bool = True) -> mx.array:  # noqa: ARG001
    """The log-softmax of all logits. On the CPU a quantised head is unpacked whole: its fused op takes minutes."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    logits = hidden @ packed(head).dense().T if on_cpu and isinstance(head, nn.QuantizedLinear) else head(hidden)
    logits = logits.astype(mx.float32)
    return mx.take_along_axis(logits - mx.logsumexp(logits, axis=-1, keepdims=True), targets[:, None], -1)[:, 0]


def work(function: Callable[..., mx.array], head: nn.Module, *arrays: mx.array, gradient: bool) -> Callable[[], object]:
    """Values alone, or values and the gradient by hidden, as something to call."""
    hidden, targets = arrays
    if gradient:
        return lambda: mx.value_and_grad(lambda h: function(h, head, targets).sum())(hidden)
    return lambda: function(hidden, head, targets, gradient=False)


def peak(function: Callable[[], object]) -> float:
    """Peak memory of a call beyond what was in use, in MiB."""
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(function())
    return (mx.get_peak_memory() - before) / MIB


def fastest(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of the fastest call of each, called in turn; the first calls are not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            mx.eval(function())
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: min(of[1:]) for name, of in times.items()}


def memory() -> None:
    print("linear_logprob: peak MiB beyond weights and inputs")
    for tokens in (8192, 16_384, 65_536):
        arrays, head = inputs(tokens, 4096, 8), head_of(4096, 8, 0)
        with_it, without = (peak(work(linear_logprob, head, *arrays, gradient=gradient)) for gradient in (True, False))
        all_logits = tokens * 4096 * 4 / MIB
        print(f"  4,096 x {tokens}: with gradient {with_it:.0f}, without {without:.0f}; all logits {all_logits:.0f}")
    vocabulary, tokens, width = QWEN
    for bits in (0, 4):
        head = head_of(vocabulary, width, bits)
        small, large = (peak(work(plain, head, *inputs(rows, vocabulary, width), gradient=True)) for rows in (128, 256))
        theirs = small + (large - small) * (tokens - 128) / 128  # a straight line: the whole does not fit everywhere
        ours = peak(work(linear_logprob, head, *inputs(tokens, vocabulary, width), gradient=True))
        name = f"{bits} bits" if bits else "dense"
        print(
            f"  {vocabulary} x {tokens} x {width}, {name}: {ours:.0f}, log-softmax {theirs:.0f}: 1/{theirs / ours:.0f}"
        )


def times() -> None:
    print("linear_logprob against the log-softmax: milliseconds, and how many times faster")
    for vocabulary, tokens, width in SHAPES:
        for bits in (0, 4):
            head, arrays = head_of(vocabulary, width, bits), inputs(tokens, vocabulary, width)
            line = f"  {vocabulary} x {tokens} x {width}, {f'{bits} bits' if bits else 'dense'}:"
            for gradient in (True, False):
                took = fastest(
                    {
                        "ours": work(linear_logprob, head, *arrays, gradient=gradient),
                        "plain": work(plain, head, *arrays, gradient=gradient),
                    },
                    3 if vocabulary > 100_000 else 9,
                )
                kind = "with gradient" if gradient else "without"
                line += f"  {kind} {took['ours']:.1f} ({took['plain'] / took['ours']:.1f} x)"
            print(line)


def tiles() -> None:
    """What CPU_TILE and GPU_TILE are set by."""
    vocabulary, tokens, width = 32_768, 1024, 512
    name = "CPU_TILE" if mx.default_device() == mx.Device(mx.cpu) else "GPU_TILE"
    print(f"{name} at {vocabulary} x {tokens} x {width}, dense (0 bits) and 4 bits")
    sizes = [(rows, columns) for rows in (256, 512, 1024) for columns in (1024, 2048, 4096, 16_384)]
    chosen = getattr(logprob, name)
    for bits in (0, 4):
        head, arrays = head_of(vocabulary, width, bits), inputs(tokens, vocabulary, width)
        run = work(linear_logprob, head, *arrays, gradient=True)

        def tiled(size: tuple[int, int], run: Callable[[], object]) -> object:
            setattr(logprob, name, size)
            return run()

        functions = {f"{size[0]} x {size[1]}": partial(tiled, size, run) for size in sizes}
        peaks = {key: peak(function) for key, function in functions.items()}
        took = fastest(functions, 3)
        for size, milliseconds in took.items():
            print(f"  {bits} bits, {size}: {milliseconds:.0f} ms, {peaks[size]:.0f} MiB")
    setattr(logprob, name, chosen)


def layers() -> None:
    """Attention of prompts and of branches, and the gate, beside MLX's: what BLOCK is set by."""
    print("Attention and gate, forward and backward: milliseconds, and how many times faster than MLX's")
    width = 64
    for batch, heads, shared, length in ((1, 8, 8, 383), (8, 8, 8, 224), (4, 9, 3, 512)):
        given = [mx.random.normal((batch, h, length, width)) for h in (heads, shared, shared)]
        chosen = attention.BLOCK
        for block in (48, 96, 192):
            setattr(attention, "BLOCK", block)  # noqa: B010 - a type checker takes it for a constant
            name = f"causal, {batch} x {length}, {heads} heads of {shared}, blocks of {block}"
            ours = partial(attention.attention, scale=0.1, mask="causal")
            beside(name, ours, partial(mx.fast.scaled_dot_product_attention, scale=0.1, mask="causal"), given)
        attention.BLOCK = chosen
    for batch, group in ((1, 8), (4, 2)):
        own = [mx.random.normal((batch * group, 8, 32, width)) for _ in range(3)]
        prompt = [mx.random.normal((batch, 8, 383, width)) for _ in range(2)]
        mask = mx.broadcast_to(mx.arange(415)[None] <= mx.arange(383, 415)[:, None], (batch * group, 1, 32, 415))

        def branched(q: mx.array, k: mx.array, v: mx.array, pk: mx.array, pv: mx.array, mask: mx.array) -> mx.array:
            return attention.branched(q, (pk, pv), (k, v), scale=0.1, mask=mask)

        def copied(q: mx.array, k: mx.array, v: mx.array, pk: mx.array, pv: mx.array, mask: mx.array) -> mx.array:
            repeats = len(q) // len(pk)
            joined = [mx.concatenate([mx.repeat(p, repeats, axis=0), own], axis=2) for p, own in ((pk, k), (pv, v))]
            return mx.fast.scaled_dot_product_attention(q, *joined, scale=0.1, mask=mask)

        name = f"branches, {batch} x {group} of 32 after 383"
        beside(name, partial(branched, mask=mask), partial(copied, mask=mask), [*own, *prompt])
    gates = [mx.random.normal((640, 1408)) for _ in range(2)]
    beside("gate, 640 x 1,408", gate.swiglu, activations.swiglu, gates)


def beside(name: str, ours: Callable[..., mx.array], theirs: Callable[..., mx.array], given: list[mx.array]) -> None:
    """Print how long both take, values and gradients by all inputs."""
    mx.eval(given)

    def both(function: Callable[..., mx.array]) -> Callable[[], object]:
        gradient = mx.value_and_grad(lambda *inputs: function(*inputs).sum(), argnums=list(range(len(given))))
        return lambda: gradient(*given)

    took = fastest({"ours": both(ours), "MLX": both(theirs)}, 9)
    print(f"  {name:50} {took['ours']:.1f} ({took['MLX'] / took['ours']:.1f} x)")


def products() -> None:
    """What FORWARD_ROWS and BACKWARD_ROWS are set by."""
    rows = (1, 2, 3, 4, 6, 8, 12, 16, 64, 512)
    print("Quantised products: time of the fused op over that of unpacking and a dense product, by rows")
    print(" " * 42 + "".join(f"{r:7d}" for r in rows))
    for outputs, width in ((576, 1536), (1536, 576), (2048, 2048)):
        for bits in (4, 8):
            for group in (32, 64):
                matrix = Quantized(*mx.quantize(mx.random.normal((outputs, width)), group, bits), group, bits)
                mx.eval(*matrix[:3])
                for transpose in (True, False):
                    ratios = [
                        ratio(matrix, mx.random.normal((r, width if transpose else outputs)), transpose=transpose)
                        for r in rows
                    ]
                    kind = "forward" if transpose else "backward"
                    name = f"{outputs} x {width}, {bits} bits, group {group} {kind}"
                    print(f"  {name:40}" + "".join(f"{value:7.2f}" for value in ratios))


def ratio(matrix: Quantized, x: mx.array, *, transpose: bool) -> float:
    """How many times longer the fused op takes."""
    mx.eval(x)
    took = fastest(
        {
            "fused": lambda: matrix.product(x, transpose=transpose),
            "unpacked": lambda: x @ (matrix.dense().T if transpose else matrix.dense()),
        },
        3 if len(x) > 16 else 15,
    )
    return took["fused"] / took["unpacked"]


PARTS = {"memory": memory, "time": times, "tiles": tiles, "layers": layers, "products": products}


def main() -> None:
    print(f"MLX {version('mlx')}, {mx.default_device()}")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
