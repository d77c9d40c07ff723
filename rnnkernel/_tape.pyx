"""What a training forward hands to its backward.

Every training call makes these, so they are cheap to make.
"""


cdef class Pass:
    """One layer and direction: what its backward needs, owned. Time is in the direction's order.

    Attributes
    ----------
    weights : PackedWeights
    x : (T, N, I), or a table (R, 1, I)
    h0 : (N, P), contiguous
    c0 : what `pack_cells` returns, or None
    y : (T, N, P)
    reserve : what `allocate_reserve` returns, filled
    rows : Rows, or None
        With lengths or resets: then c0 and reserve are by own step and position.
    checkpoints : Checkpoints, or None
        Then there is no reserve.
    index : (T, N) intp, or None
        Where x is a table, the row that each step sees.
    """

    def __init__(
        self, PackedWeights weights, x, h0, c0, y, reserve, rows=None, checkpoints=None, index=None
    ):
        self.weights, self.x, self.y, self.reserve = weights, x, y, reserve
        self.h0, self.c0 = h0, c0
        self.rows, self.checkpoints, self.index = rows, checkpoints, index


cdef class Tape:
    """All passes of a call.

    Attributes
    ----------
    layer : RNN, GRU or LSTM
    passes : list of L*D Pass
    layout : Layout
    shape : (T, N)
    dropped : Dropped, or None
    table : Table, or None
    vocabulary : int, or None
        V, with an embedding.
    """

    def __init__(
        self, layer, list passes, layout, tuple shape, dropped=None, table=None, vocabulary=None
    ):
        self.layer, self.passes, self.layout, self.shape = layer, passes, layout, shape
        self.dropped, self.table, self.vocabulary = dropped, table, vocabulary
