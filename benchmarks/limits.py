"""What a problem needs at least: seconds of this machine, and bytes of memory.

The time is a roofline: the products at the measured FMA peak, the weights that every step reads at
the measured bandwidth of the level that holds them, and the activations. The memory is what an
implementation that keeps nothing needless allocates.
"""

import math

import numpy as np
import problems

# The activations of one gate of one unit take as long as this many operations of the peak.
ACTIVATION = 68
ACTIVATIONS = {"rnn_tanh": 1, "rnn_relu": 0, "gru_reset_after": 3, "gru_reset_before": 3, "lstm": 5}

# What training may keep of every step, row and unit: the gates, the cell state and the output.
KEPT = {"rnn_tanh": 2, "rnn_relu": 2, "gru_reset_after": 5, "gru_reset_before": 5, "lstm": 6}
# A chunk of time: this many rows (t, n) for every thread, and at least those of one step.
CHUNK_ROWS = 128
# Python's objects, stacks of threads, and how exactly the system counts; large arrays lie in pages
# of 2 MiB.
SLACK = 1 << 20
HUGE_PAGE = 2 << 20


def least_time(problem, mode, machine, threads):
    """Seconds of the roofline by what they are spent on: "arithmetic", or a level of memory.

    Inside the time loop a batch is split over rows (each thread streams all recurrent weights) or
    over hidden units (each streams its part); the faster of the two counts.
    """
    peak = machine["peak"][problem.dtype]
    rate = {count: float(peak[str(count)]) * 1e9 for count in (1, threads)}
    size, H, G = np.dtype(problem.dtype).itemsize, problem.H, problems.GATES[problem.cell]
    pointwise = ACTIVATION * ACTIVATIONS[problem.cell] * H
    passes = 2 if mode == "training" else 1  # forward, and dh backward
    rows = problem.steps() / problem.T  # on average, in ragged batches
    busy = threads if rows > 1 else 1
    share = math.ceil(rows / busy)  # rows of a thread
    spent = {"arithmetic": 0.0}

    def spend(arithmetic, reading, level, times):
        bound = "arithmetic" if arithmetic >= reading else level
        spent[bound] = spent.get(bound, 0.0) + times * max(arithmetic, reading)

    for inputs in problem.layer_inputs():
        weights = size * G * H * H
        products = 2 * G * H * H
        by_rows = (
            products * share * busy / rate[busy],
            *_reading(machine, weights, weights * busy, busy, weights * busy),
        )
        by_units = (
            products * rows / rate[threads],
            *_reading(machine, weights / threads, weights, threads, weights),
        )
        loop = min(by_rows, by_units, key=lambda way: max(way[:2]))
        spend(*loop, problem.T * passes * problem.directions)
        # the input's products, the gradients of both weights, and dx
        outside = 2 * G * H * inputs + (4 * G * H * inputs + 2 * G * H * H) * (passes - 1)
        rest = problem.steps() * (outside + pointwise) / rate[threads]
        reading = (0.0, "")
        if rows * problem.T < 8:  # few rows: reading W_ih, too, takes longer than its products
            both = size * G * H * inputs
            reading = _reading(machine, both / threads, both, threads, both)
        spend(rest, *reading, problem.directions)
    return spent


def _reading(machine, of_thread, together, threads, amount):
    """Seconds to read weights once more that are read over and over, and from which level."""
    for level, capacity in sorted(machine["caches"].items()):
        if (of_thread if level in ("L1", "L2") else together) <= capacity:
            break
    else:
        level = "DRAM"
    return amount / (machine["bandwidth"][level][str(threads)] * 1e9), level


def memory(problem, mode, threads):
    """Bytes that a call may take at its peak, by what they are for; their sum is the bound."""
    size, H, D, L = np.dtype(problem.dtype).itemsize, problem.H, problem.directions, problem.layers
    G, rows = problems.GATES[problem.cell], problem.T * problem.N
    states = 2 if problem.cell == "lstm" else 1
    weights = [D * (G * H * (inputs + H) + 2 * G * H) for inputs in problem.layer_inputs()]
    at_once = min(rows, max(CHUNK_ROWS * max(2, threads), problem.N))
    of_row = (G + states) * H
    if mode == "training":  # x, h_{t-1} and their gradients
        of_row += 2 * (max(problem.layer_inputs()) + H)
    parts = {
        "chunk": at_once * of_row,
        "states": 4 * L * D * states * problem.N * H,
        "y": rows * D * H,
    }
    if mode == "inference":
        parts["packed weights"] = max(weights)
    if mode == "training":
        parts["y"] = 0
        parts["kept"] = KEPT[problem.cell] * rows * H * D * L
        # for forward and, transposed, for backward; one layer's gradients while they are summed
        parts["packed weights"] = 2 * sum(weights) + max(weights)
        parts["gradients"] = sum(weights) + rows * problem.I
    parts = {name: size * count for name, count in parts.items()}
    large = sum(part >= 2 * HUGE_PAGE for part in parts.values())
    return parts | {"slack": SLACK + large * HUGE_PAGE}
