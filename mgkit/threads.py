"""How many threads a step of generation uses, chosen by measuring while it runs.

On an idle machine all cores finish a step fastest. Beside another busy program, even a browser, they can be
several times slower than a single thread: a step has a hundred parallel regions, and at the end of each the
threads wait for the one whose core is taken. Which case holds changes while the music is made.

    try 1: ###   try 2: ###   the faster: ##########…   a trial of the other: ###   the faster: #####…

Trials come so seldom that they cost a few percent; one that goes badly ends early. The number is set for the
calling thread alone, and only during a step: the caller and other threads keep theirs.
"""

import ctypes
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import fmean, median

import torch
from threadpoolctl import LibController, ThreadpoolController

TRIAL = 3  # steps
SHARE = 0.08  # of the time, at most, for trials
PATIENCE = 3  # a trial ends once it has cost so many times what the other number took for as many steps
SLOW = 1.7  # times the median: steps that lead to a trial at once
REST = 64  # steps between other trials, at least
MEMORY = 16  # steps
PROBE = 256  # rows and columns of a product that takes about 0.5 ms


class Threads:
    """The number of threads of the next step, from the times of those before it."""

    def __init__(self, most: int | None = None, clock: Callable[[], float] = time.perf_counter):
        self.most, self._clock = most or torch.get_num_threads(), clock
        self.now = 1
        self._times: dict[int, deque[float]] = {n: deque(maxlen=MEMORY) for n in {1, self.most}}
        self._since, self._wait = 0, REST  # steps since a trial, and until the next
        self._trying = self.most > 1

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run a step in the chosen number of threads, and time it."""
        start = self._clock()
        with using(self.now):
            yield
        self.after(self._clock() - start)

    def after(self, seconds: float) -> None:
        """Choose the number for the next step, after one that took `seconds`."""
        times, other = self._times[self.now], self._times[self._other]
        times.append(seconds)
        self._since += 1
        if self.most > 1 and self._trying:
            self._judge(times, other)
        elif self.most > 1:
            latest = list(times)[-TRIAL:]
            changed = self._since >= 2 * TRIAL and fmean(latest) > SLOW * median(times)
            if changed:
                times.clear()
                times.extend(latest)
            if changed or self._since >= self._wait:
                other.clear()
                self.now, self._trying = self._other, True

    def _judge(self, times: deque[float], other: deque[float]) -> None:
        """End a trial, if it is time, with the number that is faster on average."""
        hopeless = other and sum(times) > PATIENCE * TRIAL * fmean(other)
        if len(times) < TRIAL and not hopeless:
            return
        if not other:  # the very first trial; now the other number's
            self.now = self._other
            return
        ratio = fmean(times) / fmean(other)
        if ratio > 1:
            self.now = self._other
        cost = TRIAL * (max(ratio, 1 / ratio) - 1)
        self._trying, self._since, self._wait = False, 0, max(REST, round(cost / SHARE))

    @property
    def _other(self) -> int:
        return self.most if self.now == 1 else 1


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


def faster_now() -> int:
    """1 or the number of this thread's threads, whichever is faster at the moment: measured in 3 ms."""
    most = torch.get_num_threads()
    if most == 1 or _openmp() is None:
        return most
    x = torch.ones(PROBE, PROBE)
    took = {}
    for threads in (1, most):
        with using(threads):
            x @ x  # wakes the threads
            start = time.perf_counter()
            for _ in range(TRIAL):
                x @ x
            took[threads] = time.perf_counter() - start
    return min(took, key=lambda threads: took[threads])


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
