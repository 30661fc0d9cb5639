"""The studio's seed: typed and kept, or drawn by dice for every take."""

import random

from ipywidgets import HTML, Button, HBox, IntText, Layout

from mgkit.lab.settings_form import explain, label


class SeedInput(HBox):
    """Number field, dice, and a note; `next()` is the seed of the next take.

    `kept` says whether every take has the seed of the field, as after typing one.
    """

    def __init__(self) -> None:
        self.field = IntText(_drawn(), description=label("seed"))
        explain(self.field, "the same seed, prompt and settings give the same take; type one to keep it")
        self.dice = Button(description="", layout=Layout(width="32px"))
        self.dice.add_class("mgkit-dice")
        self.note = HTML()
        self.kept = False
        # Whether a take was made with the field's seed, and whether the change of the field is the dice's.
        self._used, self._drawing = True, False
        super().__init__([self.field, self.dice, self.note])
        self.dice.on_click(lambda _: self.draw())
        self.field.observe(lambda _: self._on_field(), "value")
        self._show()

    def keep(self, seed: int) -> None:
        """Use `seed` for every take."""
        self.field.value, self.kept = seed, True
        self._show()

    def release(self) -> None:
        """Draw a new seed for every take from the next one on."""
        self.kept, self._used = False, True
        self._show()

    def draw(self) -> None:
        """Draw a seed for the next take, and a new one for every take after it."""
        self._drawing = True
        self.field.value = _drawn()
        self._drawing = False
        self.kept = self._used = False
        self._show()

    def next(self) -> int:
        """The seed of the next take, new unless it is kept."""
        if not self.kept and self._used:
            self.draw()
        self._used = True
        return self.field.value

    def _on_field(self) -> None:
        if not self._drawing:
            self.kept, self._used = True, False
            self._show()

    def _show(self) -> None:
        state = "kept for every take" if self.kept else "a new one for every take"
        explain(self.dice, f"draw a new seed, now and for every take (now: {state})")
        self.note.value = f'<span class="mgkit-quiet">{state}</span>'
        change = self.dice.remove_class if self.kept else self.dice.add_class
        change("mgkit-on")


def _drawn() -> int:
    return random.SystemRandom().randrange(1_000_000)
