"""Lists of sequences to a batch and back."""

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits


@pytest.mark.parametrize("batch_first", [False, True])
def test_there_and_back(dtype, batch_first):
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((length, 3)).astype(dtype) for length in (2, 0, 5, 1)]
    x, lengths = rk.pack(sequences, batch_first=batch_first)
    assert x.dtype == dtype and x.shape == ((4, 5, 3) if batch_first else (5, 4, 3))
    assert x.flags.c_contiguous
    assert lengths.tolist() == [2, 0, 5, 1]
    back = rk.unpack(x, lengths, batch_first=batch_first)
    for got, expected in zip(back, sequences, strict=True):
        assert_same_bits(got, expected)
        assert got.base is not None
    assert x.sum() == pytest.approx(sum(s.sum() for s in sequences), abs=1e-4)


def test_ids_and_generators():
    x, lengths = rk.pack(np.arange(n) for n in (3, 1))
    assert x.dtype.kind == "i" and x.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert [a.tolist() for a in rk.unpack(x, lengths)] == [[0, 1, 2], [0]]


def test_an_empty_list_is_like_the_others():
    x, lengths = rk.pack([[], [1, 2], ()])
    assert x.dtype.kind == "i" and x.tolist() == [[0, 1, 0], [0, 2, 0]]
    assert lengths.tolist() == [0, 2, 0]
    x, lengths = rk.pack([[], np.ones((2, 3), np.float32)])
    assert x.dtype == np.float32 and x.shape == (2, 2, 3) and lengths.tolist() == [0, 2]
    assert rk.pack([[], []])[0].shape == (0, 2)


def test_as_the_layers_take_it(dtype):
    layer = rk.GRU(3, 4, bidirectional=True, dtype=dtype, rng=0)
    rng = np.random.default_rng(1)
    sequences = [rng.standard_normal((length, 3)).astype(dtype) for length in (2, 5, 1)]
    x, lengths = rk.pack(sequences)
    y, _ = layer(x, lengths=lengths)
    for got, sequence in zip(rk.unpack(y, lengths), sequences, strict=True):
        assert_same_bits(np.ascontiguousarray(got), layer(sequence)[0])


@pytest.mark.parametrize(
    ("sequences", "error", "words"),
    [
        ([], ValueError, ["sequences", "at least one"]),
        (3, TypeError, ["sequences", "int"]),
        ("ab", TypeError, ["sequences", "str"]),
        ([np.zeros((2, 3)), np.zeros((2, 4))], ValueError, ["sequences[1]", "(T, 3)", "(2, 4)"]),
        ([np.zeros((2, 3)), np.zeros(3)], ValueError, ["sequences[1]", "(3,)"]),
        ([np.zeros((2, 3)), np.zeros((2, 3), np.float32)], TypeError, ["sequences[1]", "float32"]),
        ([np.float64(1)], ValueError, ["sequences[0]", "()"]),
        ([np.zeros((1,) * 32)], ValueError, ["sequences[0]", "32 axes"]),
        ([np.array(["a"])], TypeError, ["sequences[0]", "floats or integers"]),
    ],
)
def test_errors_of_pack(sequences, error, words):
    with pytest.raises(error) as caught:
        rk.pack(sequences)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("y", "lengths", "error", "words"),
    [
        (np.zeros(3), [1], ValueError, ["y", "(T, N, ...)", "(3,)"]),
        (np.zeros((3, 2, 1)), [1, 4], ValueError, ["lengths", "T=3", "4"]),
        (np.zeros((3, 2, 1)), [1], ValueError, ["lengths", "(N=2)"]),
        (np.zeros((3, 2, 1)), [1.0, 2.0], TypeError, ["lengths", "integers"]),
        (None, [1], TypeError, ["y", "NoneType"]),
    ],
)
def test_errors_of_unpack(y, lengths, error, words):
    with pytest.raises(error) as caught:
        rk.unpack(y, lengths)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_no_rows_have_no_lengths(dtype):
    x = np.zeros((3, 0, 4), dtype)
    assert rk.unpack(x, []) == []
    layer = rk.GRU(4, 5, dtype=dtype)
    for empty in ([], (), np.zeros(0, int)):
        assert layer(x, lengths=empty)[0].shape == (3, 0, 5)
    with pytest.raises(TypeError, match="lengths"):
        layer(x, lengths=np.zeros(0))
    with pytest.raises(ValueError, match="lengths"):
        layer(np.zeros((3, 2, 4), dtype), lengths=[])


def test_packing_one_array_takes_its_rows():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for given in (x, memoryview(x)):
        packed, lengths = rk.pack(given)
        assert_same_bits(packed, x.T)
        assert lengths.tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"sequences\[0\]"):
        rk.pack(np.array(1.0))
