"""How far a run of the studio is: a bar, and a line with speed and time left."""

import time

from ipywidgets import FloatProgress, HBox, Label

from mgkit.lab.facts import format_seconds

# Seconds between two updates.
TICK = 0.1


class ProgressLine(HBox):
    """Progress bar and status line of a run; `seconds_per_step` keeps the last speed of each model."""

    def __init__(self) -> None:
        self.seconds_per_step: dict[str, float] = {}
        self.bar, self.status = FloatProgress(0, min=0, max=1), Label()
        self._model, self._frame_rate = "", 50
        self._first = self._last = 0.0
        super().__init__([self.bar, self.status])
        self.add_class("mgkit-progress")

    def start(self, model: str, frame_rate: int) -> None:
        """Prepare for the steps of a run."""
        self._model, self._frame_rate = model, frame_rate

    def step(self, done: int, total: int, stopping: bool) -> None:
        """Update after step `done` of `total`; while stopping, the status line keeps its text."""
        now = time.perf_counter()
        if done == 1:
            # The first step also encodes the prompt and is not timed.
            self._first = now
        elif now - self._last >= TICK or done == total:
            pace = (now - self._first) / (done - 1)
            self.seconds_per_step[self._model] = pace
            self.bar.value, self._last = done / total, now
            if not stopping:
                generated, speed = done / self._frame_rate, 1 / pace / self._frame_rate
                left = format_seconds((total - done) * pace)
                self.status.value = f"{generated:.1f} s generated · {speed:.1f} × real time · {left} left"
