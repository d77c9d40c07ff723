/* kernels.h - every kernel for one dtype and one instruction set. An isa_*.c includes it once
 * with RK_DOUBLE 0 and once with RK_DOUBLE 1. It ends with the table of cells: a new cell is
 * a header in cells/ and a row there.
 */
#ifndef RK_ISA
#error "define RK_ISA, RK_VECTOR_BYTES and RK_REGISTERS before including kernels.h"
#endif

#if RK_DOUBLE
#define real double
#define integer long long
#define RK(name) rk_##name##_f64
#else
#define real float
#define integer int
#define RK(name) rk_##name##_f32
#endif

#include "vec.h"

#include "activations.h"
#include "product.h"
#include "quads.h"
#include "small_weights.h"

#include "arrival.h"
#include "dropout.h"
#include "lookup.h"
#include "loss.h"
#include "pack.h"
#include "step.h"
#include "updates.h"

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

/* canonical gates i f g o; slots i f g o, coupled i g o */
#define RK_LSTM_CELL(options)                                                                      \
    [RK_LSTM + options] = {.gates = 4,                                                             \
                           .slots = RK_LSTM_GATES(options),                                        \
                           .memory_slots = RK_LSTM_GATES(options) + 1,                             \
                           .states = 2,                                                            \
                           .unit_vectors = 1,                                                      \
                           .keeps_gates = 1,                                                       \
                           .phases = 1,                                                            \
                           .input = RK_LSTM_WINDOW(options),                                       \
                           .recurrent = {RK_LSTM_WINDOW(options)},                                 \
                           .peephole = RK_LSTM_PEEPHOLES(options),                                 \
                           .forward = {RK(lstm_forward_##options)},                                \
                           .project = (options) & RK_LSTM_PROJECTED ? RK(lstm_project) : NULL,     \
                           .backward = {RK(lstm_backward_##options)}}
#define RK_LSTM_GATES(options) ((options) & RK_LSTM_COUPLED ? 3 : 4)
#define RK_LSTM_WINDOW(options)                                                                    \
    {0, RK_LSTM_GATES(options), {0, 5 - RK_LSTM_GATES(options), 6 - RK_LSTM_GATES(options), 3}}
#define RK_LSTM_PEEPHOLES(options)                                                                 \
    {RK_LSTM_GATES(options),                                                                       \
     (options) & RK_LSTM_PEEPHOLE ? RK_LSTM_GATES(options) - 1 : 0,                                \
     {0, 5 - RK_LSTM_GATES(options), 2}}

static const rk_kernels
    RK(kernels) =
        {
            .isa = RK_ISA,
            .lanes = RK(LANES),
            .full_rows = RK_FULL_ROWS(4),
            .fma_vectors = RK(fma_vectors),
            .cells =
                {
                    [RK_RNN_TANH] = {.gates = 1,
                                     .slots = 1,
                                     .memory_slots = 1,
                                     .states = 1,
                                     .unit_vectors = RK(RNN_VECTORS),
                                     .phases = 1,
                                     .input = {0, 1, {0}},
                                     .recurrent = {{0, 1, {0}}},
                                     .forward = {RK(rnn_tanh_forward)},
                                     .backward = {RK(rnn_tanh_backward)}},
                    [RK_RNN_RELU] = {.gates = 1,
                                     .slots = 1,
                                     .memory_slots = 1,
                                     .states = 1,
                                     .unit_vectors = RK(RNN_VECTORS),
                                     .phases = 1,
                                     .input = {0, 1, {0}},
                                     .recurrent = {{0, 1, {0}}},
                                     .forward = {RK(rnn_relu_forward)},
                                     .backward = {RK(rnn_relu_backward)}},
                    /* canonical gates r z n; slots n r z m */
                    [RK_GRU_RESET_AFTER] = {.gates = 3,
                                            .slots = RK(GRU_SLOTS),
                                            .memory_slots = RK(GRU_SLOTS),
                                            .states = 1,
                                            .unit_vectors = 1,
                                            .keeps_gates = 1,
                                            .carries = 1,
                                            .phases = 1,
                                            .input = {0, 3, {2, 0, 1}},
                                            .recurrent = {{1, 3, {0, 1, 2}}},
                                            .forward = {RK(gru_after_forward)},
                                            .backward = {RK(gru_after_backward)}},
                    /* canonical gates r z n; slots n r z */
                    [RK_GRU_RESET_BEFORE] = {.gates = 3,
                                             .slots = RK(GRU_BEFORE_SLOTS),
                                             .memory_slots = RK(GRU_BEFORE_SLOTS),
                                             .states = 1,
                                             .unit_vectors = RK(GRU_BEFORE_VECTORS),
                                             .keeps_gates = 1,
                                             .carries = 1,
                                             .phases = 2,
                                             .input = {0, 3, {2, 0, 1}},
                                             .recurrent = {{1, 2, {0, 1}}, {0, 1, {2}}},
                                             .forward = {RK(gru_before_reset_forward),
                                                         RK(gru_before_forward)},
                                             .backward = {RK(gru_before_backward),
                                                          RK(gru_before_reset_backward)}},
                    RK_LSTM_CELL(0),
                    RK_LSTM_CELL(1),
                    RK_LSTM_CELL(2),
                    RK_LSTM_CELL(3),
                    RK_LSTM_CELL(4),
                    RK_LSTM_CELL(5),
                    RK_LSTM_CELL(6),
                    RK_LSTM_CELL(7),
                    RK_LSTM_CELL(8),
                    RK_LSTM_CELL(9),
                    RK_LSTM_CELL(10),
                    RK_LSTM_CELL(11),
                    RK_LSTM_CELL(12),
                    RK_LSTM_CELL(13),
                    RK_LSTM_CELL(14),
                    RK_LSTM_CELL(15),
                },
            .product = RK(product),
            .fill = RK(fill),
#if !RK_DOUBLE
            .small_product = RK(small_product),
#endif
#ifdef RK_QUADS
            .has_quads = RK(has_quads),
#endif
            .gather = RK(gather),
            .scatter = RK(scatter),
            .pack = RK(pack),
            .unpack = RK(unpack),
            .pack_transposed = RK(pack_transposed),
            .arrive = RK(arrive),
            .row_sums = RK(row_sums),
            .dropout = RK(dropout),
            .adam = RK(adam),
            .sum_of_squares = RK(sum_of_squares),
            .scale = RK(scale),
            .sum_of_rows = RK(sum_of_rows),
            .cross_entropy = RK(cross_entropy),
};

#undef RK_LSTM_CELL
#undef RK_LSTM_GATES
#undef RK_LSTM_WINDOW
#undef RK_LSTM_PEEPHOLES
#undef real
#undef integer
#undef RK
#undef vec
#undef ivec
#undef LANES
#undef RK_ACCUMULATORS
#undef RK_TILES_ASK
#undef RK_LARGEST_ASKS
#undef RK_PANEL_BYTES
#undef RK_FEWEST_TILES
#undef RK_STREAMS
#undef RK_FEW_STREAMS
#undef RK_L2_BYTES
#undef RK_FULL_ROWS
#undef RK_IN_REGISTER
#undef RK_QUADS
#undef RK_HALVES
#undef RK_HALF_OF
#undef RK_HALF_VECTOR
#undef RK_HALF_TILE
#undef RK_HALF_TILES
#undef RK_TILE
#undef RK_TILE_OF
#undef RK_TILES
#undef RK_BY_TWO
#undef RK_FOR_UNITS
