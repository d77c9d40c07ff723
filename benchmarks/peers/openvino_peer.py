"""OpenVINO: one compiled model, kept, with tensors bound once; from the same ONNX model."""

import numpy as np
import openvino as ov
from problems import flops

from peers import SMALL_FLOPS, _onnx_model

VERSION = ov.__version__.split("-")[0]


def refuses(problem, mode):
    if mode == "training":
        return "OpenVINO does not train"
    return "OpenVINO computes float64 in float32" if problem.dtype == "float64" else ""


def prepare(problem, mode, data, threads):
    model, feeds = _onnx_model.make(problem, data)
    variants = {"request": _request(problem, model, feeds, threads)}
    if threads > 1 and flops(problem) < SMALL_FLOPS:
        variants["request, 1 thread"] = _request(problem, model, feeds, 1)
    return variants


def _request(problem, model, feeds, threads):
    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(model=model),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()
    for name, array in feeds.items():
        request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def run():
        request.infer()
        return feeds  # keeps them alive: the tensors only point into these arrays

    def outputs(_):
        y = np.array(request.get_output_tensor(0).data)
        return {"y": _onnx_model.canonical(problem, y)}

    return run, outputs
