"""Ctrl-C as a request to stop, for work whose result must not be lost.

Python raises KeyboardInterrupt between any two operations. Within `CtrlC` the first Ctrl-C sets a flag
instead: the work ends after the current step and keeps its result, whatever it was doing at that moment.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from mgkit.generate import Stop


class CtrlC:
    """A `Stop` set by Ctrl-C while it is entered, or by another one; a second Ctrl-C is a KeyboardInterrupt.

    Without effect outside the main thread, and where the program has a handler of its own for SIGINT.
    """

    def __init__(self, other: Stop | None = None):
        self._other, self._pressed, self._installed = other, False, False

    @property
    def pressed(self) -> bool:
        """Whether Ctrl-C was pressed within this or, if it is one, within the other."""
        return self._pressed or (isinstance(self._other, CtrlC) and self._other.pressed)

    def is_set(self) -> bool:
        return self._pressed or (self._other is not None and self._other.is_set())

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._installed = True
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            self._installed = False
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._pressed:
            signal.default_int_handler(number, frame)
        self._pressed = True
