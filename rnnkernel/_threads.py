"""How many threads a call may use, and why."""

import functools
import os
import warnings

from rnnkernel import _check

# What is asked for beyond it changes nothing: where the system refuses so many threads, OpenMP ends
# the process.
MOST = max(64, 2 * (os.cpu_count() or 1))

OWN = "RNNKERNEL_NUM_THREADS"

_requested: int | None = None


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _quota() -> int | None:
    """Cores that the container's CPU quota allows, rounded up; None without a quota."""
    try:
        quota, period = _read("/sys/fs/cgroup/cpu.max").split()
        if quota == "max":
            return None
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    try:
        quota = int(_read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
        period = int(_read("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
        return max(1, -(-quota // period)) if quota > 0 and period > 0 else None
    except (OSError, ValueError):
        return None


def _from_environment(name: str) -> int | None:
    # OMP_NUM_THREADS may be a list, one number for each level of nesting
    given = os.environ.get(name, "")
    text = given.split(",")[0].strip().lstrip("0")
    if not text.isdecimal():
        if given and name == OWN:
            warnings.warn(f"{name}: expected an integer from 1 on, got {given!r}", stacklevel=2)
        return None
    return int(text) if len(text) < 10 else MOST


@functools.cache
def default() -> tuple[int, str]:
    """Threads where nobody asks for a number, and the reason in words.

    Found once, at the first call that wants to know: looking takes as long as a small call.
    """
    for name in (OWN, "OMP_NUM_THREADS"):
        asked = _from_environment(name)
        if asked is not None:
            return asked, name
    try:
        affinity = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not Linux; a sandbox that refuses to tell
        affinity = os.cpu_count() or 1
    quota = _quota()
    if quota is not None and quota < affinity:
        return quota, f"the container's quota; {affinity} cores may be used otherwise"
    return affinity, "cores that this process may run on"


def reason() -> tuple[int, str]:
    """Threads of a call that does not say otherwise, and the reason in words."""
    count, why = (_requested, "set_num_threads") if _requested is not None else default()
    return min(count, MOST), why


def get_num_threads() -> int:
    """Most threads that a call uses when its `num_threads` is None."""
    return resolve(None)


def set_num_threads(n: int) -> None:
    """Sets the most threads that calls of this process use. Other libraries are not affected.

    Results do not depend on it.

    Raises
    ------
    TypeError, ValueError
        Where `n` is not an integer from 1 on.
    """
    global _requested
    _requested = _check.size("n", n)


def resolve(num_threads: int | None) -> int:
    """The argument `num_threads` of a call as a number."""
    if num_threads is not None:
        n = _check.size("num_threads", num_threads)
    else:
        n = _requested if _requested is not None else default()[0]  # a call less for small ones
    return n if n < MOST else MOST
