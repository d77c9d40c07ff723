"""Whole steps of training, as users make them: layers, readout, loss, BPTT, clipping and Adam.

Beside PyTorch where it is installed, with its fused Adam, each in a process of its own and in turn.
Both begin with the same weights, and must come to the same losses before anything is timed.

    python benchmarks/training_steps.py
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from statistics import median

import numpy as np

# cell, layers, T, N, inputs, H, classes, whether inputs are ids with an embedding of that width
MODELS = {
    "policy": ("GRU", 1, 32, 8, 8, 32, 4, False),
    "series": ("GRU", 1, 168, 64, 16, 64, 10, False),
    "characters": ("LSTM", 2, 50, 50, 64, 128, 65, True),
    "words": ("LSTM", 1, 35, 20, 256, 256, 10_000, True),
    "speech": ("LSTM", 1, 100, 16, 40, 512, 30, False),
    "few rows": ("LSTM", 1, 25, 4, 512, 512, 30, False),
}
PARTS = ("forward", "readout and loss", "backward", "clipping", "Adam")
MAX_NORM, LR = 1.0, 1e-3
PAUSE = 0.05  # seconds, after which idle threads of the other's are asleep


def drawn(model):
    """The inputs, the targets, and the embedding or None."""
    _, _, T, N, width, _, classes, of_ids = MODELS[model]
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, (T, N))
    if of_ids:
        embedding = rng.standard_normal((classes, width)).astype(np.float32)
        return rng.integers(0, classes, (T, N)), targets, embedding
    return rng.standard_normal((T, N, width)).astype(np.float32), targets, None


def layer_and_readout(model):
    import rnnkernel as rk

    cell, layers, _, _, width, H, classes, _ = MODELS[model]
    return getattr(rk, cell)(width, H, layers, rng=0), rk.Linear(H, classes, rng=1)


def rnnkernel_step(model, threads):
    """What makes a step: its loss, and when its parts were over."""
    import rnnkernel as rk

    rk.set_num_threads(threads)
    x, targets, embedding = drawn(model)
    layer, readout = layer_and_readout(model)
    of_embedding = {} if embedding is None else {"embedding": embedding}
    adam = rk.Adam([layer.parameters, readout.parameters, of_embedding], lr=LR)

    def step():
        times = [time.perf_counter()]

        def over():
            times.append(time.perf_counter())

        out = layer.forward(x, embedding=embedding, training=True)
        over()
        loss, dlogits = rk.softmax_cross_entropy(readout(out.y), targets)
        of_readout = readout.backward(out.y, dlogits)
        over()
        grads = layer.backward(out, of_readout.x, input_grad=embedding is not None)
        over()
        gradients = [grads.parameters, of_readout.parameters, {}]
        if embedding is not None:
            gradients[2]["embedding"] = grads.embedding
        rk.clip_grad_norm(gradients, MAX_NORM)
        over()
        adam.step(gradients)
        over()
        return loss, times

    return step


def torch_step(model, threads):
    import torch

    torch.set_num_threads(threads)
    cell, layers, _, _, width, H, classes, _ = MODELS[model]
    x, targets, embedding = drawn(model)
    x, targets = torch.from_numpy(x), torch.from_numpy(targets).flatten()
    layer, readout = getattr(torch.nn, cell)(width, H, layers), torch.nn.Linear(H, classes)
    for module, ours in zip((layer, readout), layer_and_readout(model), strict=True):
        module.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    parameters = [*layer.parameters(), *readout.parameters()]
    if embedding is not None:
        embed = torch.nn.Embedding.from_pretrained(torch.from_numpy(embedding), freeze=False)
        parameters += embed.parameters()
    adam = torch.optim.Adam(parameters, lr=LR, fused=True)

    def step():
        times = [time.perf_counter()]

        def over():
            times.append(time.perf_counter())

        adam.zero_grad()
        y = layer(x if embedding is None else embed(x))[0]
        over()
        loss = torch.nn.functional.cross_entropy(readout(y).flatten(0, 1), targets)
        over()
        loss.backward()  # the readout's, too
        over()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        over()
        adam.step()
        over()
        return loss.item(), times

    return step


STEPS = {"rnnkernel": rnnkernel_step, "PyTorch": torch_step}


def work(library, model, threads):
    """The losses of the first three steps; then, for every line that comes in, the seconds of steps
    and of their parts."""
    step = STEPS[library](model, threads)
    print(json.dumps([step()[0] for _ in range(3)]), flush=True)
    for line in sys.stdin:
        until, took = time.perf_counter() + float(line), []
        while not took or time.perf_counter() < until:
            took.append(np.diff(step()[1]).tolist())
        print(json.dumps(took), flush=True)


def compare(model, libraries, threads, rounds, seconds):
    """By library, the medians of a step and of its parts, in seconds."""
    arguments = ["--threads", str(threads), "--models", model, "--work"]
    # OpenBLAS is not to spin for longer than PAUSE
    environment = os.environ | {"OPENBLAS_THREAD_TIMEOUT": "22"}
    environment |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {
        library: subprocess.Popen(
            [sys.executable, __file__, *arguments, library], env=environment, **pipes
        )
        for library in libraries
    }
    losses = [json.loads(worker.stdout.readline()) for worker in workers.values()]
    for others in losses[1:]:
        np.testing.assert_allclose(others, losses[0], rtol=1e-4)
    took = {library: [] for library in libraries}
    for _ in range(rounds):
        for library, worker in workers.items():
            time.sleep(PAUSE)
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
            took[library] += json.loads(worker.stdout.readline())
    for worker in workers.values():
        worker.communicate()
    return {
        library: (median(map(sum, steps)), [median(part) for part in zip(*steps, strict=True)])
        for library, steps in took.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one library in a round")
    parser.add_argument("--work", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.models[0], arguments.threads)
        return
    libraries = [name for name in STEPS if name == "rnnkernel" or find_spec("torch")]
    print(f"milliseconds of a step, {arguments.threads} threads; of PyTorch's parts the readout's")
    print("gradients are in backward")
    for model in arguments.models:
        took = compare(model, libraries, arguments.threads, arguments.rounds, arguments.seconds)
        ratio = f", {took['PyTorch'][0] / took['rnnkernel'][0]:.2f}" if len(took) > 1 else ""
        print(f"{model}: {MODELS[model]}{ratio}")
        for library, (step, parts) in took.items():
            named = (f"{name} {part * 1e3:.2f}" for name, part in zip(PARTS, parts, strict=True))
            print(f"    {library:<9} {step * 1e3:8.2f}: {', '.join(named)}", flush=True)


if __name__ == "__main__":
    main()
