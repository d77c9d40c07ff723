"""Plants faults in a copy of the sources, one at a time, and shows which test catches each.

    python tests/seeded_faults.py [WORD ...]      only faults whose title has one of the words

A script, not a test: it compiles the kernels again for every fault. It needs what building needs
(Cython, setuptools, a C compiler) and the packages of the extra `test`. Exits with 1 where a fault
survives, and stops where a fault no longer fits the sources, which is to be mended here.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("csrc", "rnnkernel", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")
# Fast, and by value: whatever else the tests hold, these must notice a wrong number.
TESTS = ("tests/test_values.py", "tests/test_clipping.py", "tests/test_lstm_options.py")
CHOSEN = "test_core or test_clipped_bptt_equals_the_reference or many_steps_and_rows"


@dataclass(frozen=True)
class Fault:
    """`old`, which stands exactly once in the file (in any line breaks), becomes `new`."""

    title: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = TESTS
    chosen: str = CHOSEN


LSTM, GRU, RNN = "csrc/cells/lstm.h", "csrc/cells/gru.h", "csrc/cells/rnn.h"
ACTIVATIONS = "csrc/activations.h"
TABLE, ARRIVAL = "csrc/kernels.h", "csrc/arrival.h"
FORWARD, RECURRENCE = "rnnkernel/_forward.pyx", "rnnkernel/_recurrence.pyx"
BPTT, CHUNKS = "rnnkernel/_bptt.pyx", "rnnkernel/_chunks.pyx"
STEPS_BACK = "rnnkernel/_steps_back.pyx"
GRADIENTS = "rnnkernel/_gradients.pyx"
PACKING = "rnnkernel/_packing.pyx"
LOOKUP, SEQUENCE, STREAM = "csrc/lookup.h", "rnnkernel/_sequence.py", "rnnkernel/_stream.pyx"
CHECKPOINTS, SMALL = "rnnkernel/_checkpoints.py", "csrc/small_weights.h"
PACK = "csrc/pack.h"
UNROLL, DIFFERENTIATE = "rnnkernel/_unroll.pyx", "rnnkernel/_differentiate.pyx"
BACKWARD, POOL = "rnnkernel/_backward.pyx", "rnnkernel/_pool.pyx"
TEAM, CROWD = "rnnkernel/_team.h", "rnnkernel/_crowd.pyx"


def only(name, chosen=""):
    """The tests of one promise."""
    return {"tests": (f"tests/test_{name}.py",), "chosen": chosen}


FAULTS = [
    Fault(
        "LSTM: i and f change places in the epilogue",
        LSTM,
        "vec c = RK(vfma)(f, c_prev[m], g_top / (a[0] * a[g]));",
        "vec c = RK(vfma)(f, c_prev[m], g_top / (a[coupled ? 0 : 1] * a[g]));",
    ),
    Fault(
        "LSTM: backward reads what forward handed o on as",
        LSTM,
        "if (s->keeps) RK(vstore)(gate[m] + (slots - 1) * LANES, RK(vreciprocal)(o[m]));",
        "",
    ),
    Fault(
        "LSTM: g and o change places in W_hh",
        TABLE,
        ".recurrent = {RK_LSTM_WINDOW(options)}",
        ".recurrent = {{0, RK_LSTM_GATES(options), {0, 5 - RK_LSTM_GATES(options), 3, 2}}}",
    ),
    Fault(
        "LSTM: dc is not multiplied by f on its way back",
        LSTM,
        "vec dc_prev = dc_f;",
        "vec dc_prev = dc;",
    ),
    Fault(
        "LSTM: df from c_t's gradient without c_{t-1}",
        LSTM,
        "dc_f * RK(vfnma)(c_prev, f, c_prev)",
        "dc_f * (1 - f)",
    ),
    Fault(
        "LSTM with peepholes: o sees the cell before the step",
        LSTM,
        "x[m] = RK(vfma)(p, x[rows + m], o[m]);",
        "x[m] = RK(vfma)(p, RK(vload)((const real *)s->c_prev + block * s->c_prev_block + "
        "(row + m) * s->c_prev_row), o[m]);",
    ),
    Fault(
        "LSTM with peepholes: dc without what o saw",
        LSTM,
        "if (peephole) dc = RK(vfma)(RK(vload)(p + 2 * LANES), da_o, dc);",
        "",
    ),
    Fault(
        "LSTM with peepholes: the gradient of p_o with c_{t-1}",
        LSTM,
        "LANES, da_o * c);",
        "LANES, da_o * c_prev);",
    ),
    Fault(
        "LSTM with a clipped cell: the gradient passes where it was clipped",
        LSTM,
        "dc = RK(vselect)((before > limit) | (before < -limit), (vec){0}, dc);",
        "",
    ),
    Fault(
        "LSTM with a clipped cell: only the upper limit",
        LSTM,
        "RK(vmin)(RK(vset)(limit), RK(vmax)(RK(vset)(-limit), c))",
        "RK(vmin)(RK(vset)(limit), c)",
    ),
    Fault(
        "LSTM with coupled gates: di without c_{t-1}",
        LSTM,
        "of_i = coupled ? g - c_prev : g",
        "of_i = g",
    ),
    Fault(
        "LSTM with coupled gates: the gradients of f are left unwritten",
        PACKING,
        "array[...] = 0",
        "pass",
    ),
    Fault(
        "LSTM with projection: dW_hr of c instead of o * tanh(c)",
        LSTM,
        "early_row[row] + unit, o * tanh_c);",
        "early_row[row] + unit, c);",
    ),
    Fault(
        "LSTM with projection: dW_hr of the gradient before clipping and dy",
        STEPS_BACK,
        "if not through_projection(r, s, t, &step):",
        "if t < r.T - 1 and not through_projection(r, s, t, &step):",
    ),
    Fault(
        "LSTM with projection: clipping takes c to be as wide as h",
        ARRIVAL,
        "if (dc) changed |= RK(clip_row)(dc, p->hidden,",
        "if (dc) changed |= RK(clip_row)(dc, p->projected,",
    ),
    Fault(
        "GRU, reset after: r and z change places in W_hh",
        TABLE,
        ".recurrent = {{1, 3, {0, 1, 2}}}",
        ".recurrent = {{1, 3, {1, 0, 2}}}",
    ),
    Fault(
        "GRU, reset after: the recurrent bias of n is forgotten",
        PACKING,
        "window.slot, data(bias_hh), window, self)",
        # the window of the other GRU's first phase: r and z
        "window.slot, data(bias_hh), "
        "&self.kernels.cells[3].recurrent[0] if self.cell_index == 2 else window, self)",
    ),
    Fault(
        "GRU, reset before: the recurrent bias of n is forgotten",
        PACKING,
        "add_rows(self.bias, self.cell.slots, window.slot, data(bias_hh), window, self)",
        "if phase == 0: add_rows(self.bias, self.cell.slots, window.slot, data(bias_hh), window, "
        "self)",
    ),
    Fault(
        "GRU, reset after: the gradient of W_hn h + b_hn without r",
        GRU,
        "RK(vstore)(dgate + 3 * LANES, dm);",
        "RK(vstore)(dgate + 3 * LANES, da);",
    ),
    Fault(
        "GRU, reset before: dW_hn of h instead of r * h",
        GRU,
        "RK(vstore)((real *)s->early + s->early_row[row] + unit, r * h_prev);",
        "RK(vstore)((real *)s->early + s->early_row[row] + unit, h_prev);",
    ),
    Fault(
        "GRU, reset after: the second of two rows has the first one's h_{t-1}",
        GRU,
        "2 * m + 1]; const vec h_prev = RK(vload)((const real *)s->h_prev + (row + m)",
        "2 * m + 1]; const vec h_prev = RK(vload)((const real *)s->h_prev + row",
    ),
    Fault(
        "GRU, reset before: backward reads what the first phase handed z on as",
        GRU,
        "RK(vstore)(gate[m] + 2 * slot, RK(vreciprocal)(z));",
        "",
    ),
    Fault(
        "sigmoid: ln 2 without its low part",
        ACTIVATIONS,
        "RK_EACH(r[j], r[j], RK(vfma)(n[j], RK(vset)(RK_LN2_LOW), r[j]));",
        "",
        **only("activations"),
    ),
    Fault(
        "tanh: from 1 - e^-2a",
        ACTIVATIONS,
        "RK(vfma)(p[j], r[j], one - scale[j])",
        "one - (scale[j] - p[j] * r[j])",
        **only("activations"),
    ),
    Fault(
        "tanh: -0 becomes 0",
        ACTIVATIONS,
        "RK(vsigned)(r[j], x[j])",
        "RK(vselect)(x[j] < (vec){0}, -r[j], r[j])",
        **only("activations"),
    ),
    Fault(
        "RNN: relu passes the gradient on the wrong side",
        RNN,
        "RK(vselect)(h <= (vec){0}, (vec){0}, dh)",
        "RK(vselect)(h <= (vec){0}, dh, (vec){0})",
    ),
    Fault(
        "clipping forgets c",
        ARRIVAL,
        "if (dc) changed |= RK(clip_row)(dc, p->hidden, p->limit, p->norm_limit);",
        "",
    ),
    Fault(
        "BPTT: the first step is dropped",
        STEPS_BACK,
        "for t in range(c.t0 + c.steps - 1, c.t0 - 1, -1):",
        "for t in range(c.t0 + c.steps - 1, max(c.t0 - 1, 0), -1):",
    ),
    Fault(
        "BPTT: the last step's dy is dropped",
        STEPS_BACK,
        "if r.dy != NULL: a.dy =",
        "if r.dy != NULL and t < r.T - 1: a.dy =",
    ),
    Fault(
        "BPTT: dW_hh pairs the first step with h_0 instead of the initial state",
        STEPS_BACK,
        "r, <const char *>step.h_prev + step.h_prev_row[n]",
        "r, (<const char *>step.h_prev if t > 0 else r.y) + step.h_prev_row[n]",
    ),
    Fault(
        "BPTT: dW_hh pairs dgates_t with h_t",
        STEPS_BACK,
        "r, <const char *>step.h_prev + step.h_prev_row[n]",
        "r, r.y + (t * r.y_time + r.y_row[s.begin + n])",
    ),
    Fault(
        "BPTT: no gradient of b_hh",
        PACKING,
        "copy_rows(data(bias_hh), self.bias, w.gradient_slots, &w.cell.recurrent[phase], w)",
        "bias_hh[...] = 0",
    ),
    Fault(
        "forward: the final h is that of the step before",
        FORWARD,
        "h_at(r, steps) + r.h_row[n]",
        "h_at(r, steps + 1) + r.h_row[n]",
    ),
    Fault(
        "forward: the final c is that of the step before",
        FORWARD,
        "gates_at(r, steps - 1) + (r",
        "gates_at(r, max(0, steps - 2)) + (r",
    ),
    Fault(
        "wavefront: a layer is a piece ahead of the one below",
        "rnnkernel/_stack.pyx",
        "rk_await(&s.done[below], piece + 1)",
        "rk_await(&s.done[below], piece)",
        **only("teams"),
    ),
    Fault(
        "token ids: a step sees the row of the batch row before",
        LOOKUP,
        "(block * p->table_block + p->table_row[row]) * size; const real *init",
        "(block * p->table_block + p->table_row[row > 0 ? row - 1 : 0]) * size; const real *init",
        **only("ids"),
    ),
    Fault(
        "token ids: of int8 weights all blocks have the first one's scale",
        LOOKUP,
        "(const real *)p->scale + block * p->scale_block + v * LANES;",
        "(const real *)p->scale + v * LANES;",
        **only("stream_ids", "smaller_weights"),
    ),
    Fault(
        "token ids: of an id that repeats only the first step has a gradient",
        LOOKUP,
        "RK(vstore)(to + v * LANES, RK(vload)(to + v * LANES) + RK(vload)(from + v * LANES));",
        "RK(vstore)(to + v * LANES, RK(vload)(from + v * LANES));",
        **only("ids"),
    ),
    Fault(
        "token ids: sums by id begin with what lay there",
        GRADIENTS,
        "if c.first and r.table_gradient == r.input_gradient:",
        "if False:",
        **only("ids"),
    ),
    Fault(
        "token ids: the last tile of a strip forgets ids that the one before had",
        PACK,
        "while (k > k0 && columns[k - 1] >= begin) k--;",
        "",
        **only("packing"),
    ),
    Fault(
        "token ids: a tile of W_ih's last columns packs those before",
        PACK,
        "RK(vstore)(packed + k * width, m[columns[k] - begin]);",
        "RK(vstore)(packed + k * width, m[columns[k] - (begin / LANES * LANES)]);",
        **only("packing"),
    ),
    Fault(
        "token ids: of few ids nobody writes zeros to the others",
        PACK,
        "__builtin_memset(canonical + u * row + begin, 0, (size_t)(past - begin) * sizeof(real));",
        "",
        **only("packing"),
    ),
    Fault(
        "token ids: the embedding's gradient of the rows after the first piece",
        GRADIENTS,
        "p.a, p.a_row = r.table_gradient, r.table_row + begin",
        "p.a, p.a_row = r.table_gradient, r.table_row",
        **only("ids"),
    ),
    Fault(
        "token ids: the gradient of an id goes to another row of the embedding's",
        GRADIENTS,
        "begin + row if r.dtable_at == NULL else r.dtable_at[begin + row]",
        "begin + row",
        **only("ids"),
    ),
    Fault(
        "token ids: the second direction's gradient replaces that of the first",
        DIFFERENTIATE,
        "dembedding[table.ids] += back.dtable",
        "dembedding[table.ids] = back.dtable",
        **only("ids"),
    ),
    Fault(
        "lengths: rows take one step more than they have",
        "rnnkernel/_rows.pyx",
        "memcpy(offsets(alive) + i * longest, place + 1, longest * sizeof(Py_ssize_t))",
        "memcpy(offsets(alive) + i * longest, place, longest * sizeof(Py_ssize_t))",
        **only("lengths"),
    ),
    Fault(
        "lengths: the final state is that after the batch's last step",
        FORWARD,
        "row, steps = r.order[n], r.length[n]",
        "row, steps = r.order[n], r.T",
        **only("lengths"),
    ),
    Fault(
        "lengths: the second direction begins in the padding",
        "rnnkernel/_rows.pyx",
        "offsets(start)[n] = T - offsets(lengths)[n]",
        "offsets(start)[n] = 0",
        **only("lengths"),
    ),
    Fault(
        "reset: dh crosses the border",
        STEPS_BACK,
        "clear_columns(r, reset, <char *>step.dh, rows, s.first, s.past)",
        "pass",
        **only("reset"),
    ),
    Fault(
        "reset: dc crosses the border",
        STEPS_BACK,
        "clear_columns(r, reset, <char *>step.dc, rows, s.first_unit, s.past_unit)",
        "pass",
        **only("reset"),
    ),
    Fault(
        "reset: dW_hh pairs the first step with the state before the border",
        STEPS_BACK,
        "if reset != NULL and reset[n]:",
        "if reset != NULL and reset[n] and n < 0:",
        **only("reset"),
    ),
    Fault(
        "reset: the second direction's border is one step off",
        SEQUENCE,
        "by_position[t[s, position], position]",
        "by_position[t[s, position] - 1, position]",
        **only("reset"),
    ),
    Fault(
        "threads: forward, the last unit block is nobody's",
        RECURRENCE,
        "part.block_end = r.blocks * (part.team.member + 1) // part.team.members",
        "part.block_end = r.blocks * (part.team.member + 1) // part.team.members - ("
        "part.team.members > 1 and part.team.member == 1)",
        **only("split"),
    ),
    Fault(
        "threads: forward, a tile forgets its first row",
        RECURRENCE,
        "set_bounds(r, &part, plan.bounds[i], plan.bounds[i + 1])",
        "set_bounds(r, &part, plan.bounds[i] + (i > 0), plan.bounds[i + 1])",
        **only("split"),
    ),
    Fault(
        "threads: backward, a share forgets its last row",
        CHUNKS,
        "s.begin, s.end = bounds[i], bounds[i + 1]",
        "s.begin, s.end = bounds[i], bounds[i + 1] - (i + 1 < team.size)",
        **only("split_backward"),
    ),
    Fault(
        "threads: backward, the last columns of x are nobody's",
        CHUNKS,
        "s.x_past = part(x_groups, member + 1, members)",
        "s.x_past = part(x_groups, member + 1, members) - (members > 1)",
        **only("split_backward"),
    ),
    Fault(
        "rows that change hands: a chunk of theirs is nobody's",
        RECURRENCE,
        "if rk_hand_over(part.handover, middle, part.end, t):",
        "if rk_hand_over(part.handover, middle, part.end, t + r.chunk):",
        **only("split", "hands"),
    ),
    Fault(
        "rows that change hands: who takes them over projects those of the first tile",
        RECURRENCE,
        "list_chunk(r, part.begin, part.end) run_rows(r, &part)",
        "run_rows(r, &part)",
        **only("split", "hands"),
    ),
    Fault(
        "threads apart: gradients begin before all have done the steps",
        BPTT,
        "if begin < past and end > first and rk_passed(&r.parts[i]) <= p.done:",
        "if i == team.mate and rk_passed(&r.parts[i]) <= p.done:",
        **only("split_backward", "apart"),
    ),
    Fault(
        "threads apart: a shard's gradients begin before the last of its steps is done",
        BPTT,
        "if begin < past and end > first and rk_passed(&r.parts[i]) <= p.done:",
        "if begin < past and end > first and rk_passed(&r.parts[i]) < p.done:",
        **only("split_backward", "apart"),
    ),
    Fault(
        "shards: those of a shorter chunk begin elsewhere",
        CHUNKS,
        "place += r.chunk_rows // r.N * size",
        "place += c.steps * size",
        **only("shards", "values"),
    ),
    Fault(
        "shards: dx of the second is that of the first",
        GRADIENTS,
        "place = c.place[shard] + begin",
        "place = begin",
        **only("shards", "values"),
    ),
    Fault(
        "shards: sums of the second are left out",
        PACKING,
        "for _shard in range(1, self.shards):",
        "for _shard in range(1, 1):",
        **only("shards", "values"),
    ),
    Fault(
        "shards: rows of a table are summed by shard, but into one sum",
        GRADIENTS,
        "look.table = r.table_gradient + shard * r.shard_bytes",
        "look.table = r.table_gradient",
        **only("shards", "one_hot"),
    ),
    Fault(
        "threads apart: steps go where gradients are yet to be made",
        BPTT,
        "p.room = p.done + (1 if p.last else ROOMS)",
        "p.room = p.done + (1 if p.last else ROOMS + 1)",
        **only("split_backward", "apart"),
    ),
    Fault(
        "threads apart: gradients of a chunk begin before those of the last are done",
        BPTT,
        "while rk_has_met(r.done, p.pieces.all):",
        "while rk_has_met(r.done, p.pieces.all - 1):",
        **only("split_backward", "apart"),
    ),
    Fault(
        "threads apart: a chunk's rows are where those of the last were",
        BPTT,
        "list_rows(&r.rooms[k % ROOMS], chunk_of(p, k))",
        "list_rows(&r.rooms[k % ROOMS], &p.now)",
        **only("split_backward", "apart"),
    ),
    Fault(
        "threads apart: steps begin before their rows are listed",
        BPTT,
        "past = min(past, rk_passed(r.listed))",
        "pass",
        **only("split_backward", "apart"),
    ),
    Fault(
        "threads apart: of unequal rows a part is taken to have those of its positions",
        BPTT,
        "begin, end = r.section[section], max(end, r.section[section + 1])",
        "pass",
        **only("split_backward", "apart"),
    ),
    Fault(
        "threads apart: gradients of a table begin with the rows of one shard",
        BPTT,
        "if r.index != NULL:  # shards may share the sums of a table",
        "if False:",
        **only("sections", "bits"),
    ),
    Fault(
        "sections: rows of the second end where those of the first do",
        RECURRENCE,
        "part.alive = r.alive + section * r.longest",
        "part.alive = r.alive",
        **only("sections", "bits"),
    ),
    Fault(
        "sections: backward, what the second has in memory is taken for the first's",
        STEPS_BACK,
        "order = r.in_memory + first + r.section[s.section]",
        "order = r.in_memory + first",
        **only("sections", "bits"),
    ),
    Fault(
        "sections: backward, places of the second are counted from the first position",
        CHUNKS,
        "at = listed - r.section[section]",
        "at = listed",
        **only("sections", "bits"),
    ),
    Fault(
        "threads apart: sums are read before they are cleared",
        BPTT,
        "rk_meet(r.flags, members, member)",
        "pass",
        **only("split_backward", "apart"),
    ),
    Fault(
        "late threads: forward, their blocks are nobody's",
        RECURRENCE,
        "if stays and part.team.members < members:",
        "if stays and part.team.members < 0:",
        **only("late"),
    ),
    Fault(
        "late threads: forward, those who stay share what does not change hands",
        RECURRENCE,
        "for i in range(1, part.team.size):",
        "for i in range(1, part.team.members):",
        **only("late", "forward"),
    ),
    Fault(
        "late threads: backward, their units are nobody's",
        STEPS_BACK,
        "if s.team.members < members:",
        "if s.team.members < 0:",
        **only("late"),
    ),
    Fault(
        "late threads: nobody leaves",
        TEAM,
        "if (atomic_load_explicit(&own->late, memory_order_relaxed) == mine) {",
        "if (mine < 0) {",
        **only("late"),
    ),
    Fault(
        "crowded cores: whoever has waited at all stays on one thread",
        CROWD,
        "losses = FADING * losses + (lost if lost >= WORTH_IT else 0)",
        "losses = FADING * losses + lost",
        **only("crowd"),
    ),
    Fault(
        "crowded cores: one call that loses is enough",
        CROWD,
        "elif calls >= ENOUGH and losses > MOST * times:",
        "elif losses > MOST * times:",
        **only("crowd"),
    ),
    Fault(
        "crowded cores: a call that runs well makes all forgotten",
        CROWD,
        "calls += 1",
        "calls = calls + 1 if lost > 0 else 0",
        **only("crowd"),
    ),
    Fault(
        "a profile does not see who left in backward",
        BACKWARD,
        "call.left += rk_gone(loops[i].flags, size)",
        "call.left += rk_gone(loops[i].flags, 0)",
        **only("late", "profile"),
    ),
    Fault(
        "packing: a thread leaves its last block to nobody",
        PACKING,
        "&panels[i], panels[i].blocks * part // parts, panels[i].blocks * (part + 1) // parts",
        "&panels[i], panels[i].blocks * part // parts, "
        "panels[i].blocks * (part + 1) // parts - (part + 1 < parts)",
        **only("packing"),
    ),
    Fault(
        "packing: rows of parameters are taken to have no gaps",
        PACKING,
        "job.canonical_row = cnp.PyArray_STRIDE(array, 0) // self.item",
        "job.canonical_row = job.k",
        **only("packing"),
    ),
    Fault(
        "unrolled calls: all layers begin with the states of the first",
        UNROLL,
        "first_state(of(initial[0], at), N, P, type_number)",
        "first_state(of(initial[0], d), N, P, type_number)",
        **only("stacks"),
    ),
    Fault(
        "plain calls: all layers begin with the states of the first",
        "rnnkernel/_plain.pyx",
        "<char *>cnp.PyArray_DATA(a) + index * cnp.PyArray_STRIDE(a, 0) m.row",
        "<char *>cnp.PyArray_DATA(a); m.row",
        **only("plain"),
    ),
    Fault(
        "backward: dx of the second direction replaces that of the first",
        DIFFERENTIATE,
        "dx = back.dx if d == 0 else np.add(dx, back.dx[::-1], out=dx)",
        "dx = back.dx if d == 0 else back.dx[::-1]",
        **only("stacks"),
    ),
    Fault(
        "unrolled calls: all rows begin with the first one's h0",
        UNROLL,
        "<char *>cnp.PyArray_DATA(given) + n * cnp.PyArray_STRIDE(given, 0),",
        "<char *>cnp.PyArray_DATA(given),",
        **only("values"),
    ),
    Fault(
        "plain training: an x that the caller may write to is not copied",
        "rnnkernel/_rows.pyx",
        "return x if stays(x) else copy_steps(x, lengths, threads)",
        "return x",
        **only("plain", "training"),
    ),
    Fault(
        "plain calls: cell states begin with the first row's",
        "rnnkernel/_plain.pyx",
        "pack_cell_states(w, &first_c, N, order, <char *>r.c0)",
        "first_c.row = 0; pack_cell_states(w, &first_c, N, order, <char *>r.c0)",
        **only("plain"),
    ),
    Fault(
        "kept weights: who asks for parameters is not heard",
        "rnnkernel/layers.py",
        "self._kept.forget() return self._parameters",
        "return self._parameters",
        **only("kept"),
    ),
    Fault(
        "kept weights: views are not counted",
        "rnnkernel/_kept.pyx",
        "if Py_REFCNT(array) != 1 or rk_has_weak_reference(array):",
        "if rk_has_weak_reference(array):",
        **only("kept"),
    ),
    Fault(
        "kept weights: the memory of others counts as one's own",
        "rnnkernel/_kept.pyx",
        "if not cnp.PyArray_CheckExact(<object>array): return False",
        "if not cnp.PyArray_CheckExact(<object>array): return True",
        **only("kept"),
    ),
    Fault(
        "threads that take blocks: the last one is not offered",
        RECURRENCE,
        "+ part.team.mate], part.block_begin, part.block_end,",
        "+ part.team.mate], part.block_begin, part.block_end - 1,",
        **only("split"),
    ),
    Fault(
        "frozen layers: what they show is the layer's own",
        "rnnkernel/inference.py",
        'copied = array.copy(order="C") copied.flags.writeable = False',
        "copied = np.asarray(array)",
        **only("freeze"),
    ),
    Fault(
        "clip_grad_norm: short gradients are made longer",
        "rnnkernel/clipping.py",
        "if total > max_norm:",
        "if total > 0:",
        **only("clipping", "clip_grad"),
    ),
    Fault(
        "dropout: every step has the mask of the first",
        "rnnkernel/_dropout.pyx",
        "step.step += t",
        "pass",
        **only("dropout"),
    ),
    Fault(
        "dropout: what is kept is not scaled",
        "csrc/dropout.h",
        "const real kept = in[unit + j] * scale;",
        "const real kept = in[unit + j]; (void)scale;",
        **only("dropout"),
    ),
    Fault(
        "streams: the state before the last step",
        STREAM,
        "t = 2 - self.parity",
        "t = 1 + self.parity",
        **only("stream"),
    ),
    Fault(
        "streams: reset clears the state that is not in use",
        STREAM,
        "array[self.parity, chosen] = 0",
        "array[1 - self.parity, chosen] = 0",
        **only("stream"),
    ),
    Fault(
        "streams: an embedding is taken to have no gaps between its rows",
        STREAM,
        "row = cnp.PyArray_STRIDES(table)[0] // self.item",
        "row = self.inputs",
        **only("stream_ids", "layout"),
    ),
    Fault(
        "streams: of several ids the first counts",
        STREAM,
        "id_at(place + n * step, size, is_signed)",
        "id_at(place, size, is_signed)",
        **only("stream_ids"),
    ),
    Fault(
        "streams: the id after the last has a row",
        STREAM,
        "if value < 0 or value >= count:",
        "if value < 0 or value > count:",
        **only("stream_ids", "wrong"),
    ),
    Fault(
        "profile: what the loops of a stream's step spend is set-up",
        STREAM,
        "r.spent = self.spent",
        "pass",
        **only("profile"),
    ),
    Fault(
        "checkpoints: segments begin with the states of the next",
        CHECKPOINTS,
        "states = [(one.h0, one.c0), *one.checkpoints.states]",
        "states = [*one.checkpoints.states, (one.h0, one.c0)]",
        **only("checkpoints"),
    ),
    Fault(
        "lengths: rows without steps keep in dx what memory had",
        STEPS_BACK,
        "clear_dx(r, t, max(s.begin, alive), s.end, s.members, s.member)",
        "clear_dx(r, t, max(s.begin, alive) + 1, s.end, s.members, s.member)",
        **only("lengths"),
    ),
    Fault(
        "directions at once: the second's final gradients are the first's",
        BACKWARD,
        "prepare(&loops[i], passes[i], scratch, size)",
        "prepare(&loops[i], passes[0], scratch, size)",
        **only("split_backward", "directions"),
    ),
    Fault(
        "directions at once: with a thread too few the second is left out",
        BACKWARD,
        "if i % teams == member // size:",
        "if i == member // size:",
        **only("split_backward", "fewer"),
    ),
    Fault(
        "memory: a block that is taken waits on",
        POOL,
        "best[0] = found.older",
        "found = best[0]",
        **only("pool"),
    ),
    Fault(
        "memory: a block serves where a larger one is wanted",
        POOL,
        "if size <= at[0].size <= size + size // 2",
        "if at[0].size <= size + size // 2",
        **only("pool"),
    ),
    Fault(
        "memory: what waits without a layer stays",
        POOL,
        "if rk_count(&rk_layers, -1) == 0 and rk_pool_enter():",
        "if rk_count(&rk_layers, -1) < 0 and rk_pool_enter():",
        **only("pool", "without"),
    ),
    Fault(
        "checkpoints: gradients stop where a segment begins",
        CHECKPOINTS,
        "dh, dc = given.dh0, given.dc0",
        "dh = dc = None",
        **only("checkpoints"),
    ),
    Fault(
        "float16: denormal weights widen as normal ones",
        SMALL,
        "w = RK(vselect)(exponent == 0, tiny, w);",
        "(void)tiny;",
        **only("small_weights"),
    ),
    Fault(
        "int8: of several blocks at once all have the first one's scale",
        SMALL,
        "RK(vload)(scale + w * q->scale_block + v * LANES)",
        "RK(vload)(scale + v * LANES)",
        **only("small_weights"),
    ),
    Fault(
        "int8: what was there is not added",
        SMALL,
        "* LANES), sum, RK(vload)(from + v * LANES));",
        "* LANES), sum, (vec){0});",
        **only("small_weights"),
    ),
    Fault(
        "trace: gates in the order that they have in memory",
        FORWARD,
        "if w.cell.input.order[i] == gate:",
        "if i == gate:",
        **only("trace"),
    ),
    Fault(
        "trace: f of coupled gates is i",
        FORWARD,
        "return 1 - kept(w, reserve, T, N, 0)",
        "return kept(w, reserve, T, N, 0)",
        **only("lstm_options", "test_trace"),
    ),
    Fault(
        "save: matrices are written in Fortran's order",
        "rnnkernel/serialization.py",
        "np.ascontiguousarray(array, DTYPES",
        "np.ascontiguousarray(array.T, DTYPES",
        **only("serialization"),
    ),
]


def pattern(text):
    """Finds the text whatever its line breaks and indentation."""
    return re.compile(r"\s+".join(map(re.escape, text.split())))


def planted(fault, source):
    found = pattern(fault.old).findall(source)
    if len(found) != 1:
        sys.exit(f"{fault.title}: expected once in {fault.file}, found {len(found)}: {fault.old}")
    return source.replace(found[0], fault.new)


def copy_sources(to):
    for name in COPIED:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", ".*")
            shutil.copytree(path, to / name, ignore=ignored)
        else:
            shutil.copy2(path, to / name)
    # as the installed package has it
    shutil.copytree(to / "tests/reference", to / "rnnkernel/reference")


def run(tree, *command):
    # one instruction set: all are compiled from the same source; and the copy in every process
    # that a test starts, too
    environment = {
        **os.environ,
        "RNNKERNEL_BUILD_ISAS": "baseline",
        "RNNKERNEL_ISA": "baseline",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")])),
    }
    return subprocess.run(
        [sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True
    )


def build(tree):
    done = run(tree, "setup.py", "build_ext", "--inplace")
    if done.returncode != 0:
        sys.exit(f"the build failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def failed_test(tree, tests, chosen):
    """The first test that fails, or None."""
    options = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-k", chosen)
    done = run(tree, "-m", "pytest", *options, *tests)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"a crash, signal {-done.returncode}"
    failed = re.search(r"^FAILED \S+?::(.+?)(?: - .*)?$", done.stdout, re.M)
    if done.returncode != 1 or not failed:
        sys.exit(f"pytest did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return failed.group(1)


def main(words):
    faults = [f for f in FAULTS if not words or any(w.lower() in f.title.lower() for w in words)]
    width = max(len(fault.title) for fault in faults)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_sources(tree)
        sources = {f.file: (tree / f.file).read_text() for f in faults}
        changed = [planted(f, sources[f.file]) for f in faults]  # all fit, before any is built
        build(tree)
        done = run(tree, "-c", "import rnnkernel; print(rnnkernel.__path__[0])")
        if Path(done.stdout.strip()).resolve() != (tree / "rnnkernel").resolve():
            sys.exit(f"not the copy is imported, but {done.stdout}{done.stderr}")
        for tests, chosen in dict.fromkeys((f.tests, f.chosen) for f in faults):
            caught = failed_test(tree, tests, chosen)
            if caught:
                sys.exit(f"without any fault {caught} fails")
        for fault, text in zip(faults, changed, strict=True):
            start = time.monotonic()
            (tree / fault.file).write_text(text)
            build(tree)
            caught = failed_test(tree, fault.tests, fault.chosen)
            (tree / fault.file).write_text(sources[fault.file])
            survivors += caught is None
            seconds = time.monotonic() - start
            print(f"{fault.title:<{width}}  {caught or 'SURVIVED'}  ({seconds:.0f} s)", flush=True)
    print(f"{len(faults) - survivors} of {len(faults)} faults caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
