"""One layer and direction forward in time: what it reads and writes, and how a team shares it."""

from rnnkernel._kernels cimport rk_cell, rk_kernels, rk_packing
from rnnkernel._panels cimport Panel
from rnnkernel._rows cimport SECTIONS
from rnnkernel._team cimport rk_flag, rk_handover, rk_range

cdef enum:
    # Rows of a table that are projected in one piece of work.
    TABLE_ROWS = 64
    # W_ih and W_hh pass, not W_ih alone.
    BOTH = 2


# (N, units) of anybody's; strides in bytes.
cdef struct Matrix:
    char *data
    Py_ssize_t row, unit


# One layer and direction over some steps of a batch. Pointers are to what others own.
cdef struct Run:
    const rk_kernels *kernels
    const rk_cell *cell
    Py_ssize_t T, N, I, H, P, item, units, blocks
    Py_ssize_t first              # steps first..T are run
    Py_ssize_t count              # rows (t, n) in all steps
    Py_ssize_t chunk              # steps projected at once
    const char *x                 # x[t, n, i] at t * x_time + x_row[n] + i * x_unit
    Py_ssize_t x_time, x_batch, x_unit
    char *y                       # likewise; units contiguous
    Py_ssize_t y_time, y_batch
    const Py_ssize_t *y_row
    const Panel *panels           # of W_ih and W_hh that are yet to be packed, or NULL
    int panel_count
    int passing                   # how many of them are packed as they are used,
    Py_ssize_t passing_blocks     # so many blocks at a time,
    Py_ssize_t passing_bytes      # into so much
    char *passing_panels          # of this by thread
    const char *bias
    const char *input
    const char **recurrent
    int storage, weight_item      # of the weights, and the scales of int8
    Py_ssize_t input_rows, recurrent_rows  # of a block's panel, as rk_panel_rows has them
    const char *input_scale
    const char **recurrent_scale
    const char *projection        # or NULL
    Py_ssize_t projection_columns  # its blocks
    const char *peepholes
    double cell_clip
    Py_ssize_t input_last_vectors
    char *gates                   # [step][block][row][memory slots][U], row n at gates_row[n]
    Py_ssize_t gates_steps        # steps it holds; step t lies at t % gates_steps
    Py_ssize_t gates_time, gates_block
    bint keeps                    # whether backward reads them
    const Py_ssize_t *gates_row
    Matrix h0, h_n, c_n           # states where the caller has them; c_n may have no data
    bint begins, ends             # whether all rows are to be taken from there, and put there
    const char *c0                # c0[block, n, u] at block * c0_block + n * c0_row + u
    Py_ssize_t c0_row, c0_block
    char *h                       # two tiles, in turn h_{t-1} and h_t: row n at h_row[n]
    Py_ssize_t h_time             # from one to the other
    char *early                   # likewise one: what a first phase hands to the second
    Py_ssize_t pitch              # from row to row
    const Py_ssize_t *h_row
    Py_ssize_t *chunk_x           # per tile or thread [t][n]: rows of a chunk, in x
    Py_ssize_t *chunk_gates       # and in gates
    # rows that differ, or NULL
    int sections                  # of positions, each with the longest row first
    Py_ssize_t[SECTIONS + 1] section  # their bounds
    const Py_ssize_t *alive       # (sections, longest): the position after those that have a step
    const Py_ssize_t *order       # by position: the batch row
    const Py_ssize_t *x_row
    const Py_ssize_t *start       # steps of y before a row's first
    const Py_ssize_t *length
    Py_ssize_t longest            # of all rows, where they differ
    Py_ssize_t y_steps
    bint clears                   # whether to write zeros past the ends
    const unsigned char *reset    # (T, N)
    const unsigned char *resets   # (T): whether any row
    char *c_reset                 # [block][N][U]
    # x as rows of a table, or NULL
    const Py_ssize_t *index       # row of step t: index[t * index_time + index_row[n]]
    Py_ssize_t index_time
    const Py_ssize_t *index_row
    Py_ssize_t table_rows
    bint one_hot                  # the table is W_ih itself, without biases
    char *table                   # [block][table rows][gates][U]
    const Py_ssize_t *table_x     # its rows in x
    const Py_ssize_t *table_row   # and in the table
    bint back                     # whether a sweep goes from the last block to the first
    long long *spent              # by thread and phase (_clock.pxd), or NULL


# How a team shares a call.
cdef struct Plan:
    int team
    bint by_units                 # or by rows, tile by tile
    Py_ssize_t tiles
    Py_ssize_t *bounds            # of the tiles
    Py_ssize_t pieces             # of the table
    rk_flag *flags
    rk_handover *handover         # of rows, or NULL
    rk_range *ranges              # [in turn][member]: what is left of each one's blocks, or NULL
    Py_ssize_t grain              # of a sweep to and fro: blocks at once; 0 where nobody sweeps
    bint to_first                 # whether all blocks begin with the first member
    bint even                     # whether no share is more than twice another
    bint leaves                   # whether who comes too late to a meeting leaves the team


cdef inline Py_ssize_t panel_bytes(const Run *r, int which) noexcept nogil:
    """Of a block of W_ih (0) or of what W_hh's first phase has (1)."""
    cdef const rk_packing *job = &r.panels[which].job
    return job.k * job.gates * r.units * r.item


cdef inline char *gates_at(const Run *r, Py_ssize_t t) noexcept nogil:
    return r.gates + (t % r.gates_steps) * r.gates_time * r.item


cdef inline char *h_at(const Run *r, Py_ssize_t t) noexcept nogil:
    return r.h + (t & 1) * r.h_time * r.item
