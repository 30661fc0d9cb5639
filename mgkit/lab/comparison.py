"""Two takes side by side on one level scale, and a button to switch between them at the same position."""

import html
from collections.abc import Sequence

from ipywidgets import Accordion, Dropdown, HBox, Layout, VBox

from mgkit.lab.player import Players
from mgkit.lab.settings_form import explain
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
        for menu in self.menus:
            explain(menu, "take to compare")
        self.players = Players()
        self._takes: dict[int, Take] = {}
        row = HBox(self.menus, layout=Layout(flex_flow="row wrap"))
        super().__init__(
            [VBox([row, self.players])],
            selected_index=None,
            layout=Layout(margin="8px 0", display="none"),
        )
        self.set_title(0, "Compare two takes")
        for widget in (*self.menus, self):
            widget.observe(lambda _: self._draw(), ["value", "selected_index"])

    def update(self, takes: Sequence[Take]) -> None:
        """Offer these takes, the newest as B."""
        self._takes = {take.number: take for take in takes}
        self.layout.display = "" if len(takes) > 1 else "none"
        first = self.menus[0].value if self.menus[0].value in self._takes else None
        options = [(take.title, take.number) for take in takes]
        for menu, number in zip(self.menus, (first or takes[0].number, takes[-1].number) if takes else ()):
            if menu.options != tuple(options):
                menu.options = options
            menu.value = number

    def _draw(self) -> None:
        """The two players, if the section is open."""
        pair = [self._takes.get(menu.value) for menu in self.menus]
        if self.selected_index is None or None in pair:
            self.players.html = ""
            return
        level = max(float(take.wave.abs().max()) for take in pair if take) or None
        players = "".join(take.player(level).html for take in pair if take)
        click = html.escape(SWITCH)
        button = f'<button class="jupyter-button" onclick="{click}">Switch at the same position</button>'
        self.players.html = f"<div>{players}<br>{button}</div>"
