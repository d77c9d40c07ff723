"""A problem as an ONNX model, for ONNX Runtime and OpenVINO."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPERATORS = {"lstm": "LSTM", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
OPERATORS |= {"gru_reset_after": "GRU", "gru_reset_before": "GRU"}
# Blocks of rows from the canonical order: LSTM i f g o to i o f c, GRU r z n to z r h.
ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}


def make(problem, data):
    """The serialized model and what to feed it, by name; its output is called y."""
    operator, H, D = OPERATORS[problem.cell], problem.H, problem.directions
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(problem.dtype))
    attributes = {"hidden_size": H}
    if D == 2:
        attributes["direction"] = "bidirectional"
    if operator == "GRU":
        attributes["linear_before_reset"] = int(problem.cell == "gru_reset_after")
    if problem.cell == "rnn_relu":
        attributes["activations"] = ["Relu"] * D

    nodes, constants, feeds = [], [], {"x": data.x}
    inputs = [helper.make_tensor_value_info("x", kind, data.x.shape)]
    lengths = ""
    if problem.lengths is not None:
        lengths, feeds["lengths"] = "lengths", np.array(problem.lengths, np.int32)
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [problem.N]))

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    layer_input = "x"
    for k in range(problem.layers):
        directions = [f"_l{k}{reverse}" for reverse in ("", "_reverse")[:D]]

        def stacked(name, directions=directions):
            return np.stack([_blocks(data.weights[name + d], operator) for d in directions])

        names = [
            layer_input,
            constant(f"W{k}", stacked("weight_ih")),
            constant(f"R{k}", stacked("weight_hh")),
            constant(f"B{k}", np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)),
            lengths,
        ]
        for s, state in enumerate(data.states or ()):
            name = f"state{s}_{k}"
            feeds[name] = np.ascontiguousarray(state[k * D : (k + 1) * D])
            inputs.append(helper.make_tensor_value_info(name, kind, feeds[name].shape))
            names.append(name)
        last = k == problem.layers - 1
        y = "y" if last else f"y{k}"
        nodes.append(helper.make_node(operator, names, [y], **attributes))
        if not last:  # (T, D, N, H) to (T, N, D*H)
            if D == 2:
                nodes.append(helper.make_node("Transpose", [y], [y + "t"], perm=[0, 2, 1, 3]))
                shape = constant(f"shape{k}", np.array([problem.T, problem.N, D * H]))
                nodes.append(helper.make_node("Reshape", [y + "t", shape], [y + "r"]))
            else:
                axis = constant(f"axis{k}", np.array([1]))
                nodes.append(helper.make_node("Squeeze", [y, axis], [y + "r"]))
            layer_input = y + "r"
    result = helper.make_tensor_value_info("y", kind, [problem.T, D, problem.N, H])
    graph = helper.make_graph(nodes, problem.name, inputs, [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return model.SerializeToString(), feeds


def canonical(problem, y):
    """The model's (T, D, N, H) as (T, N, D*H)."""
    return y.transpose(0, 2, 1, 3).reshape(problem.T, problem.N, -1)


def _blocks(array, operator):
    blocks = np.split(array, len(ORDER[operator]))
    return np.concatenate([blocks[g] for g in ORDER[operator]])
