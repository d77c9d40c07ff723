"""ONNX Runtime: one kept session; arrays handed over per call, or bound once."""

import onnxruntime as ort
from problems import flops

from peers import SMALL_FLOPS, _onnx_model

VERSION = ort.__version__


def refuses(problem, mode):
    if mode == "training":
        return "ONNX Runtime's wheel does not train"
    # its kernels take double and then raise
    return "ONNX Runtime has no float64" if problem.dtype == "float64" else ""


def prepare(problem, mode, data, threads):
    model, feeds = _onnx_model.make(problem, data)
    variants = _session(problem, model, feeds, threads, "")
    if threads > 1 and flops(problem) < SMALL_FLOPS:
        variants |= _session(problem, model, feeds, 1, ", 1 thread")
    return variants


def _session(problem, model, feeds, threads, suffix):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def outputs(y):
        return {"y": _onnx_model.canonical(problem, y)}

    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y", "cpu")
    return {
        f"run{suffix}": (lambda: session.run(["y"], feeds)[0], outputs),
        f"bound{suffix}": (
            # with feeds, to keep them alive: the binding only points into these arrays
            lambda: (session.run_with_iobinding(binding), feeds),
            lambda _: outputs(binding.copy_outputs_to_cpu()[0]),
        ),
    }
