"""A run of the studio: its buttons, progress and sound, and the worker thread that makes the takes.

    TakeRequests -> worker thread: load the model, stream the music -> takes
                                                  `-> live player
       Stop, or an interrupt of the kernel: the take is the part generated so far

Written to the API of ipywidgets 7.7, which Colab has; version 8 supports it too.
"""

import html
import threading
import uuid
from collections.abc import Callable
from typing import Any

from ipywidgets import HTML, Button

from mgkit import MusicGen
from mgkit.lab.collection import Collection
from mgkit.lab.interrupts import InterruptHandler
from mgkit.lab.player import LIVE, LivePlayer
from mgkit.lab.progress_line import ProgressLine
from mgkit.lab.settings_form import explain, in_words
from mgkit.lab.takes import TakeRequest, generate_take

# Seconds between two looks at whether a run has ended.
TICK = 0.1


class RunPanel:
    """Generate, Stop, the line for errors, the progress line and the live player.

    `buttons` and `status` are the parts that a panel shows. `on_busy` is called when a run begins and when it
    ends, `on_take` after each take that it adds to the collection; most of these calls are in the worker
    thread.
    """

    def __init__(
        self,
        model: str | MusicGen,
        collection: Collection,
        on_busy: Callable[[bool], None],
        on_take: Callable[[], None],
    ):
        """A name is loaded on first use; a loaded model is shared, with settings of its own."""
        self._collection, self._on_busy, self._on_take = collection, on_busy, on_take
        # Error of the last run, if it produced no take.
        self.error: Exception | None = None
        self._model: MusicGen | None = None
        self._loaded = ""
        if isinstance(model, MusicGen):
            self._model, self._loaded = MusicGen(model.model), model.name
        self._loading = threading.Lock()
        self._stop, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._interrupts = InterruptHandler(self.stop)

        self.message, self.progress = HTML(), ProgressLine()
        # It appears with the first run.
        self.progress.layout.display = "none"
        self.generate_button = Button(description="Generate", button_style="primary")
        self.stop_button = Button(description="Stop")
        # The live player listens for clicks on this panel's button only.
        self.live = LivePlayer(32000, starter=f"mgkit-start-{uuid.uuid4().hex[:12]}")
        for name in ("mgkit-generate", self.live.starter):
            self.generate_button.add_class(name)
        self.stop_button.add_class("mgkit-stop")
        explain(self.generate_button, "generate the music, and play it as it is made")
        explain(self.stop_button, "stop, and keep what was generated so far")
        self.buttons = [self.generate_button, self.stop_button]
        self.status: list[Any] = [self.message, self.progress, *([self.live] if LIVE else [])]
        self.stop_button.on_click(lambda _: self._silence())
        self.live.observe(lambda _: self._show_live(self.busy), "started")
        self._show_live(False)

    # --- in the caller's thread ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a run is in progress."""
        return not self._idle.is_set()

    def start(self, requests: list[TakeRequest]) -> None:
        """Make one take of each request in a worker thread. No run may be in progress."""
        assert not self.busy
        self._stop.clear()
        self._set_busy(True)
        self._interrupts.activate()
        threading.Thread(target=self._work, args=(requests,), daemon=True).start()

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

    def reset(self) -> None:
        """Show nothing of earlier runs."""
        self.live.reset()
        self.message.value = self.progress.status.value = ""
        self.progress.layout.display = "none"

    def fail(self, error: Exception) -> None:
        """Show the first line of an error's message, with its type if it is not one of the expected ones."""
        self.error = error
        expected = isinstance(error, ValueError | OSError | RuntimeError)
        message = str(error).split("\n")[0] if expected else f"{type(error).__name__}: {error}"
        self.progress.status.value = ""
        self.show_problem(in_words(message))

    def show_problem(self, message: str) -> None:
        """Show a sentence in the panel's one place for errors; an empty one clears it."""
        text = f'<div class="mgkit-problem" role="alert">{html.escape(message)}</div>'
        self.message.value = text if message else ""

    def loaded(self, name: str) -> MusicGen | None:
        """The model of this name, if it is the one that is loaded."""
        return self._model if name == self._loaded else None

    def load(self, name: str) -> MusicGen:
        """The model of this name, loaded if necessary. Raises: as `MusicGen.get_pretrained`."""
        with self._loading:
            if self._loaded != name or self._model is None:
                # The old model is released first, so that the two are never in memory together.
                self._model = None
                self.progress.status.value = f"loading {name} …"
                self._model = MusicGen.get_pretrained(name)
                self._loaded = name
            return self._model

    # --- in the worker thread ------------------------------------------------------------------------------

    def _work(self, requests: list[TakeRequest]) -> None:
        """Generate the takes; this may change traits but must not print."""
        try:
            for i, request in enumerate(requests):
                if not i or not self._stop.is_set():
                    self._make(request, live=not i)
        # Any error must reach the reader: nobody sees the traceback of a thread.
        except Exception as error:
            self.fail(error)
        finally:
            self._interrupts.release()
            self._set_busy(False)

    def _make(self, request: TakeRequest, live: bool) -> None:
        """One take; a `live` one is heard while it is made."""
        model = self.load(request.model)
        self.progress.status.value = "stopping …" if self._stop.is_set() else "starting …"
        self.progress.start(request.model, model.frame_rate)
        push = None
        if live:
            self.live.reset(request.settings.duration, model.sample_rate, model.audio_channels)
            push = self.live.push
        number = self._collection.next_number
        try:
            take = generate_take(model, request, number, self._on_step, self._stop, push)
        finally:
            if live:
                self.live.finish()
        try:
            self._collection.add(take)
        except OSError as error:
            self.show_problem(f"The take is here, but not on disk: {error}")
        self._on_take()
        self.progress.status.value = (
            f"stopped; kept {take.seconds:.1f} s" if take.stopped else f"{take.seconds:g} s"
        )

    def _on_step(self, done: int, total: int) -> None:
        self.progress.step(done, total, self._stop.is_set())

    # --- display -------------------------------------------------------------------------------------------

    def _set_busy(self, busy: bool) -> None:
        if busy:
            self._idle.clear()
            self.progress.bar.value, self.progress.layout.display = 0, ""
        self._on_busy(busy)
        self.generate_button.disabled = busy
        self._show_live(busy)
        # Last, so that whoever waits for it finds the panel in its final state.
        if not busy:
            self._idle.set()

    def _silence(self) -> None:
        """The Stop button: end the run, and what the live player still has."""
        self.stop()
        self.live.halt()

    def _show_live(self, running: bool) -> None:
        """Stop ends the run and the live player: both are there while there is either."""
        self.stop_button.disabled = not (running or self.live.started) or self._stop.is_set() and running
        self.live.layout.display = "" if running or self.live.started else "none"
