"""Layers in safetensors files: equal when read again, readable by others, and safe to read."""

import inspect
import json
import math
import os
import stat
import struct
import tracemalloc

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits, bits
from reference import CASES

OPTIONS = [
    {},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
    {"bias": False},
    {"num_layers": 2, "dropout": 0.1},
]
OPTIONS_OF = {
    "LSTM": [
        {"forget_bias": 0.1},
        {"peephole": True, "cell_clip": 0.3, "coupled": True, "proj_size": 4, "num_layers": 2},
    ],
}
LAYERS = [
    pytest.param(case, options, id=f"{case.name}-{options}")
    for case in CASES.values()
    for options in (*OPTIONS, *OPTIONS_OF.get(case.layer, ()))
]


def make(case, dtype=np.float32, **options):
    return getattr(rk, case.layer)(5, 7, dtype=dtype, rng=1, **case.options, **options)


def assert_equal_layers(got, expected):
    assert type(got) is type(expected)
    assert repr(got) == repr(expected)
    assert got.options == expected.options
    for name in ("input_size", "hidden_size", "dtype", *expected.options):
        assert getattr(got, name) == getattr(expected, name), name
    assert list(got.parameters) == list(expected.parameters)
    for name, array in expected.parameters.items():
        assert_same_bits(got.parameters[name], array, name)


@pytest.mark.parametrize(("case", "options"), LAYERS)
def test_what_is_saved_is_loaded(case, dtype, options, tmp_path):
    layer = make(case, dtype, **options)
    layer.parameters["weight_hh_l0"][0, :4] = [np.nan, -0.0, np.inf, np.finfo(dtype).tiny / 4]
    rk.save(layer, tmp_path / "layer.safetensors")
    loaded = rk.load(tmp_path / "layer.safetensors")
    assert_equal_layers(loaded, layer)
    for array in loaded.parameters.values():
        assert array.flags.writeable and array.flags.c_contiguous and array.flags.aligned
        assert not any(np.shares_memory(array, other) for other in layer.parameters.values())
    layer.parameters["weight_hh_l0"][0, :4] = 0.5
    loaded.parameters["weight_hh_l0"][0, :4] = 0.5
    shape = (3, 4, 5)
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    assert_same_bits(loaded(x)[0], layer(x)[0])


@pytest.mark.parametrize("bias", [True, False])
def test_a_readout_is_saved_too(bias, dtype, tmp_path):
    readout = rk.Linear(3, 4, bias=bias, dtype=dtype, rng=1)
    rk.save(readout, tmp_path / "readout")
    loaded = rk.load(tmp_path / "readout", rng=2)
    assert type(loaded) is rk.Linear and repr(loaded) == repr(readout)
    assert list(loaded.parameters) == list(readout.parameters)
    for name, array in readout.parameters.items():
        assert_same_bits(loaded.parameters[name], array, name)
        assert loaded.parameters[name].flags.writeable
    readout.parameters["weight"] = np.ones((4, 2), dtype)
    with pytest.raises(ValueError, match="weight"):
        rk.save(readout, tmp_path / "readout")
    assert_same_bits(
        rk.load(tmp_path / "readout").parameters["weight"], loaded.parameters["weight"]
    )


def test_every_option_is_part_of_the_configuration(case):
    """What the constructor takes stands in layer.options, and so in the file."""
    layer = make(case)
    taken = set(inspect.signature(type(layer)).parameters)
    assert taken - {"input_size", "hidden_size", "dtype", "rng"} == set(layer.options)


def test_numbers_drawn_and_numbers_loaded_are_told_apart(tmp_path, monkeypatch):
    """Loading draws nothing: a layer of a given rng has that rng's first numbers yet to come."""
    rk.save(rk.GRU(3, 4), tmp_path / "gru")
    rng = np.random.default_rng(7)
    rk.load(tmp_path / "gru", rng=rng)
    assert rng.random() == np.random.default_rng(7).random()
    with pytest.raises(TypeError, match="rng"):
        rk.load(tmp_path / "gru", rng="seven")


def test_parameters_of_any_layout_are_saved(tmp_path):
    layer = rk.RNN(4, 6)
    layer.parameters["weight_hh_l0"] = np.asfortranarray(layer.parameters["weight_hh_l0"])[::-1]
    rk.save(layer, tmp_path / "rnn")
    assert_same_bits(
        rk.load(tmp_path / "rnn").parameters["weight_hh_l0"], layer.parameters["weight_hh_l0"]
    )


# The bytes.


def read_as_specified(content):
    """A reader from the format's description: tensors and metadata."""
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length]
    assert text.startswith(b"{") and text.rstrip(b" ").endswith(b"}")
    header = json.loads(text.decode("utf-8"))
    data = content[8 + length :]
    metadata = header.pop("__metadata__", {})
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in metadata.items())
    tensors, ranges = {}, []
    for name, entry in header.items():
        assert sorted(entry) == ["data_offsets", "dtype", "shape"]
        begin, end = entry["data_offsets"]
        ranges.append((begin, end))
        letter = {"F32": "f", "F64": "d"}[entry["dtype"]]
        numbers = struct.unpack(f"<{math.prod(entry['shape'])}{letter}", data[begin:end])
        tensors[name] = np.array(numbers, letter).reshape(entry["shape"])
    ranges.sort()
    assert [begin for begin, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == len(data)
    return tensors, metadata


@pytest.mark.parametrize(("case", "options"), LAYERS)
def test_the_file_is_what_the_format_describes(case, dtype, options, tmp_path):
    layer = make(case, dtype, **options)
    rk.save(layer, tmp_path / "layer")
    content = (tmp_path / "layer").read_bytes()
    tensors, metadata = read_as_specified(content)
    assert tensors.keys() == layer.parameters.keys()
    for name, array in layer.parameters.items():
        assert_same_bits(tensors[name], array, name)
    assert struct.unpack("<Q", content[:8])[0] % 8 == 0  # the data begin aligned
    assert metadata.pop("class") == case.layer
    assert metadata.pop("format") == "rnnkernel"
    arguments = {name: json.loads(text) for name, text in metadata.items()}
    sizes = {"input_size": 5, "hidden_size": 7, "dtype": np.dtype(dtype).name}
    assert arguments == layer.options | sizes


def test_the_bytes_of_a_small_file(tmp_path):
    layer = rk.RNN(1, 1, bias=False)
    layer.parameters["weight_ih_l0"][...] = 1.0
    layer.parameters["weight_hh_l0"][...] = -2.0
    rk.save(layer, tmp_path / "rnn")
    content = (tmp_path / "rnn").read_bytes()
    length = content[0] + 256 * content[1]
    assert content[2:8] == bytes(6)
    assert b'"weight_ih_l0":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}' in content
    assert b'"weight_hh_l0":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}' in content
    assert content[8 + length :] == b"\x00\x00\x80\x3f\x00\x00\x00\xc0"


# Writing whole or not at all.


def test_saving_replaces_a_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "layer"
    old, new = rk.RNN(3, 4, rng=1), rk.RNN(3, 4, rng=2)
    rk.save(old, path)
    kept = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            rk.save(new, path)
    assert path.read_bytes() == kept
    assert os.listdir(tmp_path) == ["layer"]  # and nothing lies about
    rk.save(new, path)
    assert_equal_layers(rk.load(path), new)
    assert os.listdir(tmp_path) == ["layer"]


def test_who_may_read_a_file_stays_as_it_was(tmp_path):
    path = tmp_path / "layer"
    rk.save(rk.RNN(3, 4), path)
    path.chmod(0o600)
    rk.save(rk.RNN(3, 4), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="^path: expected a regular file or none, got"):
            rk.save(rk.RNN(3, 4), tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_name_may_be_as_long_as_the_system_has_them(tmp_path):
    path = tmp_path / ("l" * 250)
    rk.save(rk.RNN(3, 4), path)
    assert os.listdir(tmp_path) == ["l" * 250]


def test_a_file_has_the_usual_permissions_and_a_link_stays_one(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    usual = stat.S_IMODE((tmp_path / "other").stat().st_mode)
    rk.save(rk.RNN(3, 4), tmp_path / "layer")
    assert stat.S_IMODE((tmp_path / "layer").stat().st_mode) == usual
    (tmp_path / "link").symlink_to("layer")
    layer = rk.GRU(3, 4)
    rk.save(layer, os.fspath(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert_equal_layers(rk.load(tmp_path / "layer"), layer)


# Arguments.


@pytest.mark.parametrize("layer", [None, "LSTM", rk.LSTM, {}, rk.RNN(3, 4).freeze()], ids=repr)
def test_only_layers_are_saved(layer, tmp_path):
    with pytest.raises(TypeError, match="^layer: expected an RNN, GRU, LSTM or Linear"):
        rk.save(layer, tmp_path / "layer")
    assert not os.listdir(tmp_path)


def test_a_layer_with_a_wrong_parameter_is_not_saved(tmp_path):
    layer = rk.RNN(3, 4)
    layer.parameters["weight_hh_l0"] = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="weight_hh_l0"):
        rk.save(layer, tmp_path / "layer")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("path", "error"),
    [(None, TypeError), (3, TypeError), ([], TypeError), ("", ValueError), ("a\0b", ValueError)],
)
def test_bad_paths(path, error):
    with pytest.raises(error, match="^path: expected"):
        rk.load(path)
    with pytest.raises(error, match="^path: expected"):
        rk.save(rk.RNN(3, 4), path)


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        rk.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        rk.save(rk.RNN(3, 4), tmp_path / "missing" / "layer")
    with pytest.raises(OSError):
        rk.load(tmp_path)


# Files that are damaged, or made to do damage.


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Header and data of a good file, to be spoilt."""
    path = tmp_path_factory.mktemp("good") / "layer"
    rk.save(rk.LSTM(2, 3, rng=0), path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def rejects(tmp_path, content, words):
    """That loading is a ValueError with the path and the reason, and takes little memory."""
    __tracebackhide__ = True
    path = tmp_path / "spoilt"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            rk.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert text.startswith("path: expected") and str(path) in text, text
    assert words in text, text
    assert len(text) < 2000
    assert peak < 30 * len(content) + 1_000_000


def test_every_truncation_is_noticed(parts, tmp_path):
    content = join(*parts)
    for length in (*range(16), *range(16, len(content), 37), len(content) - 1):
        rejects(tmp_path, content[:length], "expected")
    rejects(tmp_path, content + b"\0", "bytes of data")


def test_random_damage_is_an_error_or_a_layer(parts, tmp_path):
    """Whatever byte is changed: a ValueError, or, where it was a number of the data, a layer."""
    content, rng = join(*parts), np.random.default_rng(0)
    path = tmp_path / "spoilt"
    begin = len(content) - len(parts[1])
    for _ in range(600):
        spoilt = bytearray(content)
        place = int(rng.integers(begin))
        spoilt[place] ^= int(rng.integers(1, 256))
        path.write_bytes(spoilt)
        try:
            layer = rk.load(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert isinstance(layer, rk.LSTM)


HEADERS = [
    (b"", "begins with {"),
    (b"[]", "begins with {"),
    (b" {}", "begins with {"),
    (b"{", "JSON"),
    (b"{}", "__metadata__"),
    (b'{"\xff": 1}', "JSON"),
    (b'{"a": NaN}', "finite"),
    (b'{"a": 1, "a": 2}', "'a' twice"),
    (b'{"a": ' + b"[" * 100_000, "JSON"),
    (b'{"a": ' + b"9" * 10_000 + b"}", "JSON"),
]


@pytest.mark.parametrize(("header", "words"), HEADERS, ids=lambda v: repr(v)[:20])
def test_headers_that_are_none(header, words, tmp_path):
    rejects(tmp_path, join(header, b""), words)


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 10**9, 100_000_001])
def test_a_header_longer_than_the_file_is_not_allocated(length, tmp_path):
    rejects(tmp_path, struct.pack("<Q", length) + b"{}", "header of at most 2 bytes")


def spoil_entry(**changes):
    return lambda h: h["weight_hh_l0"].update(changes)


def spoil_metadata(**changes):
    return lambda h: h["__metadata__"].update(changes)


# weight_ih_l0 (12, 2), weight_hh_l0 (12, 3), bias_ih_l0 (12,), bias_hh_l0 (12,)
SPOILT = [
    (spoil_entry(dtype="F16"), "F32 or F64"),
    (spoil_entry(dtype=["F32"]), "F32 or F64"),
    (spoil_entry(shape=[12, 4]), "192 bytes, got 144"),
    (spoil_entry(shape=[-12, -3]), "integers >= 0"),
    (spoil_entry(shape=[12, 3.0]), "integers >= 0"),
    (spoil_entry(shape=[True] * 3), "integers >= 0"),
    (spoil_entry(shape="12, 3"), "integers >= 0"),
    (spoil_entry(shape=[2**62, 0]), "0 bytes, got 144"),
    (spoil_entry(shape=[2**62, 2**62]), "bytes, got 144"),
    (spoil_entry(shape=[1] * 200), "integers >= 0"),
    (spoil_entry(shape=[3, 12]), "weight_hh_l0"),
    (spoil_entry(data_offsets=[0, 144]), "holes or overlaps"),
    (spoil_entry(data_offsets=[97, 241]), "holes or overlaps"),
    (spoil_entry(data_offsets=[2**62, 2**62 + 144]), "holes or overlaps"),
    (spoil_entry(data_offsets=[240, 96]), "144 bytes, got -144"),
    (spoil_entry(data_offsets=[96]), "two offsets"),
    (spoil_entry(data_offsets=None), "two offsets"),
    (spoil_entry(more=1), "dtype, shape and data_offsets"),
    (lambda h: h["weight_hh_l0"].pop("shape"), "dtype, shape and data_offsets"),
    (lambda h: h.update(weight_hh_l0=[]), "dtype, shape and data_offsets"),
    (lambda h: h.update(x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}), "unknown: x"),
    (
        lambda h: h.update(x={"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}),
        "expected",
    ),
    (lambda h: h.update(__metadata__=[]), "strings in __metadata__"),
    (lambda h: h.pop("__metadata__"), "load_state_dict"),
    (spoil_metadata(num_layers=1), "strings in __metadata__"),
    (spoil_metadata(format="pt"), "'rnnkernel'"),
    (spoil_metadata(**{"class": "Dense"}), "RNN, GRU, LSTM, Linear"),
    (spoil_metadata(**{"class": "Linear"}), "configuration of Linear"),
    (lambda h: h["__metadata__"].pop("class"), "RNN, GRU, LSTM"),
    (lambda h: h["__metadata__"].pop("hidden_size"), "hidden_size"),
    (spoil_metadata(**{"class": "GRU"}), "GRU"),
    (spoil_metadata(hidden_size="4"), "weight_ih_l0"),
    (spoil_metadata(hidden_size="1000000000"), "weight_ih_l0"),
    (spoil_metadata(hidden_size="-3"), "hidden_size"),
    (spoil_metadata(hidden_size="3.0"), "hidden_size"),
    (spoil_metadata(hidden_size="three"), "JSON"),
    (spoil_metadata(hidden_size="[" * 100_000), "JSON"),
    (spoil_metadata(num_layers="2"), "weight_ih_l1"),
    (spoil_metadata(num_layers="1000000000000"), "layers"),
    (spoil_metadata(bidirectional="true"), "weight_ih_l0_reverse"),
    (spoil_metadata(bidirectional="1"), "bidirectional"),
    (spoil_metadata(dtype='"float64"'), "float64"),
    (spoil_metadata(dtype='"int8"'), "dtype"),
    (spoil_metadata(color='"red"'), "color"),
    (spoil_metadata(rng="1"), "rng"),
    (spoil_metadata(parameters="{}"), "parameters"),
    (spoil_metadata(self="1"), "self"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT, ids=range(len(SPOILT)))
def test_headers_that_lie(parts, spoil, words, tmp_path):
    header, data = json.loads(json.dumps(parts[0])), parts[1]
    assert len(header) == 5
    spoil(header)
    rejects(tmp_path, join(header, data), words)


def test_the_order_of_the_tensors_and_padding_are_free(parts, tmp_path):
    """What another writer may do differently."""
    header, data = parts
    turned = dict(reversed(header.items()))
    (tmp_path / "turned").write_bytes(join(json.dumps(turned).encode() + b"   ", data))
    (tmp_path / "plain").write_bytes(join(header, data))
    assert_equal_layers(rk.load(tmp_path / "turned"), rk.load(tmp_path / "plain"))


def test_weights_without_a_configuration_are_left_to_other_readers(tmp_path):
    data = np.arange(4, dtype=np.float32)
    header = {"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    rejects(tmp_path, join(header, bits(data)), "load_state_dict")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="regular file"):
        rk.load(tmp_path / "pipe")
