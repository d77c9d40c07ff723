"""Packed weights stay with a layer from call to call, and never one call longer than they may."""

import copy
import gc
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import rnnkernel as rk
from helpers import WITHOUT_GIL

T, N, H = 3, 2, 7
INPUTS = 5


def make(cell="LSTM", **options):
    return getattr(rk, cell)(INPUTS, H, rng=1, **options)


def inputs(seed=2, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((T, N, INPUTS)).astype(dtype)


def rest(layer):
    """Calls it until it keeps its weights."""
    for _ in range(2):
        layer(inputs())
    assert layer._kept.weights is not None


def expect_present(layer, x=None):
    """What a layer gives is what another with the parameters that it has now gives."""
    x = inputs() if x is None else x
    other = copy.deepcopy(layer)
    assert other._kept.weights is None
    y, state = layer(x)
    expected, expected_state = other(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.array(state), np.array(expected_state))
    return y


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_they_stay_from_the_second_call_on_with_equal_bits(cell, options, dtype):
    layer, x = make(cell, dtype=dtype, **options), inputs(dtype=dtype)
    first, first_state = layer(x)
    assert layer._kept.weights is None
    for call in range(3):
        y, state = layer(x)
        assert layer._kept.weights is not None, call
        np.testing.assert_array_equal(y, first)
        np.testing.assert_array_equal(np.array(state), np.array(first_state))


def test_they_stay_where_only_forward_is_called():
    layer, x = make(), inputs()
    first = layer.forward(x, lengths=[3, 1]).y
    layer.forward(x, lengths=[3, 1])
    assert layer._kept.weights is not None
    np.testing.assert_array_equal(layer.forward(x, lengths=[3, 1]).y, first)
    np.testing.assert_array_equal(layer.forward(x).y, layer(x)[0])


def test_ids_find_their_columns_in_weights_that_stay():
    layer, ids = make(), np.array([[0, 4], [2, 2], [1, 0]])
    first = layer.forward(ids).y
    rest(layer)
    np.testing.assert_array_equal(layer.forward(ids).y, first)


def test_a_trace_reads_weights_that_stay():
    layer, x = make("GRU"), inputs()
    first = layer.forward(x, trace=True)
    rest(layer)
    again = layer.forward(x, trace=True)
    for name in ("h", "r", "z", "n"):
        np.testing.assert_array_equal(again.trace[0][name], first.trace[0][name])


def test_a_loaded_layer_keeps_them(tmp_path):
    rk.save(make(), tmp_path / "layer.safetensors")
    rest(rk.load(tmp_path / "layer.safetensors"))


def write(layer):
    layer.parameters["weight_hh_l0"][1, 2] = 3


def scale(layer):
    layer.parameters["weight_ih_l0"] *= 2


def replace(layer):
    layer.parameters["bias_hh_l0"] = np.ones(4 * H, np.float32)


def assign(layer):
    layer.parameters = {name: -array for name, array in layer.state_dict().items()}


def load(layer):
    layer.load_state_dict({name: array + 1 for name, array in layer.state_dict().items()})


def step(layer):
    optimizer = rk.Adam(layer.parameters, lr=0.5)
    x = inputs()
    out = layer.forward(x, training=True)
    optimizer.step(layer.backward(out, np.ones_like(out.y)).parameters)


@pytest.mark.parametrize("change", [write, scale, replace, assign, load, step])
def test_a_change_takes_effect_at_the_next_call(change):
    layer = make()
    rest(layer)
    before = layer(inputs())[0]
    change(layer)
    gc.collect()
    assert (expect_present(layer) != before).any()
    rest(layer)


HOLDERS = {
    "dict": lambda layer: layer.parameters,
    "array": lambda layer: layer.parameters["weight_hh_l0"],
    "view": lambda layer: layer.parameters["weight_hh_l0"][1:, :2],
    "view of a view": lambda layer: layer.parameters["weight_hh_l0"].T[1:][1:],
    "buffer": lambda layer: memoryview(layer.parameters["weight_hh_l0"]),
    "interface": lambda layer: np.asarray(Interface(layer.parameters["weight_hh_l0"])),
    "weak reference": lambda layer: weakref.ref(layer.parameters["weight_hh_l0"]),
    "values": lambda layer: layer.parameters.values(),
    "copy": copy.copy,
    "frozen": lambda layer: (layer.freeze(), layer.parameters)[1],
    "optimizer": lambda layer: rk.Adam(layer.parameters, lr=1.0),
}
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":  # before, what comes so is read-only
    HOLDERS["DLPack"] = lambda layer: np.from_dlpack(layer.parameters["weight_hh_l0"])


class Interface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


def array_of(name, held):
    """The parameter, as its holder comes to it."""
    if name in ("dict", "frozen"):
        return held["weight_hh_l0"]
    if name == "weak reference":
        return held()
    if name == "values":
        return list(held)[1]
    if name == "copy":
        return held.parameters["weight_hh_l0"]
    return np.asarray(held)


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("kept_before", [False, True])
def test_who_holds_parameters_may_write_at_any_time(name, kept_before):
    layer = make()
    if kept_before:
        rest(layer)
    held = HOLDERS[name](layer)
    for _ in range(3):
        before = layer(inputs())[0]
        assert layer._kept.weights is None
        if name == "optimizer":
            held.step({key: np.ones_like(a) for key, a in layer.state_dict().items()})
        else:
            array = array_of(name, held)
            array[...] = np.asarray(array) + 1
            del array
        assert (layer(inputs())[0] != before).any()
        expect_present(layer)
    del held
    rest(layer)
    expect_present(layer)


def test_who_held_them_before_they_were_looked_for_is_found():
    layer = make()
    view = layer.parameters["weight_ih_l0"][0]
    for _ in range(4):
        layer(inputs())
    view[...] = 5
    expect_present(layer)


def test_memory_of_others_never_stays():
    memory = bytearray(4 * 4 * H * H)
    shared = np.frombuffer(memory, np.float32).reshape(4 * H, H)
    layer = make()
    layer.parameters["weight_hh_l0"] = shared
    del shared
    for _ in range(4):
        layer(inputs())
    assert layer._kept.weights is None
    np.frombuffer(memory, np.float32)[...] = 2
    expect_present(layer)


def pickled(layer, protocol=5):
    return pickle.loads(pickle.dumps(layer, protocol))


def memory_of(layer, name="weight_hh_l0"):
    """What an array looks at that was pickled by protocol 5."""
    array = layer.parameters[name]
    while isinstance(array, np.ndarray):
        array = array.base
    return array


HOLDERS_OF_MEMORY = {
    "array": lambda memory: np.frombuffer(memory, np.float32),
    "memoryview": lambda memory: memory,
    "one made of it": lambda memory: memoryview(memory),
    "a part of it": lambda memory: memory[:16],
    "bytearray": lambda memory: memory.obj,
    "array of that": lambda memory: np.frombuffer(memory.obj, np.float32),
    "weak reference": weakref.ref,
}


@pytest.mark.parametrize("name", HOLDERS_OF_MEMORY)
@pytest.mark.parametrize("kept_before", [False, True])
def test_who_holds_memory_of_a_pickled_layer_may_write_at_any_time(name, kept_before):
    layer = pickled(make())
    if kept_before:
        rest(layer)
    held = HOLDERS_OF_MEMORY[name](memory_of(layer))
    for _ in range(3):
        before = layer(inputs())[0]
        assert layer._kept.weights is None
        bytes_held = held() if name == "weak reference" else held
        array = np.frombuffer(bytes_held, np.float32)
        array += 1
        del array, bytes_held
        assert (layer(inputs())[0] != before).any()
        expect_present(layer)
    del held
    rest(layer)
    expect_present(layer)


def test_a_bad_parameter_is_found_at_every_call():
    layer = make()
    rest(layer)
    layer.parameters["bias_hh_l0"] = np.zeros(3, np.float32)
    for _ in range(4):
        with pytest.raises(ValueError, match=r"parameters\['bias_hh_l0'\]"):
            layer(inputs())
    with pytest.raises(ValueError, match=r"parameters\['bias_hh_l0'\]"):
        layer.forward(inputs(), lengths=[1, 2])


def test_training_keeps_nothing_and_disturbs_nothing():
    layer, x = make(), inputs()
    for _ in range(4):
        layer.forward(x, training=True)
    assert layer._kept.weights is None
    rest(layer)
    out = layer.forward(x, training=True)
    layer.backward(out, np.ones_like(out.y))
    expect_present(layer)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, *(partial(pickled, protocol=i) for i in range(2, pickle.HIGHEST_PROTOCOL + 1))],
)
def test_a_duplicate_goes_its_own_way(duplicate):
    layer = make()
    rest(layer)
    other = duplicate(layer)
    other.parameters["weight_hh_l0"][...] = 0
    rest(other)
    rest(layer)
    assert (layer(inputs())[0] != other(inputs())[0]).any()
    expect_present(layer)
    expect_present(other)


WAYS_IN = {
    "asked for": lambda layer: layer.parameters,
    "copied": copy.copy,
    "assigned": assign,
    "loaded": load,
}


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("kept_before", [False, True])
def test_calls_of_another_thread_come_before_or_after_but_not_between(way, kept_before):
    """Threads may change hands when the layer is told that somebody gets to its parameters: what
    calls keep just before that, and just after, is not what they find later."""

    class Between:
        def forget(self):
            layer._kept = kept
            for _ in range(3):
                layer(inputs())
            kept.forget()
            for _ in range(3):
                layer(inputs())

    layer, other = make(), make()
    if kept_before:
        rest(layer)
    kept, layer._kept = layer._kept, Between()
    held = WAYS_IN[way](layer)
    assert layer._kept is kept
    WAYS_IN[way](other)
    before = layer(inputs())[0]
    np.testing.assert_array_equal(before, other(inputs())[0])
    if held is not None:
        (held if way == "asked for" else held.parameters)["weight_hh_l0"][...] += 1
        assert (layer(inputs())[0] != before).any()


def test_what_another_thread_can_count_stays():
    """Without the GIL that is nothing but what it made itself."""
    layer = make()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            pool.submit(layer, inputs()).result()
        assert (layer._kept.weights is None) == WITHOUT_GIL
        other = pool.submit(make).result()
        pool.submit(rest, other).result()
    assert other._kept.weights is not None
    expect_present(layer)
    expect_present(other)


def test_a_change_is_seen_while_other_threads_call():
    layer, other, x = make("RNN"), make("RNN"), inputs()
    stop = threading.Event()

    def call():
        while not stop.is_set():
            layer(x)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for value in np.linspace(-1, 1, 60, dtype=np.float32):
            layer.parameters["bias_ih_l0"][...] = value
            other.parameters["bias_ih_l0"][...] = value
            expected = other(x)[0]
            for _ in range(5):
                np.testing.assert_array_equal(layer(x)[0], expected)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    rest(layer)
    np.testing.assert_array_equal(layer(x)[0], expected)
