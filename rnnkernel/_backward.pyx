"""Backpropagation through time of a layer's directions: how many threads, and what each does.

rnnkernel/_bptt.pyx has the loop, _bptt_memory.pyx what it reads and writes. All threads go through
one direction and then the other, or each direction has half of them.
"""

from cython.parallel cimport parallel, prange

cimport numpy as cnp

from rnnkernel._bptt cimport (
    BY_COST,
    BY_ROWS,
    BY_UNITS,
    CHUNK_ROWS,
    Bptt,
    run_member,
)
from rnnkernel._bptt_memory cimport hand_on_states, point, prepare, set_dx
from rnnkernel._chunks cimport SHARDS
from rnnkernel._clock cimport PHASES, current_call, nanoseconds
from rnnkernel._cores cimport cores
from rnnkernel._crowd cimport is_crowded, report
from rnnkernel._gradients cimport add_to_rows
from rnnkernel._kernels cimport fp_enter, fp_leave
from rnnkernel._memory cimport address, aligned_zeros
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._plan cimport team_size, training_pays_off
from rnnkernel._rows cimport part
from rnnkernel._scratch cimport Scratch
from rnnkernel._tape cimport BackwardPass, Pass
from rnnkernel._team cimport rk_expel, rk_gone, rk_lost, rk_member, rk_members

from rnnkernel._memory import empty

cnp.import_array()

# "rows" or "units" shares the steps between threads so, and 1 or 2 are the teams of two directions;
# None lets their cost decide. Results are the same, as tests show by setting them.
SPLIT = None
TEAMS = None

# Members 1, 2, .. come too late for meeting LATE, LATE + 1, .. of a pass; None lets time tell.
# Results are the same, as tests show by setting it.
LATE = None

# What all steps may keep, at most, to be one chunk: a part of an L3.
cdef double ONE_CHUNK_BYTES = 8 << 20

# Batches of so many rows, with so many in all steps, are in shards, where weights take no more than
# so many bytes: with larger ones a thread does much with what it reads of another, and sums are
# dear. The bits of gradients depend on it, so it depends on sizes alone, and not on the threads.
# Tests set the first two.
SHARDED_ROWS = 8
SHARDED_STEPS = 256
cdef Py_ssize_t SHARDED_BYTES = 1 << 20


def shards_of(PackedWeights w, Py_ssize_t T, Py_ssize_t N):
    """How many shards the gradients of T steps of N rows are summed in."""
    weights = w.cell.gates * w.hidden_size * (w.input_size + w.projected_size)
    if N < SHARDED_ROWS or T * N < SHARDED_STEPS or weights * w.item > SHARDED_BYTES:
        return 1
    return SHARDS


def is_one_chunk(PackedWeights w, Py_ssize_t T, Py_ssize_t N):
    """Whether T steps of N rows are one, whose gradients are in one shard: they are few, or what is
    kept of them takes no more than these gradients would, packed, and stays in cache."""
    cdef Py_ssize_t inputs = w.input_size + w.projected_size
    cdef double kept = <double>T * N * (w.gradient_slots * w.hidden_size + inputs) * w.item
    cdef double packed = w.cell.gates * w.hidden_size * inputs * w.item
    few = T * N <= max(CHUNK_ROWS, N) or kept <= min(packed, ONE_CHUNK_BYTES)
    return few and shards_of(w, T, N) == 1


def sums_of_dgates(PackedWeights w, Py_ssize_t table_rows):
    """Zeros for the sum of dgates of each row of a table, flat."""
    return aligned_zeros(w.blocks * table_rows * w.cell.input.slots * w.units, w.type_number())


cdef void run_members(
    Bptt *loops, int teams, int size, int members, int member
) noexcept nogil:
    """What a thread does of loops with a team each; there may be fewer than were asked for."""
    cdef int i, count = teams
    size = min(size, members)
    teams = min(teams, members // size)
    if member >= teams * size:
        return
    for i in range(count):
        if i % teams == member // size:
            run_member(&loops[i], size, member % size)
    if member == 0:
        loops[0].end = nanoseconds()


cdef int run(Bptt *loops, list passes, int teams, int size) except -1:
    """Loops at once, a team of `size` threads for each of the passes."""
    cdef Scratch scratch = Scratch()
    cdef int i, late, threads = teams * size
    cdef long long begin, end
    call = current_call()
    spent = None if call is None else call.enter(threads)
    for i in range(teams):
        prepare(&loops[i], passes[i], scratch, size)
        for late in range(1, 0 if LATE is None else size):
            rk_expel(&loops[i].flags[late], LATE + late - 1)
        loops[i].spent = NULL
        loops[i].even = False
        if spent is not None:
            loops[i].spent = <long long *>address(spent) + i * size * PHASES
    with nogil:
        if threads == 1:
            run_member(loops, 1, 0)
        else:
            begin = nanoseconds()
            with parallel(num_threads=threads):
                run_members(loops, teams, size, rk_members(), rk_member())
            end = nanoseconds()
    if threads > 1 and (teams > 1 or loops[0].even):
        report(end - begin, rk_lost(loops[0].flags, size) + end - loops[0].end)
    if call is not None:
        call.leave(threads)
        for i in range(teams):
            call.left += rk_gone(loops[i].flags, size)
    for i in range(teams):
        hand_on_states(&loops[i], passes[i])
    return 0


cdef bint goes_at_once(const Bptt *r, int threads) except -1:
    """Whether two passes have a team each, of half the threads, instead of all one after another.

    Two teams meet half as often, or never. But where weights come slowly from beyond L2, which does
    not hold them beside what else a step touches, each of more threads takes a part.
    """
    if TEAMS is not None or threads % 2:
        return TEAMS == 2 and threads > 1
    return r.cell.gates * r.H * r.P * r.item <= cores().at_once_bytes


cdef void add_part(
    const Bptt *r, char *to, const char *other, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """One thread's part of a sum of two arrays. Denormals count as zero there, too, as where the
    second direction adds for itself."""
    cdef unsigned long long saved = fp_enter()
    cdef Py_ssize_t start = 0
    add_to_rows(
        r.kernels, to + begin * r.item, 0, 1, end - begin, other + begin * r.item, &start
    )
    fp_leave(saved)


cdef int run_at_once(Bptt *loops, list passes, int threads) except -1:
    """Two directions, each with half of the threads. Only when both are done can their dx be added.
    """
    cdef BackwardPass first = passes[0], second = passes[1]
    cdef Py_ssize_t size
    cdef char *to
    cdef const char *other
    cdef int i
    own = None
    if second.adds and first.dx is not None:
        # lies in memory as the first one's
        if first.dx.strides[0] < first.dx.strides[1]:
            own = empty(first.dx.swapaxes(0, 1).shape, first.dx.dtype).swapaxes(0, 1)
        else:
            own = empty(first.dx.shape, first.dx.dtype)
        set_dx(&loops[1], own[::-1])
        loops[1].adds, loops[1].clears = False, loops[0].clears
    run(loops, passes, 2, threads // 2)
    if own is None:
        return 0
    to, other, size = address(first.dx), address(own), own.size
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1, nogil=True):
        add_part(loops, to, other, part(size, i, threads), part(size, i + 1, threads))
    return 0


def backward(list passes, double limit, double norm_limit, int threads):
    """BPTT of the one or two directions of a layer, each a BackwardPass over what forward left in
    `y` and `reserve`; the limits are those of clipping, of an element and of a norm.

    Where x is a table, W_ih's gradient is summed over the steps as for the x that the table stands
    for, with its bits; for one-hot vectors these sums are rows of dgates. Where the index does not
    change with time, dgates are summed over the steps first and meet x once.
    """
    cdef Bptt[2] loops
    cdef BackwardPass of
    cdef int i, team, count = len(passes)
    cdef double flops = 0, weights = 0, rows = 0
    cdef Py_ssize_t pieces = 0, item = 0
    for i in range(count):
        of = passes[i]
        if has_no_steps(of.of):
            no_steps(of)
            continue
        point(&loops[i], of, limit, norm_limit)
        loops[i].sharing = BY_COST if SPLIT is None else BY_ROWS if SPLIT == "rows" else BY_UNITS
        flops += flops_of(&loops[i])
        weights += flops_of(&loops[i]) / (6.0 * loops[i].count) * loops[i].item
        rows, item = <double>loops[i].count / loops[i].T, loops[i].item
        pieces += max(loops[i].N, loops[i].blocks)
    if flops == 0:
        return
    team = team_size(flops, pieces, threads)
    if is_crowded(flops) or team > 1 and not training_pays_off(
        flops, weights, rows, item, team
    ):
        team = threads = 1
    if count == 2 and goes_at_once(&loops[0], team):
        run_at_once(loops, passes, team)
        return
    for i in range(count):
        team = team_size(flops_of(&loops[i]), max(loops[i].N, loops[i].blocks), threads)
        run(&loops[i], passes[i:i + 1], 1, team)


cdef inline double flops_of(const Bptt *r) noexcept:
    return 6.0 * r.cell.gates * r.H * (r.I + r.P) * r.count


cdef bint has_no_steps(Pass one) except -1:
    cdef cnp.ndarray y = one.y
    if cnp.PyArray_DIM(y, 0) == 0 or cnp.PyArray_DIM(y, 1) == 0:
        return True
    return one.rows is not None and one.rows.longest == 0


cdef no_steps(BackwardPass of):
    """Where nothing is to do, gradients of the final states are those of the initial ones."""
    if of.dx is not None and not of.adds:
        of.dx[...] = 0
    of.dh0[...] = 0 if of.dh_n is None else of.dh_n
    if of.dc0 is not None:
        of.dc0[...] = 0 if of.dc_n is None else of.dc_n
    if of.dtable is not None:
        of.dtable[... if of.dtable_rows is None else of.dtable_rows] = 0
