"""Example prompts as buttons, a few at a time."""

from collections.abc import Callable
from itertools import cycle

from ipywidgets import Button, HBox

from mgkit import hub
from mgkit.lab.settings_form import explain

# Prompts shown at a time.
CHIPS = 5


def example_prompts() -> list[str]:
    """Example prompts shipped with mgkit, in the vocabulary of nano."""
    path = hub.shipped("prompts.txt")
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ["calm piano in C major"]


class ExampleChips(HBox):
    """Buttons named like prompts, which call `on_choice(prompt)`, and one that shows others."""

    def __init__(self, on_choice: Callable[[str], None]):
        super().__init__()
        self.add_class("mgkit-chips")
        self._on_choice, self._prompts = on_choice, cycle(example_prompts())
        self.more = Button(description="more …")
        explain(self.more, "other example prompts")
        self.more.on_click(lambda _: self._show())
        self._show()

    def _show(self) -> None:
        chips = []
        for prompt in (next(self._prompts) for _ in range(CHIPS)):
            chip = Button(description=prompt)
            explain(chip, f"use the prompt: {prompt}")
            chip.on_click(lambda button: self._on_choice(button.description))
            chips.append(chip)
        self.children = (*chips, self.more)
