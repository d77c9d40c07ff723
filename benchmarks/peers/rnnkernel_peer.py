"""rnnkernel itself. `rest` is inference with weights packed once: `freeze()`, `stream()`."""

import numpy as np
from data import layer_outputs, layer_state, make_layer

import rnnkernel as rk

VERSION = rk.__version__


def refuses(problem, mode):
    return ""  # has them all


def profile(run, calls=5):
    """The phases of a run, forward and backward together, as shares of the calling thread's time;
    of the run that took the median."""
    runs = []
    for _ in range(calls):
        with rk.profile() as p:
            run()
        phases = {}
        for record in p.records:
            for phase, spent in record.phases.items():
                phases[phase] = phases.get(phase, 0.0) + spent[0]
        runs.append(phases)
    phases = sorted(runs, key=lambda one: sum(one.values()))[calls // 2]
    whole = sum(phases.values())
    return {phase: spent / whole for phase, spent in phases.items()}


def prepare(problem, mode, data, threads):
    layer, state = make_layer(problem, data), layer_state(problem, data.states)
    rk.set_num_threads(threads)
    x, dy, options = data.x, data.dy, {}
    if problem.lengths is not None:
        options["lengths"] = np.array(problem.lengths)

    if mode == "training":

        def run():
            out = layer.forward(x, state, training=True, **options)
            return out.y, layer.backward(out, dy)

        return {"layer": (run, lambda result: layer_outputs(*result))}

    if mode == "rest" and problem.step:
        stream = layer.freeze().stream(batch_size=problem.N)
        row = np.ascontiguousarray(x[0])
        out = np.empty((problem.N, problem.H * problem.directions), problem.dtype)
        # the first step starts from zeros, as the drawn states of this mode are
        return {"stream": (lambda: stream.step(row, out=out), lambda y: {"y": y[None].copy()})}

    if mode == "inference":
        return {"layer": (lambda: layer(x, state, **options), lambda out: layer_outputs(out[0]))}

    frozen = layer.freeze()
    y = np.empty((problem.T, problem.N, problem.directions * problem.H), problem.dtype)
    return {
        "frozen": (lambda: frozen(x, state, **options), lambda out: layer_outputs(out[0])),
        "frozen, y given": (
            lambda: frozen.forward(x, state, out=y, **options),
            lambda out: layer_outputs(out.y),
        ),
    }
