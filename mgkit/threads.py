"""How many threads a step of generation uses, chosen by measuring while it runs.

On an idle machine all cores finish a step fastest. Beside another busy program, even a browser, they can be
several times slower than a single thread: a step has a hundred parallel regions, and at the end of each the
threads wait for the one whose core is taken, up to a tenth of a second. Which case holds changes while the
music is made.

    cores that others leave free    1 1 1 1 2 2 2 2 2 2 2 2 2 2 2 1 1     `FreeCores`
    threads                         1 1 1 1 2 2 2 1 1 1 2 2 2 2 2 1 1     `Threads`
                                            trials: the faster stays

More threads than free cores are never tried: a single step could cost more than the rest of the piece.
Trials come so seldom that they cost a few percent; one that goes badly ends early. The number is set for the
calling thread alone, and only during a step: the caller and other threads keep theirs.
"""

import ctypes
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple, TypeVar

import psutil
import torch
from threadpoolctl import LibController, ThreadpoolController

Count = TypeVar("Count")
Default = TypeVar("Default")

WINDOW, STALE = 0.1, 2.0  # seconds over which free cores are counted, at least and at most
TRIAL = 3  # steps
SHARE = 0.08  # of the time, at most, for trials
PATIENCE = 3  # a trial ends once it has cost so many times what the other number took for as many steps
SLOW = 1.7  # times the median: steps that lead to a trial at once
REST = 64  # steps between other trials, at least
MEMORY = 16  # steps


def counted(read: Callable[[], Count], default: Default) -> Count | Default:
    """What `read` gets from psutil, or `default` in a container that hides the system's counts."""
    try:
        return read()
    except (OSError, RuntimeError, psutil.Error):
        return default


class Counts(NamedTuple):
    """Seconds, of all cores together but for `clock`."""

    clock: float
    idle: float
    all: float
    own: float  # that this process computed

    @classmethod
    def now(cls) -> "Counts":
        times = counted(psutil.cpu_times, None)
        if times is None:
            return cls(time.monotonic(), 0.0, 0.0, 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        return cls(time.monotonic(), idle, sum(times), time.process_time())


class FreeCores:
    """Cores available to this process: the idle ones and those it uses itself, by the system's counts."""

    def __init__(self, count: Callable[[], Counts] = Counts.now):
        self._count, self._last = count, count()
        self._free: float | None = None
        self._one_at_a_time = threading.Lock()

    def __call__(self, now: float | None = None) -> float | None:
        """The latest number; None if it is not known yet, infinity if the system does not count."""
        with self._one_at_a_time:
            if (time.monotonic() if now is None else now) - self._last.clock >= WINDOW:
                before, self._last = self._last, self._count()
                clock, idle, all_cores, own = (b - a for a, b in zip(before, self._last, strict=True))
                self._free = None if clock > STALE else (idle + own) / clock
                if all_cores < clock / 2:
                    self._free = math.inf
            return self._free


free_cores = FreeCores()


def usable() -> int:
    """How many of this thread's threads can have a core each; may take WINDOW."""
    most, free = torch.get_num_threads(), free_cores()
    if free is None and most > 1:
        time.sleep(WINDOW)
        free = free_cores()
    return within(free, most)


def within(free: float | None, most: int) -> int:
    """
    >>> [within(free, 4) for free in (None, 0.9, 1.6, 16.0)]
    [1, 1, 2, 4]
    """
    return 1 if free is None else max(1, round(min(free, most)))


class Threads:
    """The number of threads of the next step, from the times of those before it."""

    def __init__(
        self,
        most: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        free: Callable[[], float | None] = free_cores,
    ):
        self.most, self._clock, self._free = most or torch.get_num_threads(), clock, free
        self.now = self.many = 1  # `many` is the number that is compared with 1
        self._alone, self._together = (deque[float](maxlen=MEMORY) for _ in range(2))  # times
        self._since, self._wait = 0, TRIAL  # steps since a trial, and until the next
        self._trying = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run a step in the chosen number of threads, and time it."""
        start = self._clock()
        with using(self.now):
            yield
        self.after(self._clock() - start)

    def after(self, seconds: float) -> None:
        """Choose the number for the next step, after one that took `seconds`."""
        if self.most == 1:
            return
        times, other = (self._alone, self._together)[:: 1 if self.now == 1 else -1]
        times.append(seconds)
        self._since += 1
        if self._follow(within(self._free(), self.most)) or self.many == 1:
            return
        if self._trying:
            self._judge(times, other)
            return
        latest = list(times)[-TRIAL:]
        changed = self._since >= 2 * TRIAL and fmean(latest) > SLOW * median(times)
        if changed:
            times.clear()
            times.extend(latest)
        if changed or self._since >= self._wait:
            other.clear()
            self.now, self._trying = self._other, True

    def _follow(self, many: int) -> bool:
        """Use no more threads than cores are free, and try as many; whether that changes the next step."""
        if many == self.many or (many > self.many and self._since < self._wait):
            return False
        # A trial of one thread can no longer be compared.
        trial = many > self.many or self.now > 1 or self._trying
        self.many = many
        self._together.clear()
        if trial:
            self.now, self._trying = many, many > 1
            self._since, self._wait = 0, REST
        return trial

    def _judge(self, times: deque[float], other: deque[float]) -> None:
        """End a trial, if it is time, with the number that is faster on average."""
        hopeless = sum(times) > PATIENCE * TRIAL * fmean(other)
        if len(times) < TRIAL and not hopeless:
            return
        ratio = fmean(times) / fmean(other)
        if ratio > 1:
            self.now = self._other
        cost = TRIAL * (max(ratio, 1 / ratio) - 1)
        self._trying, self._since, self._wait = False, 0, max(REST, round(cost / SHARE))

    @property
    def _other(self) -> int:
        return self.many if self.now == 1 else 1


@contextmanager
def using(threads: int) -> Iterator[None]:
    """Run torch's parallel regions of the calling thread in so many threads."""
    before, openmp, mkl = torch.get_num_threads(), _openmp(), _mkl()
    if openmp is None or threads == before:
        yield
        return
    # Not torch.set_num_threads, whose value new threads of the program would inherit.
    openmp.set_num_threads(threads)
    mkl_before = mkl(threads)
    try:
        yield
    finally:
        openmp.set_num_threads(before)
        mkl(mkl_before)


@cache
def _openmp() -> LibController | None:
    """The OpenMP library that torch uses; None if it cannot be told from others."""
    found = [lib for lib in ThreadpoolController().lib_controllers if lib.user_api == "openmp"]
    own = [lib for lib in found if "torch" in lib.filepath] or found
    return own[0] if len(own) == 1 else None


@cache
def _mkl() -> Callable[[int], int]:
    """MKL's number of threads of the calling thread: sets it and returns the one before; 0 is OpenMP's."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(library)).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):  # another system, or a torch without MKL
        return lambda threads: 0
