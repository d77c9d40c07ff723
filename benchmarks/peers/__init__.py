"""One module per library: how it runs a problem, at its best.

A module `<name>_peer.py` has

    VERSION             of the library
    refuses(problem, mode) -> str           why it cannot run a problem; "" where it can
    prepare(problem, mode, data, threads) -> {variant: (run, outputs)} or (run, outputs, select)

`run()` is one timed call; `outputs(result)` makes named arrays of what it returned, as data.py
names them; `select()`, untimed, sets what the variant wants of the whole process. Of several
variants the worker takes the one that is faster here. Preparing is not
timed: sessions, compiled graphs and converted weights are kept, as a user would keep them.
"""

# Below this much arithmetic one thread may be faster than all, and a peer is tried with both.
SMALL_FLOPS = 2e8

NAMES = ("rnnkernel", "torch", "onnxruntime", "openvino", "jax", "numpy")
