"""The studio: everything the command line can do, with buttons, in a notebook or as an app.

    Controls -> TakeRequests -> RunPanel: a worker thread makes the music -> Collection -> cards

A take is the result of one run: a piece of music with its request (see `takes`). Everything works without a
browser as well: `Studio().generate(prompt="calm piano")` does what the Generate button does and returns the
take. Written to the API of ipywidgets 7.7, which Colab has; version 8 supports it too.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipywidgets import HTML, HBox, VBox

from mgkit import MusicGen
from mgkit.lab.cards import TakeCards
from mgkit.lab.collection import Collection
from mgkit.lab.comparison import Comparison
from mgkit.lab.controls import Controls
from mgkit.lab.facts import Facts, has_melody
from mgkit.lab.run_panel import RunPanel
from mgkit.lab.shelf import archive, encode
from mgkit.lab.takes import Sound, Take, TakeRequest

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
        self.collection = Collection(folder)
        self.run = RunPanel(model, self.collection, self._on_busy, self._show_takes)
        self.message, self.progress, self.live = self.run.message, self.run.progress, self.run.live
        self.generate_button, self.stop_button = self.run.buttons
        self.facts = Facts()
        self.cards, self.comparison = TakeCards(self._on_card, self.live.starter), Comparison()
        self._start = model.name if isinstance(model, MusicGen) else model, page
        self.controls = self._new_controls()
        super().__init__(self._lay_out())
        self.add_class("mgkit-studio")
        self.generate_button.on_click(lambda _: self.start())
        self._show_takes()
        self._on_change()
        if page:
            # Visitors do not wait for it.
            threading.Thread(target=self.run.load, args=self._start[:1], daemon=True).start()

    @property
    def takes(self) -> list[Take]:
        """The takes in order."""
        return self.collection.takes

    @property
    def error(self) -> Exception | None:
        """Error of the last run, if it produced no take."""
        return self.run.error

    @property
    def busy(self) -> bool:
        """Whether a run is in progress."""
        return self.run.busy

    def _new_controls(self) -> Controls:
        model, page = self._start
        return Controls(model, self._on_change, paths=not page)

    def _lay_out(self) -> list[Any]:
        """The parts of the panel, in the order in which they are used."""
        _, page = self._start
        controls = self.controls
        run = HBox([*self.run.buttons, controls.numbers])
        run.add_class("mgkit-run")
        footer = VBox([controls.model_row, self.facts])
        footer.add_class("mgkit-footer")
        compose = VBox([controls.top, run, *self.run.status])
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
        self.message.value, self.run.error = "", None
        try:
            requests = requests or [self.controls.request()]
        except ValueError as error:
            self.run.fail(error)
            return False
        self.run.start(list(requests))
        return True

    def stop(self) -> None:
        """End the run after its current step and keep the part generated so far."""
        self.run.stop()

    def wait(self) -> None:
        """Return when no run is in progress. Ctrl-C (or an interrupt) stops the run, a second the wait."""
        self.run.wait()

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
        self.collection.star(take)
        self._show_takes()

    def rename(self, take: Take, name: str) -> None:
        """Give a take a name; an empty one brings its prompt back."""
        self.collection.rename(take, name)
        self._show_takes()

    def delete(self, take: Take) -> None:
        """Remove a take and its file; `undo()` brings them back, for a day."""
        self.collection.delete(take)
        self._show_takes()

    def start_over(self) -> None:
        """Set all takes aside, in a dated folder, and the inputs to their start; `undo()` returns the takes.

        Raises: ValueError during a run; OSError if the files cannot be moved.
        """
        if self.busy:
            raise ValueError("a run is in progress: stop it, then start over")
        self.collection.set_aside()
        self.run.reset()
        self.controls = self._new_controls()
        self.children = self._lay_out()
        self._on_change()
        self._show_takes()

    def undo(self) -> None:
        """Bring back what was deleted or set aside last."""
        self.collection.undo()
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
            self.run.fail(error)

    # --- display -------------------------------------------------------------------------------------------

    def _on_change(self) -> None:
        """After each choice: the last error is gone, and the facts are those of the next run."""
        self.run.show_problem(self.controls.problem)
        name = self.controls.model_name
        model = self.run.loaded(name)
        self.controls.offer_melody(has_melody(name, model))
        self.cards.has_melody = has_melody(name, model)
        seconds, pace = self.controls["duration"].value, self.progress.seconds_per_step.get(name)
        self.facts.show(name, seconds, model, pace)

    def _on_busy(self, busy: bool) -> None:
        """At both ends of a run; its message stays."""
        message = self.message.value
        self._on_change()
        self.message.value = message
        self.cards.busy = busy

    def _show_takes(self) -> None:
        self.cards.show(self.takes)
        self.cards.undo = self.collection.removal
        self.comparison.update(self.takes)
