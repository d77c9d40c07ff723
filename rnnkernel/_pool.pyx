"""Large blocks of memory that go from call to call.

Memory that is new to a process is brought in page by page when it is first touched, which costs a
microsecond or more for each 4 KiB: a training call that got all its memory anew spent 10 to 70 % of
its time so. malloc hands large blocks back to the system when they are freed, or whenever enough of
them have been, and the next call begins again. Here they wait for it: a training loop asks for the
same sizes again and again. The largest come from the system itself.

Blocks wait in a list, the last one given first. What nobody took while so many others were given is
freed, as is what exceeds a limit, the oldest first, and everything when there is no layer left.
"""

import os

from libc.stdlib cimport free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

cdef extern from *:
    """
    #include <stdatomic.h>
    #include <stdint.h>
    #include <sys/mman.h>

    #define RK_HUGE_PAGE ((size_t)1 << 21)

    /* Memory from the system, which it gets back: whole pages, from the start of a huge one on.
     * Huge ones are asked for where it has some for those who ask; it may refuse. In malloc's
     * memory that wish would outlast the block, and what is small and comes to lie there would
     * take 2 MB. A part of a huge page is not asked for: it would be more than the block has. */
    static inline void *rk_map(size_t size)
    {
        char *whole = (char *)mmap(NULL, size + RK_HUGE_PAGE, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (whole == (char *)MAP_FAILED) return NULL;
        size_t before = -(uintptr_t)whole % RK_HUGE_PAGE;
        if (before > 0) (void)munmap(whole, before);
        if (before < RK_HUGE_PAGE) (void)munmap(whole + before + size, RK_HUGE_PAGE - before);
    #ifdef MADV_HUGEPAGE
        (void)madvise(whole + before, size / RK_HUGE_PAGE * RK_HUGE_PAGE, MADV_HUGEPAGE);
    #endif
        return whole + before;
    }

    static inline void rk_unmap(void *memory, size_t size)
    {
        (void)munmap(memory, size);
    }

    static atomic_flag rk_pool_flag = ATOMIC_FLAG_INIT;

    /* Waits for no one: who has the pool may be asleep, and malloc serves as well. */
    static inline int rk_pool_enter(void)
    {
        for (int tries = 0; tries < 100; tries++)
            if (!atomic_flag_test_and_set_explicit(&rk_pool_flag, memory_order_acquire)) return 1;
        return 0;
    }

    static inline void rk_pool_leave(void)
    {
        atomic_flag_clear_explicit(&rk_pool_flag, memory_order_release);
    }

    static atomic_long rk_layers;     /* those that are alive */
    static atomic_long rk_new_blocks; /* those that did not wait */

    static inline long rk_count(atomic_long *count, long more)
    {
        return atomic_fetch_add(count, more) + more;
    }
    """
    ctypedef struct atomic_long:
        pass

    atomic_long rk_layers, rk_new_blocks
    const size_t RK_HUGE_PAGE
    void *rk_map(size_t size) nogil
    void rk_unmap(void *memory, size_t size) nogil
    bint rk_pool_enter() nogil
    void rk_pool_leave() nogil
    long rk_count(atomic_long *count, long more) nogil

cdef enum:
    HEADER = 64  # before a block, which keeps its alignment

# Most bytes that wait.
cdef size_t idle_limit = 1 << 28
# A block waits while no more than so many are given.
cdef unsigned long long PATIENCE = 1024


cdef struct Block:
    size_t size
    Block *older
    unsigned long long given  # when: a count of blocks
    bint mapped               # whether it is the system's, and not malloc's

cdef Block *newest = NULL
cdef size_t idle = 0
cdef unsigned long long given = 0


cdef inline size_t rounded(size_t size) noexcept nogil:
    """Up to one of eight sizes in each octave, so that nearly equal ones serve one another."""
    cdef size_t step = 4096
    if exact:
        return size
    while step * 16 <= size:
        step *= 2
    return (size + step - 1) // step * step


cdef inline Block *header(const char *block) noexcept nogil:
    return <Block *>(block - HEADER)


cdef size_t block_size(const char *block) noexcept nogil:
    return header(block).size - HEADER


cdef Block *fitting(size_t size) noexcept nogil:
    """The smallest that waits, has so many bytes and no more than half of that beyond; out of the
    list."""
    cdef Block **best = NULL
    cdef Block **at = &newest
    cdef Block *found
    while at[0] != NULL:
        if size <= at[0].size <= size + size // 2 and (best == NULL or at[0].size < best[0].size):
            best = at
            if best[0].size == size:
                break
        at = &at[0].older
    if best == NULL:
        return NULL
    found = best[0]
    best[0] = found.older
    return found


cdef void free_block(Block *block) noexcept nogil:
    if block.mapped:
        rk_unmap(block, block.size)
    else:
        free(block)


cdef char *take_block(size_t size) noexcept nogil:
    global idle
    cdef Block *block = NULL
    cdef void *memory = NULL
    cdef bint mapped
    if size > <size_t>1 << 62:
        return NULL
    size = rounded(size + HEADER)
    if rk_pool_enter():
        block = fitting(size)
        if block != NULL:
            idle -= block.size
        rk_pool_leave()
    if block == NULL:
        mapped = size >= RK_HUGE_PAGE and not exact
        if mapped:
            memory = rk_map(size)
        elif posix_memalign(&memory, HEADER, size) != 0:
            memory = NULL
        if memory == NULL:
            return NULL
        block = <Block *>memory
        block.size, block.mapped = size, mapped
        rk_count(&rk_new_blocks, 1)
    if poison:
        memset(<char *>block + HEADER, 255, size - HEADER)
    return <char *>block + HEADER


cdef void give_block(char *memory) noexcept nogil:
    global newest, idle, given
    cdef Block *block = header(memory)
    cdef Block *old = NULL
    if exact or rk_count(&rk_layers, 0) == 0 or block.size > idle_limit or not rk_pool_enter():
        free_block(block)
        return
    given += 1
    block.given, block.older = given, newest
    newest = block
    idle += block.size
    old = outdated(idle_limit)
    rk_pool_leave()
    free_all(old)


cdef Block *outdated(size_t limit) noexcept nogil:
    """Those that have waited too long, or exceed a limit with what came after them; out of the
    list."""
    global idle
    cdef Block **at = &newest
    cdef Block *rest
    cdef size_t size = 0
    while at[0] != NULL:
        size += at[0].size
        if size > limit or given - at[0].given > PATIENCE:
            break
        at = &at[0].older
    rest, at[0] = at[0], NULL
    old = rest
    while old != NULL:
        idle -= old.size
        old = old.older
    return rest


cdef void free_all(Block *block) noexcept nogil:
    cdef Block *older
    while block != NULL:
        older = block.older
        free_block(block)
        block = older


cdef void layer_begins() noexcept:
    rk_count(&rk_layers, 1)


cdef void layer_ends() noexcept:
    cdef Block *old = NULL
    if rk_count(&rk_layers, -1) == 0 and rk_pool_enter():
        old = outdated(0)
        rk_pool_leave()
        free_all(old)


def idle_bytes():
    """How much waits."""
    return idle


def new_blocks():
    """How many blocks did not wait when they were wanted."""
    return rk_count(&rk_new_blocks, 0)


def set_poison(bint wanted):
    """For tests: whether arrays and blocks come full of NaN, so that nothing passes that was never
    written and happened to be zero."""
    global poison
    poison = wanted


def set_exact(bint wanted):
    """For tests under a sanitizer, which sees who reads past the end of a block, or of one that was
    given back: whether blocks are as large as they were asked for, and used once."""
    global exact
    exact = wanted


def set_idle_limit(limit):
    """How much may wait, from the next block on; what it was."""
    global idle_limit
    before, idle_limit = idle_limit, limit
    return before


def _enter():
    while not rk_pool_enter():
        pass


def _leave():
    rk_pool_leave()


# A child begins with the list as no one is changing it.
os.register_at_fork(before=_enter, after_in_parent=_leave, after_in_child=_leave)
