"""What calls on several threads share."""

cdef extern from *:
    """
    /* Numbers that any call reads and writes: each is whole, in no order with others. */
    static inline long long rk_get(const long long *from)
    {
        return __atomic_load_n(from, __ATOMIC_RELAXED);
    }

    static inline void rk_set(long long *to, long long value)
    {
        __atomic_store_n(to, value, __ATOMIC_RELAXED);
    }

    /* What was there before something was added. */
    static inline long long rk_add(long long *to, long long value)
    {
        return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
    }

    /* Puts a value in the place of another, if that is still there. */
    static inline void rk_replace(long long *place, long long old, long long value)
    {
        (void)__atomic_compare_exchange_n(place, &old, value, 0, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED);
    }

    /* What one thread does alone: with the GIL all that it does, if it runs nothing of Python's and
       frees no object meanwhile. Without, Python waits for it before it forks; Python's own locks a
       child would find as threads that wait for them have them. */
    #ifdef Py_GIL_DISABLED
    #include <sched.h>
    static inline void rk_enter(int *busy)
    {
        for (int tries = 1; __atomic_exchange_n(busy, 1, __ATOMIC_ACQUIRE); tries++)
            if (tries % 100 == 0) (void)sched_yield();
    }

    static inline void rk_leave(int *busy)
    {
        __atomic_store_n(busy, 0, __ATOMIC_RELEASE);
    }
    #else
    #define rk_enter(busy) ((void)(busy))
    #define rk_leave(busy) ((void)(busy))
    #endif
    """
    long long rk_get(const long long *place) nogil
    void rk_set(long long *place, long long value) nogil
    long long rk_add(long long *to, long long value)
    void rk_replace(long long *place, long long old, long long value)
    void rk_enter(int *busy)
    void rk_leave(int *busy)
