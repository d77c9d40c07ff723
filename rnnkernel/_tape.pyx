"""What a training forward hands to its backward, and backward to its loops.

Every training call makes these, so they are cheap to make.
"""

from rnnkernel._packed_gradients cimport PackedGradients
from rnnkernel._packed_weights cimport PackedWeights


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
    groups : int
        Of the reserve's rows: 1, or 0 where forward is to choose, which sets it.
    """

    def __init__(
        self,
        PackedWeights weights,
        x,
        h0,
        c0,
        y,
        reserve,
        rows=None,
        checkpoints=None,
        index=None,
        int groups=0,
    ):
        self.weights, self.x, self.y, self.reserve = weights, x, y, reserve
        self.h0, self.c0 = h0, c0
        self.rows, self.checkpoints, self.index = rows, checkpoints, index
        self.groups = groups


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

    def __reduce__(self):
        raise TypeError(
            "an output of forward(..., training=True) has what backward needs, of which there are "
            "no copies: keep its y and state, or run forward again"
        )


cdef class BackwardPass:
    """What backward of one layer and direction reads beside the Pass, and where it writes.

    Attributes
    ----------
    of : Pass
        With a reserve, where the cell needs one.
    gradients : PackedGradients
        Are added to.
    dy : (T, N, P), or None
    dh_n, dc_n : (N, P) and (N, H), or None
        Gradients of the final states.
    flow : None or five arrays (T, N): norms of dh and dc (float64), rows clipped (uint8), and dh
        and dc (T, N, units), each None where it is not wanted
        With rows by own step and position.
    dx : (T, N, I), or None
    adds : bool
        Whether dx has the gradient of the other direction, and this one's is added to it.
    dh0, dc0 : (N, P) and (N, H), or None without a cell state
    dtable : (R, I), or None
        Where x is a table its gradient; with `dtable_rows` (R,) these rows of a larger one, and the
        others stay.
    sums : what `sums_of_dgates` returns, or None
        A sequence in segments adds to one, and only its last call is to `finish`.
    """

    def __init__(
        self,
        Pass of,
        PackedGradients gradients,
        dy,
        dh_n,
        dc_n,
        flow,
        dx,
        dh0,
        dc0,
        dtable=None,
        dtable_rows=None,
        sums=None,
        bint finish=True,
        bint adds=False,
    ):
        self.of, self.gradients = of, gradients
        self.dy, self.dh_n, self.dc_n, self.flow = dy, dh_n, dc_n, flow
        self.dx, self.dh0, self.dc0 = dx, dh0, dc0
        self.dtable, self.dtable_rows = dtable, dtable_rows
        self.sums, self.finish, self.adds = sums, finish, adds
