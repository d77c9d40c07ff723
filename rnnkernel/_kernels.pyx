"""Which C kernels are in use: the choice of an instruction set, and what was compiled."""

import os

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdlib.h>
    #include <string.h>
    #ifdef _OPENMP
    #define RK_OPENMP 1
    #else
    #define RK_OPENMP 0
    #endif
    static volatile int rk_forked = 0;
    static void rk_after_fork_in_child(void) { rk_forked = 1; }
    static int rk_watch_forks(void) { return pthread_atfork(NULL, NULL, rk_after_fork_in_child); }

    static void *rk_pass(void *gate)
    {
        pthread_mutex_lock(gate);
        pthread_mutex_unlock(gate);
        return NULL;
    }

    /* Bytes of stack that the environment has OpenMP's threads ask for, by default in KB. */
    static size_t rk_openmp_stack(void)
    {
        static const char *const names[] = {"OMP_STACKSIZE", "GOMP_STACKSIZE", "KMP_STACKSIZE"};
        static const char units[] = "bkmg";
        size_t most = 0;
        for (int i = 0; i < 3; i++) {
            const char *text = getenv(names[i]);
            char *end;
            if (text == NULL) continue;
            double size = strtod(text, &end);
            while (*end == ' ') end++;
            const char *unit = *end ? strchr(units, *end | 32) : units + 1;
            if (unit == NULL || !(size > 0)) continue;
            for (; unit > units; unit--) size *= 1024;
            if (size > most) most = size < 1e18 ? (size_t)size : (size_t)1e18;
        }
        return most;
    }

    /* How many threads can be there at once, up to some: where the system refuses one, OpenMP ends
     * the process. Tried once for each number, with threads that are there together, by each thread
     * that opens teams, as each has threads of its own. Their stacks are left for OpenMP's; LLVM's
     * asks for a little more than is usual. */
    static int rk_threads_to_have(int wanted)
    {
        static _Thread_local int had = 1;
        if (wanted <= had) return wanted;
        pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
        pthread_t *threads = malloc(wanted * sizeof(pthread_t));
        pthread_attr_t how;
        size_t stack, asked = rk_openmp_stack();
        int count = 1;
        if (threads == NULL || pthread_attr_init(&how) != 0) {
            free(threads);
            return 1;
        }
        if (pthread_attr_getstacksize(&how, &stack) == 0)
            (void)pthread_attr_setstacksize(&how, (asked > stack ? asked : stack) + (1 << 20));
        pthread_mutex_lock(&gate);
        while (count < wanted && pthread_create(&threads[count], &how, rk_pass, &gate) == 0)
            count++;
        pthread_mutex_unlock(&gate);
        for (int i = 1; i < count; i++) pthread_join(threads[i], NULL);
        free(threads);
        (void)pthread_attr_destroy(&how);
        if (count == wanted) had = wanted;
        return count;
    }
    """
    const char *RK_COMPILER
    const char *RK_FLAGS
    int RK_OPENMP
    int rk_forked
    int rk_watch_forks() nogil
    int rk_threads_to_have(int wanted) nogil

cdef const rk_kernels *chosen[2]


cdef const rk_kernels *kernels(int dtype) noexcept nogil:
    return chosen[dtype]


cdef unsigned long long fp_enter() noexcept nogil:
    return rk_fp_enter()


cdef void fp_leave(unsigned long long saved) noexcept nogil:
    rk_fp_leave(saved)


cdef bint reads_fast() noexcept nogil:
    return rk_reads_fast()


cdef int usable_threads(int wanted) noexcept nogil:
    # The threads of an OpenMP team do not survive fork(): a region in the child would wait
    # for them for ever, so the child stays serial.
    return 1 if rk_forked or not RK_OPENMP or wanted < 2 else rk_threads_to_have(wanted)


def _names(bint usable_only):
    names = []
    cdef int index = 0
    while rk_isa_name(index) != NULL:
        if not usable_only or rk_isa_usable(index):
            names.append(rk_isa_name(index).decode())
        index += 1
    return names


def compiled_isas():
    """Instruction sets that were compiled in, best last."""
    return _names(False)


def available_isas():
    """Those of them that this processor and operating system run, best last."""
    return _names(True)


def selected_isa():
    """The one in use."""
    return chosen[RK_FLOAT32].isa.decode()


def int8_ways():
    """What int8 weights can be multiplied as on this processor, best first: "bytes" or "words",
    which are integers (csrc/quads.h), or "floats"."""
    cdef bint (*has)(int) noexcept nogil
    has = chosen[RK_FLOAT32].has_quads
    ways = []
    if has != NULL and has(RK_INT8_BYTES):
        ways.append("bytes")
    if has != NULL and has(RK_INT8_WORDS):
        ways.append("words")
    return [*ways, "floats"]


def compiler():
    """The compiler's own name and version, the flags, and whether OpenMP was there."""
    return RK_COMPILER.decode(), RK_FLAGS.decode(), bool(RK_OPENMP)


def in_forked_child():
    """Whether this process was forked after the import: kernels are serial here."""
    return bool(rk_forked)


def _select(str name):
    available = available_isas()
    if name is None:
        name = available[len(available) - 1]
    if name not in available:
        raise ImportError(
            f"RNNKERNEL_ISA={name!r}: expected one that is compiled and that this machine runs: "
            + ", ".join(available)
        )
    cdef int index = compiled_isas().index(name)
    cdef int dtype
    for dtype in range(RK_DTYPES):
        chosen[dtype] = rk_isa_kernels(index, dtype)


_select(os.environ.get("RNNKERNEL_ISA") or None)
if rk_watch_forks() != 0:
    raise MemoryError("pthread_atfork: no memory to register the handler")
