"""Whether anybody has a clock: the call that rnnkernel/profiling.py records."""


def count_profiles(int change):
    global profiles_in_use
    profiles_in_use += change


cdef current_call():
    if profiles_in_use == 0:
        return None
    from rnnkernel.profiling import current  # which counts here, so it cannot be imported before

    return current()
