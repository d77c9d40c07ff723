from rnnkernel._kernels cimport rk_cell, rk_kernels
from rnnkernel._panels cimport Panel
from rnnkernel._rows cimport SECTIONS, clear_step
from rnnkernel._team cimport rk_flag

cdef enum:
    # Chunks that there is memory for where threads are not all at the same one.
    ROOMS = 2
    # Rows (t, n) of a chunk, for each shard: a long enough sum for the weight gradients' tiles,
    # short enough that dgates stay in cache.
    CHUNK_ROWS = 256
    # Columns of x and h side by side in a group: what a tile of the weight gradients broadcasts.
    GROUP = 8
    # Rows of dx, or of a table's gradient, in one piece of work.
    DX_ROWS = 48
    # Half of a usual L2. W_ih of more bytes is read from beyond it for every piece of dx, so that
    # these are larger.
    LARGE_WEIGHTS = 1 << 19

# How the threads of a team share the steps of a chunk.
cdef enum:
    BY_COST                             # as by_units in _chunks.pyx decides
    BY_ROWS
    BY_UNITS


# One layer and direction, backpropagated through time. Strides and offsets are in elements;
# pointers are to what others own. A list "by place" has the rows (t, n) of a chunk as its sums take
# them, by shard, step and batch row; "by row" by step and batch row; "by step and position" goes by
# list_rows.
cdef struct Bptt:
    const rk_kernels *kernels
    const rk_cell *cell
    Py_ssize_t T, N, I, H, P, item, units, blocks
    int sharing
    double teamwork                     # what it costs to meet, of the most
    rk_flag *flags                      # of the team's members
    rk_flag *begun                      # pieces of gradients, by shard
    rk_flag *done                       # of all shards
    # where threads are not all at the same chunk
    bint apart
    Bptt *rooms                         # ROOMS of these: memory of its own for what a chunk keeps
    rk_flag *parts                      # of the rows, as many as the team has members
    Py_ssize_t *bounds                  # room for theirs, for each member
    rk_flag *listed                     # chunks whose rows are
    # chunks
    Py_ssize_t count, chunk_rows        # rows in all steps, and the most of them in a chunk
    int shards                          # of the batch, with sums of gradients of their own
    Py_ssize_t *first                   # by step of the chunk and section: the row of position 0
    Py_ssize_t *dgates_row              # by step and position: the row's place in dgates
    Py_ssize_t *tile_chunk_row          # likewise in tiles (rows of the chunk, pitch)
    Py_ssize_t *group_row               # likewise in a group
    Py_ssize_t *in_memory               # by row: its position, where rows differ
    Py_ssize_t *dx_at                   # by place: its place in dx, from the chunk's first step on
    # what forward had and left
    const char *x                       # x[t, n, :] at t * x_time + x_row[n], contiguous
    Py_ssize_t x_time, x_batch
    Py_ssize_t *x_row
    const char *y                       # likewise
    Py_ssize_t y_time, y_batch
    Py_ssize_t *y_row
    const char *h0                      # (N, P) contiguous
    Py_ssize_t *h0_row
    const char *gates                   # [t][block][row][memory slots][U], or NULL
    Py_ssize_t gates_time, gates_block
    Py_ssize_t *gates_row               # by position
    int groups                          # that the rows of the gates stand in
    const char *c0                      # [block][N][U]
    Py_ssize_t *cell_row                # of c0
    # weights
    const char **recurrent_transposed
    const char *input_transposed
    const char *peepholes
    double cell_clip
    const char *zeros                   # as many as a block of any product has columns
    # what arrives
    const char *dy                      # as y, units dy_unit apart; or NULL
    Py_ssize_t dy_time, dy_batch, dy_unit
    Py_ssize_t *dy_row
    double limit, norm_limit
    double *dh_norm                     # (T, N) or NULL
    double *dc_norm
    char *dh_kept                       # (T, N, P) or NULL; with norms
    char *dc_kept                       # (T, N, H)
    unsigned char *clipped
    # tiles
    char *dh                            # (N, pitch)
    char *dc
    char *dearly                        # gradient of what a first phase made
    Py_ssize_t pitch
    Py_ssize_t *tile_row
    # what a chunk keeps for its gradients
    Py_ssize_t gradient_slots           # of a row of dgates
    char *dgates                        # [block][rows of the chunk][gradient slots][U]
    Py_ssize_t dgates_block
    Py_ssize_t *flat_row                # by place: its offset in dgates
    char *early                         # (rows of the chunk, pitch), the second phase's operand
    char *x_groups                      # [I / GROUP][rows of the chunk][GROUP], or NULL
    char *h_groups                      # likewise h_{t-1}
    Py_ssize_t group                    # from one group to the next
    # gradients, packed as in PackedGradients: of the first shard
    Py_ssize_t shard_bytes              # from there to those of the next
    bint fresh                          # whether the sums of products are yet to be begun
    char *bias_gradient
    char *input_gradient
    char **recurrent_gradient
    Py_ssize_t *group_a                 # columns of x or h: their places in groups
    Py_ssize_t *flat_a                  # or where they are contiguous
    Py_ssize_t *input_c                 # and in a block of the gradients
    Py_ssize_t *hidden_c[2]             # by phase
    # projection, or NULL
    const char *projection_transposed
    Py_ssize_t projection_rows, cell_columns
    char *projected_dh                  # (rows of the chunk, pitch): dL/dh_t of each row
    char *projection_gradient
    Py_ssize_t *projection_c
    # where all steps are one chunk and each block is unpacked once it is summed, or NULL
    const Panel *unpacked               # of W_ih and of W_hh's phases
    Py_ssize_t sums_of_block            # bytes of the largest
    char *block_sums                    # room for one, for each member of the team
    # dx
    char *dx                            # dx[t, n, :], contiguous in the last, or NULL
    bint adds                           # whether these are added to what it has
    Py_ssize_t dx_time, dx_batch, dx_pitch
    Py_ssize_t dx_rows                  # in a piece of work
    char *dx_tile                       # (dx_rows, dx_pitch) for each member of the team
    Py_ssize_t *dx_row
    # rows that differ, or NULL
    int sections                        # of positions, each with the longest row first
    Py_ssize_t[SECTIONS + 1] section    # their bounds
    const Py_ssize_t *alive             # (sections, T): the position after those that have a step
    const Py_ssize_t *order             # by position: the batch row
    const Py_ssize_t *start             # and its first step
    bint aligned                        # whether that is one step for all
    const Py_ssize_t *length
    Py_ssize_t *position                # by batch row
    Py_ssize_t *dx_from                 # by position
    const unsigned char *reset          # (T, N)
    const unsigned char *resets         # (T): whether any row
    char *c_reset                       # [block][N][U]
    char *h_reset                       # (N, pitch)
    Py_ssize_t steps_of_x               # of dx
    bint clears                         # whether to write zeros in it past the ends
    # x as rows of a table, or NULL
    const Py_ssize_t *index             # row of step t: index[t * index_time + index_row[n]]
    Py_ssize_t index_time, index_batch
    Py_ssize_t *index_row
    Py_ssize_t table_rows
    bint one_hot                        # whether its rows are columns of W_ih
    bint constant                       # whether each batch row sees one row of it
    char *table_gradient                # [block][table rows][gates][U]: sums of dgates
    Py_ssize_t *table_at                # by place, or by row where all shards add to one: its place
    Py_ssize_t *table_dgates            # there, and its offset in dgates
    Py_ssize_t *table_row               # by row of the table: likewise
    bint finish                         # whether the sums are complete after these steps
    char *dtable                        # (table rows, I), or NULL
    Py_ssize_t dtable_row
    const Py_ssize_t *dtable_at         # which of its rows stands for which of x's, or NULL
    Py_ssize_t sums_bytes               # of table_gradient, yet to be zeroed; or 0
    long long *spent                    # by thread and phase (_clock.pxd), or NULL
    long long end                       # when the caller's thread had done its part
    bint even                           # whether a chunk had no share more than twice another


cdef inline Py_ssize_t alive_in(const Bptt *r, int section, Py_ssize_t t) noexcept nogil:
    """How many rows of a section have a step."""
    return r.alive[section * r.T + t] - r.section[section]


cdef inline void clear_dx(
    const Bptt *r, Py_ssize_t t, Py_ssize_t begin, Py_ssize_t end, int members, int member
) noexcept nogil:
    """One member's share of the zeros in a step of dx, of rows that do not have it."""
    clear_step(
        r.dx, r.dx_time, r.dx_from, r.item, r.I, r.start, r.length, t, begin, end, members, member
    )


cdef inline Py_ssize_t vectors_of(const Bptt *r, Py_ssize_t columns) noexcept nogil:
    return (columns + r.kernels.lanes - 1) // r.kernels.lanes


# One member's part of everything; all members of a team call it.
cdef void run_member(Bptt *r, int members, int member) noexcept nogil
