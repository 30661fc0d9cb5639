"""The studio: everything the command line can do, with buttons, in a notebook or as an app.

    Controls -> TakeRequests -> worker thread: load the model, stream the music -> Takes -> shelf, cards
                                                            `-> live player
       Stop, or an interrupt of the kernel: the take is the part generated so far

A take is the result of one run: a piece of music with its request (see `takes`). Everything works without a
browser as well: `Studio().generate(prompt="calm piano")` does what the Generate button does and returns the
take. Written to the API of ipywidgets 7.7, which Colab has; version 8 supports it too.
"""

import html
import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipywidgets import HTML, Button, HBox, VBox

from mgkit import MusicGen
from mgkit.lab.cards import TakeCards
from mgkit.lab.comparison import Comparison
from mgkit.lab.controls import Controls
from mgkit.lab.facts import Facts, has_melody
from mgkit.lab.interrupts import InterruptHandler
from mgkit.lab.player import LIVE, LivePlayer
from mgkit.lab.progress_line import ProgressLine
from mgkit.lab.settings_form import explain, in_words
from mgkit.lab.shelf import Shelf, archive, encode
from mgkit.lab.takes import Sound, Take, TakeRequest, generate_take

# Seconds between two looks at whether a run has ended.
TICK = 0.1
# Takes of "more like this", and seconds of music that "continue" adds.
MORE, ADDED = 3, 8.0

STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
PAGE_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
HEADER = (
    "<h1>mgkit studio</h1>"
    '<p class="mgkit-intro">Describe music, hum a tune or start from a recording, and a language model over '
    "audio tokens plays it.</p>"
)


class Studio(VBox):
    """The panel. `takes` has the takes in order, those of earlier sessions in the same folder included.

    `controls` holds the inputs by name. `set(seed=3)` assigns one, `generate(prompt="calm piano", seed=3)`
    assigns and runs. The buttons of a take are `star`, `rename`, `delete` and `undo`, `continue_from`,
    `use_as_melody` and `more_like`; `start_over` prepares the panel for the next person.
    """

    def __init__(
        self,
        model: str | MusicGen = "nano",
        folder: str | os.PathLike | None = None,
        page: bool = False,
    ):
        """A name is loaded on first use; a loaded model is shared, with settings of its own.

        Takes are kept in `folder`, by default `outputs/takes`. As a `page` for visitors, it has a heading and
        offers no files of the kernel's machine.
        """
        self.shelf = Shelf(folder)
        self.takes: list[Take] = self.shelf.load()
        # Error of the last run, if it produced no take.
        self.error: Exception | None = None
        # What undo brings back, the newest last: takes, and the folder in which they were set aside.
        self._removed: list[tuple[list[Take], Path | None]] = []
        self._model: MusicGen | None = None
        self._loaded = ""
        if isinstance(model, MusicGen):
            self._model, self._loaded = MusicGen(model.model), model.name
            model = model.name
        self._loading = threading.Lock()
        self._stop, self._idle = threading.Event(), threading.Event()
        self._interrupts = InterruptHandler(self.stop)

        self.message, self.progress, self.facts = HTML(), ProgressLine(), Facts()
        self.generate_button = Button(description="Generate", button_style="primary")
        self.stop_button = Button(description="Stop")
        # The live player listens for clicks on this panel's button only.
        starter = f"mgkit-start-{uuid.uuid4().hex[:12]}"
        self.live = LivePlayer(32000, starter=starter)
        # It appears with the first run.
        self.progress.layout.display = "none"
        self.cards, self.comparison = TakeCards(self._on_card, starter), Comparison()
        self._start = model, starter, page
        self.controls = self._new_controls()
        super().__init__(self._lay_out())
        self.add_class("mgkit-studio")
        self.generate_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self._silence())
        self.live.observe(lambda _: self._show_live(), "started")
        self._show_takes()
        self._set_busy(False)
        if page:
            # Visitors do not wait for it.
            threading.Thread(target=self._load, args=(model,), daemon=True).start()

    def _new_controls(self) -> Controls:
        model, _, page = self._start
        return Controls(model, self._on_change, paths=not page)

    def _lay_out(self) -> list[Any]:
        """The parts of the panel, in the order in which they are used."""
        _, starter, page = self._start
        for name in ("mgkit-generate", starter):
            self.generate_button.add_class(name)
        self.stop_button.add_class("mgkit-stop")
        explain(self.generate_button, "generate the music, and play it as it is made")
        explain(self.stop_button, "stop, and keep what was generated so far")
        controls = self.controls
        run = HBox([self.generate_button, self.stop_button, controls.numbers])
        run.add_class("mgkit-run")
        footer = VBox([controls.model_row, self.facts])
        footer.add_class("mgkit-footer")
        live = [self.live] if LIVE else []
        compose = VBox([controls.top, run, self.message, self.progress, *live])
        takes = VBox([self.cards, self.comparison])
        columns = HBox([compose, takes, VBox([controls.advanced, footer])])
        columns.add_class("mgkit-columns")
        style = f"<style>{STYLE}{PAGE_STYLE * page}</style>"
        return [HTML(style + HEADER * page), columns]

    def __repr__(self) -> str:
        """Text shown by a page without a kernel."""
        return "Studio: a panel that needs a running kernel"

    # --- the buttons, in code ------------------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Assign values to controls by name. Raises: as `Controls.set`."""
        self.controls.set(**values)

    def start(self, requests: Sequence[TakeRequest] = ()) -> bool:
        """Start a run in a worker thread; False if one is in progress or the controls are invalid.

        It makes one take of the controls, or one of each of the `requests`.
        """
        if self.busy:
            return False
        self.message.value, self.error = "", None
        try:
            requests = requests or [self.controls.request()]
        except ValueError as error:
            self._fail(error)
            return False
        self._stop.clear()
        self._set_busy(True)
        self._interrupts.activate()
        threading.Thread(target=self._work, args=(list(requests),), daemon=True).start()
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

    # --- takes as material ---------------------------------------------------------------------------------

    def star(self, take: Take) -> None:
        """Star a take, or take its star away."""
        take.starred = not take.starred
        self.shelf.update(take)
        self._show_takes()

    def rename(self, take: Take, name: str) -> None:
        """Give a take a name; an empty one brings its prompt back."""
        take.name = name.strip()[:120]
        self.shelf.update(take)
        self._show_takes()

    def delete(self, take: Take) -> None:
        """Remove a take and its file; `undo()` brings them back, for a day."""
        self.shelf.remove(take)
        self.takes.remove(take)
        self._removed.append(([take], None))
        self._show_takes()

    def start_over(self) -> None:
        """Set all takes aside, in a dated folder, and the inputs to their start; `undo()` returns the takes.

        Raises: ValueError during a run; OSError if the files cannot be moved.
        """
        if self.busy:
            raise ValueError("a run is in progress: stop it, then start over")
        if self.takes:
            self._removed = [(self.takes, self.shelf.set_aside())]
        self.takes = []
        self.live.reset()
        self.message.value = self.progress.status.value = ""
        self.progress.layout.display = "none"
        self.controls = self._new_controls()
        self.children = self._lay_out()
        self._on_change()
        self._show_takes()

    def undo(self) -> None:
        """Bring back what was deleted or set aside last."""
        if self._removed:
            takes, aside = self._removed.pop()
            if aside:
                self.shelf.bring_back(aside)
            else:
                self.shelf.restore(takes[0])
            self.takes = sorted([*self.takes, *takes], key=lambda take: take.number)
            self._show_takes()

    def continue_from(self, take: Take) -> bool:
        """Start a take that continues `take` from its end, with the same prompt; see `start`."""
        self.set(
            prompt=take.prompt,
            audio_prompt=Sound(f"take {take.number}", take.wave, take.rate),
            audio_prompt_seconds=take.seconds,
            duration=round(take.seconds + ADDED, 2),
        )
        return self.start()

    def use_as_melody(self, take: Take) -> None:
        """Let the next takes follow the melody of `take`."""
        self.set(melody=Sound(f"take {take.number}", take.wave, take.rate))

    def more_like(self, take: Take, count: int = MORE) -> bool:
        """Start `count` takes that differ from `take` in their seeds, the next ones unused; see `start`."""
        used = {other.manifest["seed"] for other in self.takes}
        seed = int(take.manifest["seed"])
        requests: list[TakeRequest] = []
        while len(requests) < count:
            seed += 1
            if seed not in used:
                requests.append(take.again(seed))
        return self.start(requests)

    def _on_card(self, kind: str, number: int, value: str) -> None:
        """A click on a take's card."""
        self.message.value = ""
        take = next((take for take in self.takes if take.number == number), None)
        try:
            if kind == "download_all":
                self.cards.send_file(f"takes{value}.zip".replace(".", "-", 1), archive(self.takes, value))
            elif kind == "undo":
                self.undo()
            elif kind == "start_over":
                self.start_over()
            elif take and kind == "download":
                self.cards.send_file(f"{take.file_name}{value}", encode(take, value))
            elif take and kind == "rename":
                self.rename(take, value)
            elif take:
                actions = {
                    "star": self.star,
                    "delete": self.delete,
                    "continue": self.continue_from,
                    "melody": self.use_as_melody,
                    "more": self.more_like,
                }
                actions[kind](take)
        except (ValueError, OSError) as error:
            self._fail(error)

    # --- a run ---------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a run is in progress."""
        return not self._idle.is_set()

    def _work(self, requests: list[TakeRequest]) -> None:
        """Generate the takes, in the worker thread, which may change traits but must not print."""
        try:
            for i, request in enumerate(requests):
                if not i or not self._stop.is_set():
                    self._make(request, live=not i)
        # Any error must reach the reader: nobody sees the traceback of a thread.
        except Exception as error:
            self._fail(error)
        finally:
            self._interrupts.release()
            self._set_busy(False)

    def _make(self, request: TakeRequest, live: bool) -> None:
        """One take; a `live` one is heard while it is made."""
        model = self._load(request.model)
        self.progress.status.value = "stopping …" if self._stop.is_set() else "starting …"
        self.progress.start(request.model, model.frame_rate)
        push = None
        if live:
            self.live.reset(request.settings.duration, model.sample_rate, model.audio_channels)
            push = self.live.push
        # Above those that undo would bring back.
        known = [*self.takes, *(take for takes, _ in self._removed for take in takes)]
        number = max((take.number for take in known), default=0) + 1
        try:
            take = generate_take(model, request, number, self._on_step, self._stop, push)
        finally:
            if live:
                self.live.finish()
        self._keep(take)
        self.progress.status.value = (
            f"stopped; kept {take.seconds:.1f} s" if take.stopped else f"{take.seconds:g} s"
        )

    def _keep(self, take: Take) -> None:
        """Show the take and write its file; one that cannot be written stays in memory."""
        self.takes.append(take)
        try:
            self.shelf.add(take)
        except OSError as error:
            self.message.value = _problem(f"The take is here, but not on disk: {error}")
        self._show_takes()

    def _load(self, name: str) -> MusicGen:
        with self._loading:
            if self._loaded != name or self._model is None:
                # The old model is released first, so that the two are never in memory together.
                self._model = None
                self.progress.status.value = f"loading {name} …"
                self._model = MusicGen.get_pretrained(name)
                self._loaded = name
            return self._model

    def _on_step(self, done: int, total: int) -> None:
        self.progress.step(done, total, self._stop.is_set())

    def _silence(self) -> None:
        """The Stop button: end the run, and what the live player still has."""
        self.stop()
        self.live.halt()

    # --- display -------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        """Show the first line of an error's message, with its type if it is not one of the expected ones."""
        self.error = error
        expected = isinstance(error, ValueError | OSError | RuntimeError)
        message = str(error).split("\n")[0] if expected else f"{type(error).__name__}: {error}"
        self.progress.status.value = ""
        self.message.value = _problem(in_words(message))

    def _on_change(self) -> None:
        """After each choice: the last error is gone, and the facts are those of the next run."""
        problem = self.controls.problem
        self.message.value = _problem(problem) if problem else ""
        name = self.controls.model_name
        model = self._model if name == self._loaded else None
        self.controls.offer_melody(has_melody(name, model))
        self.cards.has_melody = has_melody(name, model)
        seconds, pace = self.controls["duration"].value, self.progress.seconds_per_step.get(name)
        self.facts.show(name, seconds, model, pace)

    def _set_busy(self, busy: bool) -> None:
        if busy:
            self._idle.clear()
            self.progress.bar.value, self.progress.layout.display = 0, ""
        message = self.message.value
        self._on_change()
        self.message.value = message
        self.generate_button.disabled = self.cards.busy = busy
        self._show_live(busy)
        # Last, so that whoever waits for it finds the panel in its final state.
        if not busy:
            self._idle.set()

    def _show_live(self, busy: bool | None = None) -> None:
        """Stop ends the run and the live player: both are there while there is either."""
        running = self.busy if busy is None else busy
        self.stop_button.disabled = not (running or self.live.started) or self._stop.is_set() and running
        self.live.layout.display = "" if running or self.live.started else "none"

    def _show_takes(self) -> None:
        self.cards.show(self.takes)
        self.cards.undo = _removal(*self._removed[-1]) if self._removed else ""
        self.comparison.update(self.takes)


def _removal(takes: list[Take], aside: Path | None) -> str:
    """What undo would bring back, in words."""
    if aside is None:
        return f"Take {takes[0].number} was deleted."
    return f"Set aside: {len(takes)} takes, in {os.path.relpath(aside)}."


def _problem(message: str) -> str:
    """A sentence in the panel's one place for errors."""
    return f'<div class="mgkit-problem" role="alert">{html.escape(message)}</div>'
