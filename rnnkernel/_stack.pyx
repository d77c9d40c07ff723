"""The passes of a call, one for each layer and direction: which threads run which, and when.

All threads as one team run one pass after another, and share its rows or units
(rnnkernel/_plan.pyx). With few rows they leave each other little to do: then there are several
teams. The two directions of a layer need nothing of one another, and each has a team. Layer k+1
needs of layer k no more than the steps that it has come to: time is cut into pieces, and layers
follow one another piece by piece, a wavefront.

All teams go through the pieces of all passes in one order, and each takes its own. What a piece
waits for comes before it in that order, so nobody waits for ever, however many threads there are.
"""

from cython.parallel cimport parallel

cimport numpy as cnp

from rnnkernel cimport _tape
from rnnkernel._clock cimport (
    PHASES,
    WAITING,
    Clock,
    charge,
    current_call,
    nanoseconds,
    start_clock,
)
from rnnkernel._cores cimport Cores, cores
from rnnkernel._crowd cimport is_crowded, report
from rnnkernel._forward cimport Pass, keep_states, lay_out, set_arrays
from rnnkernel._memory cimport address
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._plan cimport (
    divide,
    flops_of,
    gain,
    let_hand_over,
    pays_off,
    splits_units,
    team_size,
    team_step,
    training_pays_off,
)
from rnnkernel._recurrence cimport prepare_weights_of, run_team
from rnnkernel._run cimport Run
from rnnkernel._scratch cimport Scratch
from rnnkernel._shared cimport rk_get, rk_set
from rnnkernel._states cimport take_states
from rnnkernel._team cimport (
    rk_await,
    rk_flag,
    rk_gone,
    rk_lost,
    rk_meet,
    rk_member,
    rk_members,
    rk_raise,
)
from rnnkernel._teamwork cimport teamwork

cnp.import_array()

# How many teams at most, and of how many steps a piece is; None lets `share` choose. Results are
# the same, as tests show by setting them.
TEAMS = None
PIECE = None

# Microseconds to open the threads of a call that is inference.
cdef double OPENING = 10

# Microseconds to pack a weight.
cdef double PACKED_WEIGHT = 2e-4

# Whether the next call's first sweep goes back: what the last one used may still be in cache.
cdef long long next_back = 0


# -- what a thread does ------------------------------------------------------------------------


cdef void run_piece(
    const Stack *s, int k, int direction, Py_ssize_t piece, int team, int size, int mate
) noexcept nogil:
    """What one of a team's `size` mates does of a piece."""
    cdef int i = k * s.directions + direction, below
    cdef const Pass *one = &s.passes[i]
    cdef Run r = one.run
    cdef int members = min(size, one.plan.team)
    cdef Clock clock
    if s.spent != NULL:
        r.spent = s.spent + team * size * PHASES
    if piece == 0 and mate < members:
        prepare_weights_of(&r, &one.plan, members, mate)
    clock = start_clock(r.spent, mate)
    if piece > 0:
        rk_await(&s.done[i], piece)
    if k > 0:
        for below in range(i - direction - s.directions, i - direction):
            rk_await(&s.done[below], piece + 1)
    charge(&clock, WAITING)
    r.first = piece * s.piece
    r.T = min(one.run.T, r.first + s.piece)
    r.begins, r.ends = piece == 0, piece + 1 == s.pieces
    if not r.ends:  # the last has what lies past all ends
        r.y_steps = r.T
    if mate < members:
        run_team(&r, &one.plan, members, mate)
    if size > 1 and (k + 1 < s.layers or piece + 1 < s.pieces):  # who goes on reads all of it
        clock = start_clock(r.spent, mate)
        rk_meet(s.flags + team * size, size, mate)
        charge(&clock, WAITING)
    if mate == 0:
        rk_raise(&s.done[i], piece + 1)


cdef void run_member(Stack *s, int members, int member) noexcept nogil:
    """What a thread does of a call; there may be fewer than were asked for."""
    cdef int size = min(s.size, members), teams = min(s.teams, members // size)
    cdef int team = member // size, owner, k, direction
    cdef Py_ssize_t diagonal, piece, turn = 0
    # a layer stays with its team where that shares them evenly
    cdef bint by_layer = s.directions == 1 and s.layers % teams == 0
    if team >= teams:
        return
    for diagonal in range(s.pieces + s.layers - 1):
        for k in range(s.layers):
            piece = diagonal - k
            if piece < 0 or piece >= s.pieces:
                continue
            for direction in range(s.directions):
                owner = (k if by_layer else turn) % teams
                turn += 1
                if owner == team:
                    run_piece(s, k, direction, piece, team, size, member % size)
    if member == 0 and members > 1:
        s.end = nanoseconds()


# -- who shares what ---------------------------------------------------------------------------


cdef bint reads_all(const Stack *s, const Run *r, Py_ssize_t rows) except -1:
    """Whether every thread reads all weights of a pass: layers go from team to team, or the threads
    of one team share rows."""
    if s.teams > 1:
        return s.directions == 1 and s.layers % s.teams != 0
    return not splits_units(r, rows, s.size)


cdef double time_of(Stack *s, double rows) except -1:
    """Microseconds of all passes, roughly, by these teams; sets the pieces.

    A piece costs a team reading W_ih, or packing all weights. Cutting finely costs this more often,
    and coarsely leaves more time until the last layer has begun. Weights that one thread has just
    packed move to others, the more the more of them these read. Two directions at once write the
    halves of each row of y, and a cell that writes some lines of a row in one go has its core's
    prefetcher take those of the other half, or those that the layer above reads, where each layer
    stays with its team.
    """
    cdef const Cores *core = cores()
    cdef int i, teams = s.teams, passes = s.layers * s.directions
    cdef double step = 0, start = core.piece, weights = 0, tasks, apart = 0, moved
    cdef Run *r
    if teams * s.size > 1:
        apart = teamwork(teams * s.size)
    for i in range(passes):
        r = &s.passes[i].run
        step += (
            team_step(r, <Py_ssize_t>(rows + 0.5), s.size)
            + rows * r.cell.gates * r.H * r.I * r.item * 5e-6 / s.size
        ) / passes
        if r.panels != NULL:
            start += r.cell.gates * r.H * (r.I + r.P) * PACKED_WEIGHT / s.size / passes
        elif s.packs and reads_all(s, r, <Py_ssize_t>(rows + 0.5)):
            weights += <double>r.cell.gates * r.H * (r.I + r.P) * r.item
        start += r.cell.gates * r.H * r.I * r.item * core.piece_byte / passes
        if teams > 1 and r.cell.unit_vectors > 1:
            if s.directions > 1:
                step += (core.half_row + core.half_row_apart * apart) * rows / passes
            elif s.layers % teams == 0:
                step += core.below_byte_apart * apart * rows * r.P * r.item / passes
    s.piece, s.pieces = s.steps, 1
    moved = 0.5 * core.opening_byte * weights * apart
    if teams == 1 or s.directions > 1:
        return s.steps * step * passes / teams + moved
    s.pieces = max(1, <Py_ssize_t>(((teams - 1) * s.steps * step / start) ** 0.5))
    s.piece = (s.steps + s.pieces - 1) // s.pieces
    s.pieces = (s.steps + s.piece - 1) // s.piece
    tasks = <double>s.layers * s.pieces / teams + teams - 1
    return tasks * (s.piece * step + start) + moved


cdef int share(Stack *s, bint training, int threads) except -1:
    """How threads share the passes.

    The threads of a team meet at every step, where they share its units, or read all weights each,
    where they share its rows. Teams meet once a piece at most, and each reads the weights of fewer
    passes. But the units of a pass may fit the L2 of several cores and not that of one, threads
    that teams do not divide among themselves are idle, and the last layers begin late.
    """
    cdef int i, most, teams
    cdef double flops = 0, weights = 0, count = 0, best, time
    cdef Stack tried
    cdef const Run *r = &s.passes[0].run
    for i in range(s.layers * s.directions):
        r = &s.passes[i].run
        flops += flops_of(r)
        weights += <double>r.cell.gates * r.H * (r.I + r.P) * r.item
        count += r.count
        s.steps = max(s.steps, r.T)
    threads = 1 if is_crowded(flops) else team_size(flops, 1 << 30, threads)
    most = min(threads, 2 if s.directions > 1 else s.layers)
    s.teams, s.size, s.packs = 1, threads, training
    s.piece, s.pieces = s.steps, 1
    tried = s[0]
    count /= s.layers * s.directions * s.steps
    best = time_of(&tried, count) * (cores().wave if s.directions == 1 else 1)
    for teams in range(2, most + 1):
        tried.teams, tried.size = teams, threads // teams
        time = time_of(&tried, count)
        if time < best if TEAMS is None else teams <= TEAMS:
            best = time
            s[0] = tried
    if threads > 1:
        tried.teams = tried.size = 1
        time = time_of(&tried, count)
        if not (
            training_pays_off(3 * flops, weights, count, r.item, threads)
            if training
            else pays_off(gain(time, time_of(s, count), OPENING, threads))
        ):
            s[0] = tried
    if PIECE is not None and s.pieces > 1:
        s.piece = min(s.steps, PIECE)
    return 0


# -- a call ------------------------------------------------------------------------------------


cdef int divide_unpacked(
    Pass *one, PackedWeights w, Scratch scratch, int team, Py_ssize_t piece, int threads
) except -1:
    """Divides a pass and packs its weights if nobody has, but for those that pass by."""
    cdef Run *r = &one.run
    if w.is_packed() or r.panels != NULL:
        divide(r, &one.plan, scratch, team, piece)
        return 0
    r.panels, r.panel_count = w.panels, 1 + w.cell.phases
    divide(r, &one.plan, scratch, team, piece)
    w.pack_rest(r.passing, threads)
    if r.passing == 0:
        r.panels = NULL
    r.panel_count = r.passing
    return 0


cdef int run_stack(
    Pass *passes, int layers, int directions, list weights, Scratch scratch, indices, int threads
) except -1:
    """Passes whose weights, sizes, arrays and states are set, with at least one step of one row;
    `indices` is None or a list by direction, for the first layer."""
    cdef Stack s
    cdef Pass *one
    cdef int i, count = layers * directions, size = 1
    cdef long long begin, end, lost = 0
    cdef bint even = True  # whether threads have about as much to do
    s.passes, s.layers, s.directions, s.steps = passes, layers, directions, 0
    share(&s, (<PackedWeights>weights[0]).for_training(), threads)
    for i in range(count):
        one = &passes[i]
        divide_unpacked(one, weights[i], scratch, s.size, max(1, min(s.piece, one.run.T)), threads)
        size = max(size, one.plan.team)
        even = even and (one.plan.even or s.teams > 1)
        if s.pieces > 1:  # pieces are chunks
            s.piece = min(s.piece, one.run.chunk)
    s.pieces = (s.steps + s.piece - 1) // s.piece
    for i in range(count):
        one = &passes[i]
        one.run.chunk = min(s.piece, one.run.chunk)
        one.run.spent = NULL
        one.run.back = rk_get(&next_back) != 0
        if s.pieces == 1:  # of more the next would need all
            one.plan.leaves = True
            if one.plan.tiles > 1:
                let_hand_over(&one.plan, scratch)
        lay_out(one, scratch, None if one.run.index == NULL else indices[i % directions])
    rk_set(&next_back, rk_get(&next_back) == 0)
    s.size = size
    s.flags = <rk_flag *>scratch.take_zeros(s.teams * s.size * sizeof(rk_flag))
    s.done = <rk_flag *>scratch.take_zeros(count * sizeof(rk_flag))
    s.spent = NULL
    threads = s.teams * s.size
    call = current_call()
    if call is not None:
        spent = call.enter(threads)
        s.spent = <long long *>address(spent)
    with nogil:
        if threads == 1:
            run_member(&s, 1, 0)
        else:
            begin = s.end = nanoseconds()
            with parallel(num_threads=threads):
                run_member(&s, rk_members(), rk_member())
            end = nanoseconds()
            for i in range(count):
                lost += rk_lost(passes[i].plan.flags, passes[i].plan.team) // s.teams
    if threads > 1 and even:
        report(end - begin, lost + end - s.end)
    if call is not None:
        call.leave(threads)
        for i in range(count):
            call.left += rk_gone(passes[i].plan.flags, passes[i].plan.team)
    for i in range(count):
        if passes[i].plan.by_units:  # else who did a row's last step has taken them
            take_states(&passes[i].run, 0, passes[i].run.N)
    return 0


def forward(list layers, int threads):
    """Runs all steps of layers, each a list of its directions, each a tuple of a Pass
    (rnnkernel/_tape.pyx) and where its final states go, h_n (N, P) and c_n (N, H), None without a
    cell state. y is written, and reserve receives what backward needs; without one only the gates
    of a few steps exist at any time.

    Arrays may have any strides, but for the units of y. Only the first layer may have an index, and
    with it rows.
    """
    cdef Scratch scratch = Scratch()
    cdef int directions = len(layers[0]), count = directions * len(layers), i
    cdef Pass *passes = <Pass *>scratch.take(count * sizeof(Pass))
    cdef list weights = [], first
    cdef _tape.Pass of
    for i in range(count):
        of, h_n, c_n = layers[i // directions][i % directions]
        weights.append(of.weights)
        set_arrays(&passes[i], of, h_n, c_n)
    first = [(<_tape.Pass>one[0]) for one in layers[0]]
    if passes[0].run.count > 0:
        of = first[0]
        indices = None if of.index is None else [(<_tape.Pass>one).index for one in first]
        run_stack(passes, len(layers), directions, weights, scratch, indices, threads)
        for i in range(count):
            of = layers[i // directions][i % directions][0]
            of.groups = passes[i].groups
        return
    for i in range(count):
        of = layers[i // directions][i % directions][0]
        of.y[...] = 0
        keep_states(&passes[i].run)
