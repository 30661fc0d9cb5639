"""Interrupting an idle kernel: stop the work of background threads, then give the signal handler back.

A kernel ignores SIGINT between two cells, so a run in a worker thread could not be stopped from the menu.
While an `InterruptHandler` is active, it handles SIGINT in these gaps; released, it leaves no trace.

    activate() -> idle kernel -> SIGINT -> on_interrupt()
    release()  -> the previous handler is back

During a cell the kernel installs Python's own handler (KeyboardInterrupt) and restores the previous one
afterwards. Both changes therefore wait until the kernel is idle.
"""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from IPython import get_ipython

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

# Seconds between two attempts while the kernel is busy.
RETRY = 0.1


class Loop(Protocol):
    """The kernel's event loop, in its main thread."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> object: ...

    def add_callback(self, callback: Callable[[], None]) -> object: ...


class InterruptHandler:
    """A SIGINT handler for an idle kernel, from `activate()` to `release()`; no effect elsewhere.

    Several may be active at once: each calls its own `on_interrupt`, then the handler below it.
    """

    def __init__(self, on_interrupt: Callable[[], None], loop: Loop | None = None):
        """`loop` is the running kernel's by default."""
        self.on_interrupt = on_interrupt
        self.active = False
        self._loop: Loop | None = loop or getattr(getattr(get_ipython(), "kernel", None), "io_loop", None)
        self._installed = False
        self._below: Handler = None

    def activate(self) -> None:
        """Handle interrupts as soon as the kernel is idle. May be called from any thread."""
        self.active = True
        if self._loop:
            self._loop.add_callback(self._update)

    def release(self) -> None:
        """Restore the previous handler as soon as the kernel is idle. May be called from any thread."""
        self.active = False
        if self._loop:
            self._loop.add_callback(self._update)

    def _update(self) -> None:
        """Install or remove the handler, in the main thread; try again later while a cell is running."""
        assert self._loop is not None
        if not self.active and not self._installed:
            return
        current = signal.getsignal(signal.SIGINT)
        if current is signal.default_int_handler:
            self._loop.call_later(RETRY, self._update)
        elif self.active and not self._installed and current is not None:
            self._below, self._installed = current, True
            signal.signal(signal.SIGINT, self)
        # Handlers below the top one stay in the chain until the top one is released.
        while isinstance(current, InterruptHandler) and not current.active:
            below, current._installed = current._below, False
            signal.signal(signal.SIGINT, below)
            current = below

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.active:
            self.on_interrupt()
        if callable(self._below):
            self._below(number, frame)
