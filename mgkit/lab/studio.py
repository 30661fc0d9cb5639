"""The studio: everything the command line can do, with buttons, in a notebook or as an app.

    Controls -> TakeRequest -> worker thread: load the model, stream the music -> Take -> takes, comparison
       Stop, or an interrupt of the kernel: the take is the part generated so far

A take is the result of one run: a piece of music with its request (see `takes`). Everything works without a
browser as well: `Studio().generate(prompt="calm piano")` does what the Generate button does and returns the
take. Written to the API of ipywidgets 7.7, which Colab has; version 8 supports it too.
"""

import html
import math
import threading
import time
from typing import Any

from ipywidgets import HTML, Button, FloatProgress, HBox, Label, Layout, VBox

from mgkit import MusicGen, hub
from mgkit.lab.comparison import Comparison
from mgkit.lab.controls import Controls
from mgkit.lab.interrupts import InterruptHandler
from mgkit.lab.takes import Take, TakeRequest, card, generate_take

# Seconds between two updates of the progress bar, and between two looks at whether a run has ended.
TICK = 0.1

STYLE = """<style>
.mgkit-studio { max-width: 920px; padding: 4px 8px }
.mgkit-studio .mgkit-quiet { color: var(--jp-ui-font-color2, #70757d); font-size: 12px; line-height: 1.5 }
.mgkit-studio .mgkit-problem { border-left: 3px solid #c2410c; padding: 4px 10px; line-height: 1.5 }
.mgkit-studio figure { font-size: 13px; line-height: 1.5; margin-top: 0 }
.mgkit-studio .mgkit-take { display: flex; flex-wrap: wrap; padding-top: 12px;
  border-top: 1px solid var(--jp-border-color2, #d0d4da) }
.mgkit-studio .mgkit-take > div { flex: 1; min-width: 260px; font-size: 13px; line-height: 1.7 }
.mgkit-studio .mgkit-take a { color: var(--jp-content-link-color, #2a7fbf) }
</style>"""


class Progress(HBox):
    """Progress bar and status line of a run; `seconds_per_step` keeps the last speed of each model."""

    def __init__(self) -> None:
        self.seconds_per_step: dict[str, float] = {}
        self.bar, self.status = FloatProgress(0, min=0, max=1, layout=Layout(width="200px")), Label()
        self._model, self._frame_rate = "", 50
        self._first = self._last = 0.0
        super().__init__([self.bar, self.status])

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


class Studio(VBox):
    """The panel. `takes` has the takes of all runs in order; none is ever replaced.

    `controls` holds the inputs by name. `set(seed=3)` assigns one, `generate(prompt="calm piano", seed=3)`
    assigns and runs.
    """

    def __init__(self, model: str | MusicGen = "nano"):
        """A name is loaded on first use; a loaded model is shared, with settings of its own."""
        self.takes: list[Take] = []
        # Error of the last run, if it produced no take.
        self.error: Exception | None = None
        self._model: MusicGen | None = None
        self._loaded = ""
        if isinstance(model, MusicGen):
            self._model, self._loaded = MusicGen(model.model), model.name
            model = model.name
        self._stop, self._idle = threading.Event(), threading.Event()
        self._interrupts = InterruptHandler(self.stop)

        self.message, self.facts = HTML(), HTML()
        self.progress = Progress()
        self.generate_button = Button(description="Generate", button_style="primary")
        self.stop_button = Button(description="Stop")
        self.comparison, self.gallery = Comparison(), VBox()
        self.controls = Controls(model, self._show_facts)
        run = HBox([self.generate_button, self.stop_button, self.progress])
        super().__init__(
            [HTML(STYLE), self.controls, run, self.message, self.facts, self.comparison, self.gallery]
        )
        self.add_class("mgkit-studio")
        self.generate_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self._set_busy(False)

    def __repr__(self) -> str:
        """Text shown by a page without a kernel."""
        return "Studio: a panel that needs a running kernel"

    # --- the buttons, in code ------------------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Assign values to controls by name. Raises: as `Controls.set`."""
        self.controls.set(**values)

    def start(self) -> bool:
        """Start a run in a worker thread; False if one is in progress or the controls are invalid."""
        if self.busy:
            return False
        self.message.value, self.error = "", None
        try:
            request = self.controls.request()
        except ValueError as error:
            self._fail(error)
            return False
        self._stop.clear()
        self._set_busy(True)
        self._interrupts.activate()
        threading.Thread(target=self._work, args=(request,), daemon=True).start()
        return True

    def stop(self) -> None:
        """End the run after its current step and keep the part generated so far."""
        if self.busy and not self._stop.is_set():
            self.stop_button.disabled = True
            self.progress.status.value = "stopping …"
            # Last, so that the worker's own messages come after these.
            self._stop.set()

    def wait(self) -> None:
        """Return when no run is in progress. Ctrl-C (or an interrupt) stops the run, a second the wait."""
        while not self._idle.is_set():
            try:
                # Not Thread.join: after an interrupt, it considers the thread dead (Python 3.11).
                self._idle.wait(TICK)
            except KeyboardInterrupt:
                if self._stop.is_set():
                    raise
                self.stop()

    def generate(self, **values: Any) -> Take:
        """Assign `values`, run, and return the take. Raises: the error shown in the panel."""
        self.set(**values)
        if self.busy:
            raise ValueError("a run is in progress: wait() for it or stop() it first")
        self.start()
        self.wait()
        if self.error:
            raise self.error
        return self.takes[-1]

    # --- a run ---------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a run is in progress."""
        return not self._idle.is_set()

    def _work(self, request: TakeRequest) -> None:
        """Generate the take, in the worker thread, which may change traits but must not print."""
        try:
            model = self._load(request.model)
            self.progress.status.value = "stopping …" if self._stop.is_set() else "starting …"
            self.progress.start(request.model, model.frame_rate)
            take = generate_take(model, request, len(self.takes) + 1, self._on_step, self._stop)
            self.takes.append(take)
            self._show(take)
            seconds = take.wave.shape[-1] / take.rate
            self.progress.status.value = (
                f"stopped; kept {seconds:.1f} s" if take.stopped else f"{seconds:g} s"
            )
        # Any error must reach the reader: nobody sees the traceback of a thread.
        except Exception as error:
            self._fail(error)
        finally:
            self._interrupts.release()
            self._set_busy(False)

    def _load(self, name: str) -> MusicGen:
        if self._loaded != name or self._model is None:
            # The old model is released first, so that the two are never in memory together.
            self._model = None
            self.progress.status.value = f"loading {name} …"
            self._model = MusicGen.get_pretrained(name)
            self._loaded = name
        return self._model

    def _on_step(self, done: int, total: int) -> None:
        self.progress.step(done, total, self._stop.is_set())

    def _fail(self, error: Exception) -> None:
        """Show the first line of an error's message, with its type if it is not one of the expected ones."""
        self.error = error
        expected = isinstance(error, ValueError | OSError | RuntimeError)
        message = str(error).split("\n")[0] if expected else f"{type(error).__name__}: {error}"
        self.progress.status.value = ""
        self.message.value = f'<div class="mgkit-problem" role="alert">{html.escape(message)}</div>'

    def _set_busy(self, busy: bool) -> None:
        if busy:
            self._idle.clear()
            self.progress.bar.value = 0
        self.generate_button.disabled, self.stop_button.disabled = busy, not busy
        self._show_facts()
        # Last, so that whoever waits for it finds the panel in its final state.
        if not busy:
            self._idle.set()

    # --- display -------------------------------------------------------------------------------------------

    def _show(self, take: Take) -> None:
        """Put the take on top of the list and into the comparison."""
        self.gallery.children = (HTML(card(take)), *self.gallery.children)
        self.comparison.update(self.takes)

    def _show_facts(self) -> None:
        """Expected time, memory and licence of the next run."""
        name, seconds = self.controls.model_name, self.controls["duration"].value
        model = self._model if name == self._loaded else None
        self.facts.value = (
            f'<div class="mgkit-quiet">time: {self._time(name, seconds, model)} · '
            f"memory: {_memory(name, seconds, model)}<br>"
            f"licence of the weights: {html.escape(_licence(name, model))}</div>"
        )

    def _time(self, name: str, seconds: float, model: MusicGen | None) -> str:
        pace = self.progress.seconds_per_step.get(name)
        if not pace:
            return "unknown until the first run"
        return f"about {format_seconds(seconds * (model.frame_rate if model else 50) * pace)}"


def _memory(name: str, seconds: float, model: MusicGen | None) -> str:
    """Memory needed and available, in words."""
    need = model.model.memory(seconds) if model else hub.memory(name, seconds)
    available = available_memory()
    text = f"about {format_bytes(need)}" if need else "unknown until the model is loaded"
    if need and need > 1e9 and not model:
        text += " (briefly twice as much while loading)"
    if available:
        text += f", {format_bytes(available)} available"
    if need and available and need > available and not model:
        text += "; <b>more than is available</b>"
    return text


def _licence(name: str, model: MusicGen | None) -> str:
    return model.licence if model else hub.licence(name) or "known once the model is loaded"


def format_seconds(seconds: float) -> str:
    """Duration in seconds, or in minutes and seconds.

    >>> format_seconds(8.2), format_seconds(200)
    ('9 s', '3 min 20 s')
    """
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_bytes(count: float) -> str:
    """Size in MB or GB.

    >>> format_bytes(49e6), format_bytes(2.5e9)
    ('49 MB', '2.5 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def available_memory() -> float | None:
    """Bytes of available memory, or None if psutil is not installed."""
    try:
        import psutil
    except ImportError:
        return None
    return float(psutil.virtual_memory().available)
