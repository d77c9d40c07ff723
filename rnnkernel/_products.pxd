"""Products of BPTT: over some of their columns, and with transposed weights.

What a step back and the gradients of a chunk have in common.
"""

from rnnkernel._bptt cimport Bptt
from rnnkernel._kernels cimport RK_TRANSPOSED_VECTORS, rk_product, rk_window


cdef inline void product_over(
    const Bptt *r, const rk_product *whole, Py_ssize_t first, Py_ssize_t past
) noexcept nogil:
    """The vectors first..past of the columns of C, counted through its blocks."""
    cdef rk_product p
    cdef Py_ssize_t block, skipped
    while first < past:
        p = whole[0]
        block, skipped = first // p.vectors, first % p.vectors * r.kernels.lanes
        p.b = <const char *>p.b + (block * p.b_block + skipped) * r.item
        p.c = <char *>p.c + (block * p.c_block + skipped) * r.item
        if p.init != NULL:
            p.init = <const char *>p.init + (block * p.init_block + skipped) * r.item
        if skipped > 0:
            p.blocks = 1
            p.vectors = p.last_vectors = min(p.vectors - first % p.vectors, past - first)
            first += p.vectors
        else:
            p.blocks = (past - first + p.vectors - 1) // p.vectors
            p.last_vectors = past - first - (p.blocks - 1) * p.vectors
            first = past
        r.kernels.product(&p)


cdef inline rk_product through(
    const Bptt *r, const rk_window *window, const char *weights
) noexcept nogil:
    """C = dgates W over one window but for the rows of A and C; `weights` are transposed panels."""
    cdef rk_product p
    p.ahead, p.later_count, p.half_of_last = NULL, 0, False
    p.vectors = RK_TRANSPOSED_VECTORS
    p.outer, p.inner = r.blocks, window.slots * r.units
    p.a = r.dgates + window.slot * r.units * r.item
    p.a_outer, p.a_inner = r.dgates_block, 1
    p.b = weights
    p.b_inner = RK_TRANSPOSED_VECTORS * r.kernels.lanes
    p.b_outer = p.inner * p.b_inner
    p.b_block = p.outer * p.b_outer
    p.c_block = p.b_inner
    p.init, p.init_block = r.zeros, 0
    return p


cdef inline void through_columns(
    const Bptt *r, const rk_window *window, rk_product *p, Py_ssize_t first, Py_ssize_t past
) noexcept nogil:
    """Some columns, in vectors, of what `through` began."""
    cdef Py_ssize_t padding = r.blocks * r.units - r.H
    if padding == 0:
        product_over(r, p, first, past)
        return
    # each slot's part of the sum ends with the last unit, not with its block: what lies beyond has
    # weights of zero, but may be NaN where x or a state is infinite
    p.outer = r.blocks - 1
    if p.outer > 0:
        product_over(r, p, first, past)
        p.init, p.later_count = NULL, 0  # it has been asked for
    p.a = <const char *>p.a + p.outer * p.a_outer * r.item
    p.b = <const char *>p.b + p.outer * p.b_outer * r.item
    p.outer, p.inner = window.slots, r.units - padding
    p.a_outer, p.b_outer = r.units, r.units * p.b_inner
    product_over(r, p, first, past)
