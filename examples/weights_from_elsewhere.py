"""Weights that another library has trained, as the parameters of a layer here.

PyTorch's names, shapes and gate order are the layers' own: `layer.load_state_dict` takes what
`module.state_dict()` has. Keras and ONNX have their gates in another order, and Keras its matrices
transposed. Each function below makes a layer of such weights; `main` holds it, with random ones, to
the equations of the other library's documentation, in NumPy.

    python examples/weights_from_elsewhere.py
"""

import numpy as np

import rnnkernel as rk

# For each block of rows here, gates r z n and i f g o, which of theirs it is.
GRU_OF_Z_R_H = (1, 0, 2)
LSTM_OF_I_F_C_O = (0, 1, 2, 3)
LSTM_OF_I_O_F_C = (0, 2, 3, 1)


def reordered(array, gates):
    """Blocks of rows, one a gate, in another order."""
    return np.concatenate([np.split(array, len(gates))[gate] for gate in gates])


def layer_of(kind, gates, weight_ih, weight_hh, bias_ih, bias_hh, **options):
    """A layer with these weights, whose gates are another library's."""
    layer = kind(weight_ih.shape[1], weight_hh.shape[1], dtype=weight_ih.dtype, **options)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    theirs = zip(names, (weight_ih, weight_hh, bias_ih, bias_hh), strict=True)
    layer.load_state_dict({name: reordered(array, gates) for name, array in theirs})
    return layer


def from_torch(kind, state_dict, prefix="", **options):
    """A layer of a module's state_dict; `prefix` is its name and a dot, in one of a whole model.
    What no weight tells, as `nonlinearity="relu"`, is to be said."""
    arrays = {
        name.removeprefix(prefix): np.asarray(tensor)
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
    first, state = arrays["weight_ih_l0"], arrays["weight_hh_l0"]
    hidden_size = state.shape[1]
    if "weight_hr_l0" in arrays:
        options["proj_size"], hidden_size = arrays["weight_hr_l0"].shape
    options |= {
        "num_layers": sum(f"weight_ih_l{k}" in arrays for k in range(len(arrays))),
        "bidirectional": "weight_ih_l0_reverse" in arrays,
        "bias": "bias_ih_l0" in arrays,
    }
    layer = kind(first.shape[1], hidden_size, dtype=first.dtype, **options)
    layer.load_state_dict(arrays)
    return layer


def from_keras_lstm(kernel, recurrent_kernel, bias):
    """`keras.layers.LSTM.get_weights()`: one bias, where the layers here add two."""
    return layer_of(
        rk.LSTM, LSTM_OF_I_F_C_O, kernel.T, recurrent_kernel.T, bias, np.zeros_like(bias)
    )


def from_keras_gru(kernel, recurrent_kernel, bias):
    """`keras.layers.GRU.get_weights()`, with reset_after=True as it is unless told."""
    return layer_of(rk.GRU, GRU_OF_Z_R_H, kernel.T, recurrent_kernel.T, bias[0], bias[1])


def from_onnx(kind, W, R, B, linear_before_reset=0):
    """The inputs W, R and B of an ONNX LSTM or GRU of one direction."""
    gates, options = LSTM_OF_I_O_F_C, {}
    if kind is rk.GRU:
        gates, options = GRU_OF_Z_R_H, {"reset_after": bool(linear_before_reset)}
    return layer_of(kind, gates, W[0], R[0], *np.split(B[0], 2), **options)


# -- the other libraries' equations ----------------------------------------------------------------


def s(a):
    return 1 / (1 + np.exp(-a))


def keras_lstm(x, kernel, recurrent_kernel, bias):
    h = c = np.zeros((x.shape[1], len(recurrent_kernel)))
    for x_t in x:
        i, f, g, o = np.split(x_t @ kernel + h @ recurrent_kernel + bias, 4, axis=1)
        c = s(f) * c + s(i) * np.tanh(g)
        h = s(o) * np.tanh(c)
    return h


def keras_gru(x, kernel, recurrent_kernel, bias):
    h = np.zeros((x.shape[1], len(recurrent_kernel)))
    for x_t in x:
        x_z, x_r, x_h = np.split(x_t @ kernel + bias[0], 3, axis=1)
        h_z, h_r, h_h = np.split(h @ recurrent_kernel + bias[1], 3, axis=1)
        z, r = s(x_z + h_z), s(x_r + h_r)
        h = z * h + (1 - z) * np.tanh(x_h + r * h_h)
    return h


def onnx_lstm(x, W, R, B):
    h = c = np.zeros((x.shape[1], R.shape[2]))
    for x_t in x:
        i, o, f, g = np.split(x_t @ W[0].T + h @ R[0].T + sum(np.split(B[0], 2)), 4, axis=1)
        c = s(f) * c + s(i) * np.tanh(g)
        h = s(o) * np.tanh(c)
    return h


def onnx_gru(x, W, R, B, linear_before_reset):
    h, (W_b, R_b) = np.zeros((x.shape[1], R.shape[2])), np.split(B[0], 2)
    (R_z, R_r, R_h), (b_z, b_r, b_h) = np.split(R[0], 3), np.split(R_b, 3)
    for x_t in x:
        x_z, x_r, x_h = np.split(x_t @ W[0].T + W_b, 3, axis=1)
        z, r = s(x_z + h @ R_z.T + b_z), s(x_r + h @ R_r.T + b_r)
        of_h = r * (h @ R_h.T + b_h) if linear_before_reset else (r * h) @ R_h.T + b_h
        h = (1 - z) * np.tanh(x_h + of_h) + z * h
    return h


def main(seed=0):
    rng = np.random.default_rng(seed)
    T, N, I, H = 20, 3, 5, 8  # noqa: E741

    def weights(*shape):
        return rng.uniform(-0.7, 0.7, shape).astype(np.float32)

    x = rng.standard_normal((T, N, I)).astype(np.float32)
    errors = {}

    def check(name, layer, expected):
        y, _ = layer(x)
        errors[name] = np.abs(y[-1] - expected).max()

    lstm = weights(I, 4 * H), weights(H, 4 * H), weights(4 * H)
    check("Keras LSTM", from_keras_lstm(*lstm), keras_lstm(x, *lstm))
    gru = weights(I, 3 * H), weights(H, 3 * H), weights(2, 3 * H)
    check("Keras GRU", from_keras_gru(*gru), keras_gru(x, *gru))
    lstm = weights(1, 4 * H, I), weights(1, 4 * H, H), weights(1, 8 * H)
    check("ONNX LSTM", from_onnx(rk.LSTM, *lstm), onnx_lstm(x, *lstm))
    for before in (0, 1):
        gru = weights(1, 3 * H, I), weights(1, 3 * H, H), weights(1, 6 * H)
        name = f"ONNX GRU, linear_before_reset={before}"
        check(name, from_onnx(rk.GRU, *gru, before), onnx_gru(x, *gru, before))
    lstm = weights(4 * H, I), weights(4 * H, H), weights(4 * H), weights(4 * H)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    model = {f"encoder.{name}": array for name, array in zip(names, lstm, strict=True)}
    expected = keras_lstm(x, lstm[0].T, lstm[1].T, lstm[2] + lstm[3])  # but for that the same
    check("PyTorch", from_torch(rk.LSTM, model, "encoder."), expected)

    for name, error in errors.items():
        print(f"{name}: off by at most {error:.1e} after {T} steps")
    return float(max(errors.values()))


if __name__ == "__main__":
    main()
