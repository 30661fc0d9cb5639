"""Two takes side by side on one level scale, and a button to switch between them at the same position."""

import html
from collections.abc import Sequence

from ipywidgets import HTML, Accordion, Dropdown, HBox, Layout, VBox

from mgkit.lab.takes import Take

# The starting player takes over the position of the other one.
SWITCH = (
    "const [a, b] = this.parentNode.querySelectorAll('audio'); const [on, off] = a.paused ? [b, a] : [a, b]; "
    "off.currentTime = on.currentTime; on.pause(); off.play()"
)


class Comparison(Accordion):
    """A folded section with two menus of takes and their players; hidden until there are two takes."""

    def __init__(self) -> None:
        self.menus = [Dropdown(description=letter, style={"description_width": "20px"}) for letter in "AB"]
        self.players = HTML()
        self._takes: list[Take] = []
        super().__init__(
            [VBox([HBox(self.menus), self.players])],
            selected_index=None,
            layout=Layout(margin="8px 0", display="none"),
        )
        self.set_title(0, "compare two takes")
        for widget in (*self.menus, self):
            widget.observe(lambda _: self._draw(), ["value", "selected_index"])

    def update(self, takes: Sequence[Take]) -> None:
        """Offer these takes, the newest as B."""
        self._takes = list(takes)
        first = self.menus[0].value or takes[0].number
        options = [(take.title, take.number) for take in takes]
        for menu, number in zip(self.menus, (first, takes[-1].number)):
            menu.options = options
            menu.value = number
        self.layout.display = "" if len(takes) > 1 else "none"

    def _draw(self) -> None:
        """The two players, if the section is open."""
        chosen = [menu.value for menu in self.menus]
        if self.selected_index is None or None in chosen:
            self.players.value = ""
            return
        by_number = {take.number: take for take in self._takes}
        pair = [by_number[number] for number in chosen]
        level = max(float(take.wave.abs().max()) for take in pair) or None
        players = "".join(take.player(level).html for take in pair)
        click = html.escape(SWITCH)
        button = f'<button class="jupyter-button" onclick="{click}">Switch at the same position</button>'
        self.players.value = f"<div>{players}<br>{button}</div>"
