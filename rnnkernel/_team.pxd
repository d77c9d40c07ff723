"""Threads of one parallel region that wait for one another inside it.

Opening a region costs microseconds, and tens of them where threads sleep; a loop that needs
everybody's last step before the next one meets here instead. Each member counts the meetings it
has come to in a cache line of its own.
"""

cdef extern from *:
    """
    #include <sched.h>
    #include <stdatomic.h>
    #include <stddef.h>
    #ifdef _OPENMP
    #include <omp.h>
    #define rk_members omp_get_num_threads
    #define rk_member omp_get_thread_num
    #else
    static inline int rk_members(void) { return 1; }
    static inline int rk_member(void) { return 0; }
    #endif
    #if defined(__x86_64__) || defined(__i386__)
    #define rk_pause __builtin_ia32_pause
    #elif defined(__aarch64__)
    static inline void rk_pause(void) { __asm__ volatile("yield"); }
    #else
    static inline void rk_pause(void) {}
    #endif

    enum { RK_SPINS = 500 }; /* then others that want the core get it */

    typedef struct {
        _Alignas(64) atomic_long met;
    } rk_flag;

    static inline void rk_await(rk_flag *flag, long count)
    {
        for (int spins = 0; atomic_load_explicit(&flag->met, memory_order_acquire) < count; spins++)
            if (spins < RK_SPINS)
                rk_pause();
            else
                sched_yield();
    }

    static inline void rk_raise(rk_flag *flag, long count)
    {
        atomic_store_explicit(&flag->met, count, memory_order_release);
    }

    static inline void rk_meet(rk_flag *flags, int members, int member)
    {
        const long mine = atomic_load_explicit(&flags[member].met, memory_order_relaxed) + 1;
        rk_raise(&flags[member], mine);
        for (int other = 0; other < members; other++)
            rk_await(&flags[other], mine);
    }

    /* the first in the low half, the end in the high one */
    typedef struct {
        _Alignas(64) atomic_ullong ends;
    } rk_range;

    static inline unsigned long long rk_ends(ptrdiff_t first, ptrdiff_t past)
    {
        return (unsigned long long)first | (unsigned long long)past << 32;
    }

    static inline void rk_offer(rk_range *range, ptrdiff_t first, ptrdiff_t past)
    {
        atomic_store_explicit(&range->ends, rk_ends(first, past), memory_order_relaxed);
    }

    static inline int rk_take(rk_range *range, int back, ptrdiff_t most, ptrdiff_t *first,
                              ptrdiff_t *past)
    {
        unsigned long long seen = atomic_load_explicit(&range->ends, memory_order_relaxed), left;
        do {
            const ptrdiff_t begin = (ptrdiff_t)(seen & 0xffffffff), end = (ptrdiff_t)(seen >> 32);
            const ptrdiff_t half = (end - begin + 1) / 2;
            const ptrdiff_t count = most > 0 && most < half ? most : half;
            if (begin >= end) return 0;
            *first = back ? end - count : begin;
            *past = *first + count;
            left = back ? rk_ends(begin, *first) : rk_ends(*past, end);
        } while (!atomic_compare_exchange_weak_explicit(
            &range->ends, &seen, left, memory_order_relaxed, memory_order_relaxed));
        return (left & 0xffffffff) < left >> 32 ? 2 : 1;
    }

    static inline ptrdiff_t rk_next(rk_flag *counter)
    {
        return atomic_fetch_add_explicit(&counter->met, 1, memory_order_relaxed);
    }
    """
    ctypedef struct rk_flag:
        pass

    ctypedef struct rk_range:
        pass

    # Of the region that the caller is in.
    int rk_members() nogil
    int rk_member() nogil
    # Returns when all members have come as often as this one; what they wrote before is seen.
    # `flags` are `members` zeroed flags, at a multiple of 64 bytes.
    void rk_meet(rk_flag *flags, int members, int member) nogil
    # Returns when the flag has been raised to a count; what was written before that is seen.
    void rk_await(rk_flag *flag, long count) nogil
    # One thread alone raises a flag.
    void rk_raise(rk_flag *flag, long count) nogil
    # The next number of a count that members share, from 0; a zeroed flag that nobody meets at.
    Py_ssize_t rk_next(rk_flag *counter) nogil
    # What a member has to do of a count of pieces, and others may take from it where they have
    # nothing left. Zeros are an empty range. Nobody may take from one while it is offered.
    void rk_offer(rk_range *range, Py_ssize_t first, Py_ssize_t past) nogil
    # Takes the first half of what is left, rounded up, or the last: `most` pieces of it unless that
    # is 0. Returns 0 if there was none, 1 if it was all, 2 if more is left.
    int rk_take(
        rk_range *range, bint back, Py_ssize_t most, Py_ssize_t *first, Py_ssize_t *past
    ) nogil
