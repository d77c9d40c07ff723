"""Where the time of calls goes: what `rk.profile()` records.

The kernels add nanoseconds to a table of threads by phases (rnnkernel/_clock.pxd) that the call
which is being recorded hands them; nobody is asked where no call is.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter_ns

import numpy as np

from rnnkernel._clock import count_profiles

# In the order of a call; rnnkernel/_clock.pxd counts them likewise.
PHASES = (
    "set-up",
    "pack",
    "projection",
    "loop",
    "weight gradients",
    "input gradient",
    "unpack",
    "waiting",
)
SET_UP, WAITING = PHASES.index("set-up"), PHASES.index("waiting")

_profile: ContextVar["Profile | None"] = ContextVar("rnnkernel_profile", default=None)
_call: ContextVar["Call | None"] = ContextVar("rnnkernel_call", default=None)

# The call that is being recorded, or None.
current = _call.get


class Call:
    """A call while it runs."""

    def __init__(self, profile, name):
        self._profile, self._name = profile, name
        # nanoseconds by thread and phase
        self.spent = np.zeros((1, len(PHASES)), np.int64)
        self.left = 0
        self._recording = 0  # nanoseconds that are the profile's own
        self._began = perf_counter_ns()

    def enter(self, threads):
        """Before threads set to work: the table that they add to."""
        began = perf_counter_ns()
        if len(self.spent) < threads:
            more = np.zeros((threads - len(self.spent), len(PHASES)), np.int64)
            self.spent = np.concatenate([self.spent, more])
        if threads > 1:
            self._busy = self.spent.sum(axis=1)
        self._entered = perf_counter_ns()
        self._recording += self._entered - began
        return self.spent

    def leave(self, threads):
        """After it: what is left of this time each of them has waited."""
        if threads == 1:
            return
        left = perf_counter_ns()
        elapsed = left - self._entered
        busy = (self.spent.sum(axis=1) - self._busy)[:threads]
        self.spent[:threads, WAITING] += np.maximum(elapsed - busy, 0)
        self._recording += perf_counter_ns() - left

    def add(self, phase, nanoseconds):
        """Time of the calling thread."""
        self.spent[0, phase] += nanoseconds

    def end(self):
        elapsed = perf_counter_ns() - self._began - self._recording
        _call.set(None)
        self.spent[0, SET_UP] += max(0, elapsed - int(self.spent[0].sum()))
        phases = {
            phase: tuple((self.spent[:, k] * 1e-9).tolist())
            for k, phase in enumerate(PHASES)
            if self.spent[:, k].any()
        }
        self._profile.records.append(Record(self._name, elapsed * 1e-9, phases, self.left))


def begin(of, name):
    """A call of a layer that is to be recorded, now current, or None."""
    profile = _profile.get()
    if profile is None or profile._thread != get_ident():
        return None
    call = Call(profile, f"{of!r}.{name}")
    _call.set(call)
    return call


@dataclass(frozen=True)
class Record:
    """One call.

    Attributes
    ----------
    name : str
    seconds : float
        From its beginning to its end, without what recording it took.
    phases : dict of str to tuple of float
        Seconds of each phase, by thread; the first is the calling thread, and its phases add up to
        the call. Phases that did not occur are left out.
    left : int
        How many threads left before the end: other programs had their cores, and the threads that
        had one no longer waited for them.
    """

    name: str
    seconds: float
    phases: dict[str, tuple[float, ...]]
    left: int = 0


class Profile:
    """What `profile` yields; printed, it is a table of all calls.

    Attributes
    ----------
    records : list of Record
        One for each call that returned, in their order.
    """

    def __init__(self):
        self.records: list[Record] = []
        self._thread, self._outer = None, None

    def __enter__(self) -> "Profile":
        if self._thread is not None:
            raise RuntimeError("profile: expected one that is not in use, got one inside its with")
        self._thread, self._outer = get_ident(), _profile.get()
        _profile.set(self)
        count_profiles(1)
        return self

    def __exit__(self, *error):
        _profile.set(self._outer)
        _call.set(None)  # of a call that failed
        count_profiles(-1)
        self._thread = None

    def __str__(self):
        by_name: dict[str, list[Record]] = {}
        for record in self.records:
            by_name.setdefault(record.name, []).append(record)
        return "\n\n".join(_table(name, some) for name, some in by_name.items()) or "no calls"


def profile() -> Profile:
    """Records where the time of the layers' calls goes, for the calls of this thread in a `with`.

    `print(p)` shows each kind of call with the time of its phases on every thread, `p.records`
    holds the numbers, a `rnnkernel.profiling.Record` with `seconds` and `phases` for each call.
    The phases:

    - set-up: checks, arrays, copies, and all else that Python does;
    - pack and unpack: parameters into the layout of the kernels, and gradients back;
    - projection: `W_ih x`, for some steps at a time;
    - loop: the steps of time, product and activations, forward or back;
    - weight gradients, input gradient: of the steps that the loop of backward has gone through;
    - waiting: for other threads, and for the team to begin and end.

    Recorded are `forward` and calls of layers and of what `freeze` returns, `backward`, and steps
    of a stream. Recording takes some 0.1 ms of a call, most of it left out.

    Returns
    -------
    Profile
        To be entered with `with`; its records stay.
    """
    return Profile()


def _table(name, records):
    threads = max(len(seconds) for record in records for seconds in record.phases.values())
    whole = sum(record.seconds for record in records)
    calls = "1 call" if len(records) == 1 else f"{len(records)} calls"
    lines = [f"{name}: {calls}, {1e3 * whole:.3f} ms"]
    width = max(map(len, PHASES))
    heads = ["calling thread", *(f"thread {k}" for k in range(1, threads))]
    lines.append(" " * (width + 2) + "".join(f"{head:>20}" for head in heads))
    for phase in PHASES:
        spent = [0.0] * threads
        for record in records:
            for k, seconds in enumerate(record.phases.get(phase, ())):
                spent[k] += seconds
        if any(spent):
            cells = [f"{1e3 * s:.3f} ms {100 * s / whole:3.0f} %" if s else "" for s in spent]
            lines.append(f"  {phase:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
    left = sum(record.left for record in records)
    if left:
        lines.append(f"  threads that left for want of a core: {left}")
    return "\n".join(lines)
