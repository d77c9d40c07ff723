"""Whether layers follow one another in a wavefront, and directions go side by side, as is faster.

Inference at rest and forward in training, of both directions backward, too, I = H: by one team of
all threads, by up to as many teams as there are layers or directions, and as rnnkernel itself
chooses, timed in turn on all cores. The choice should take as long as the better way. It depends on
what it costs to work together, which is told with each line (0.05 to 1) and may change while this
runs.

    python benchmarks/shared_layers.py
    python benchmarks/shared_layers.py --kinds "2 layers" --cells GRU --sizes 64 --steps 500
"""

import argparse
import os

import numpy as np
from shared_steps import CELLS, print_means, time_ways

from rnnkernel import _backward, _stack, _teamwork

KINDS = {
    "2 layers": {"num_layers": 2},
    "3 layers": {"num_layers": 3},
    "both directions": {"bidirectional": True},
}


def teams(way):
    _stack.TEAMS = _backward.TEAMS = way


def calls(cls, options, H, T, N, threads):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, N, H)).astype(options["dtype"])
    layer = cls(H, H, rng=0, **options)
    frozen = layer.freeze()
    x.flags.writeable = False  # training keeps it without a copy
    named = {
        "rest": lambda: frozen(x, num_threads=threads),
        "forward": lambda: layer.forward(x, training=True, num_threads=threads),
    }
    if layer.bidirectional:
        out = layer.forward(x, training=True, num_threads=threads)
        dy = rng.standard_normal(out.y.shape).astype(x.dtype)
        named["backward"] = lambda: layer.backward(out, dy, num_threads=threads)
    return named


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256], help="H")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16], help="N")
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 200], help="T")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each line")
    arguments = parser.parse_args()

    over = {}
    for kind in arguments.kinds:
        options = KINDS[kind] | {"dtype": arguments.dtype}
        for case in (
            (cell, H, T, N)
            for cell in arguments.cells
            for H in arguments.sizes
            for T in arguments.steps
            for N in arguments.rows
        ):
            cell, H, T, N = case
            some = calls(CELLS[cell], options, H, T, N, arguments.threads)
            most = options.get("num_layers", 2)
            for name, call in some.items():
                took = time_ways(call, (1, most, None), teams, arguments.seconds)
                ratio = took[None] / min(took[1], took[most])
                over.setdefault(f"{kind}, {name}", []).append(ratio)
                print(
                    f"{kind:<15} {cell:<4} H{H:<3} T{T:<3} N{N:<2} {name:<8} one team "
                    f"{took[1]:7.0f} us, {most} teams {took[most]:7.0f}, as chosen over the better "
                    f"{ratio:.2f}, teamwork {_teamwork.cost(arguments.threads):.2f}",
                    flush=True,
                )
    print_means(over)


if __name__ == "__main__":
    main()
