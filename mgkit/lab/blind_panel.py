"""A blind test as a panel in a notebook: two players, three answers, a comment, undo, and the result.

Each answer waits until both clips were heard. Plays are counted in the browser by `player.js`, which needs
the package anywidget; without it, the panel has the browser's own players and does not count.
"""

import time
from html import escape

from ipywidgets import HTML, Button, HBox, Layout, Text, VBox

from mgkit.lab.blind_test import ANSWERS, BlindTest, unheard
from mgkit.lab.pages import bare_player
from mgkit.lab.player import LIVE, Players

# Seconds after a new pair appears in which clicks are ignored: they were meant for the previous pair.
DEBOUNCE = 0.5
NARROW = Layout(max_width="420px", width="auto")


class BlindPanel(VBox):
    """The panel of a test, for one listener at a time."""

    def __init__(self, test: BlindTest):
        self.test = test
        # Plays of A and B, and the time at which the current pair appeared.
        self.plays, self.shown = {"A": 0, "B": 0}, 0.0
        self.name = Text(
            test.listener, placeholder="your name", description="listener", continuous_update=False
        )
        self.head, self.status = HTML(), HTML()
        # As a block, so that a wide table scrolls within the panel.
        self.outcome = HTML(layout=Layout(width="100%", display="block"))
        self.sound = Players(on_played=self._count)
        self.choices = [Button(description=label) for label in ANSWERS]
        self.comment = Text(placeholder="why? (optional)", description="comment")
        self.name.layout = self.comment.layout = NARROW
        self.back = Button(description="undo", tooltip="take back the last answer")
        self.end = Button(
            description="show my result", tooltip="name the systems; nothing can be undone then"
        )
        rows = [
            HBox(row, layout=Layout(flex_flow="row wrap")) for row in (self.choices, [self.back, self.end])
        ]
        super().__init__(
            [self.name, self.head, self.sound, rows[0], self.comment, rows[1], self.status, self.outcome]
        )
        self.name.observe(self._start, "value")
        for button in self.choices:
            button.on_click(self._answer)
        self.back.on_click(self._undo)
        self.end.on_click(self._show_result)
        self._draw()

    @property
    def _asking(self) -> bool:
        return bool(self.test.listener) and not self.test.finished

    def _draw(self) -> None:
        """Show the current pair, or what there is to do without one."""
        test = self.test
        self.plays, self.comment.value, self.outcome.value = {"A": 0, "B": 0}, "", ""
        if self._asking:
            question, item = escape(test.pair.question), escape(test.pair.item)
            self.head.value = f"<b>{test.progress}</b> · {question}<br><i>{item}</i>"
            pair = zip("AB", test.clips)
            players = (
                bare_player(wave, test.rate, letter, f"{test.progress} {letter}") for letter, wave in pair
            )
            self.sound.html = f"<div>{''.join(player.html for player in players)}</div>"
        else:
            thanks = f"All {len(test)} pairs are answered. Thank you, {escape(test.listener)}."
            self.head.value = thanks if test.finished else "Enter your name to start."
            self.sound.html = ""
        self.comment.disabled, self.end.disabled = not self._asking, not test.finished
        self.shown = time.monotonic()
        self._enable()

    def _enable(self) -> None:
        """Let the listener answer once both clips were heard."""
        missing = unheard((self.plays["A"], self.plays["B"])) if LIVE else ""
        for button in self.choices:
            button.disabled = not self._asking or bool(missing)
        self.back.disabled = not self.test.can_undo
        if self._asking:
            self.status.value = missing or "Which one? Listen again as often as you like."
        else:
            self.status.value = ""

    def _count(self, name: str) -> None:
        progress, _, letter = name.rpartition(" ")
        # A report may arrive after the next pair has appeared.
        if progress == self.test.progress and letter in self.plays:
            self.plays[letter] += 1
            self._enable()

    def _start(self, change: dict[str, str]) -> None:
        if change["new"].strip():
            self.test.start(change["new"])
            self._draw()

    def _answer(self, button: Button) -> None:
        if time.monotonic() - self.shown < DEBOUNCE or not self._asking:
            return
        plays = (self.plays["A"], self.plays["B"]) if LIVE else None
        try:
            self.test.answer(ANSWERS[button.description], self.comment.value, plays)
        except (OSError, ValueError) as error:
            self.status.value = f"not saved: {escape(str(error))}"
            return
        self._draw()

    def _undo(self, _button: Button) -> None:
        try:
            self.test.undo()
        except (OSError, ValueError) as error:
            self.status.value = f"not undone: {escape(str(error))}"
            return
        self._draw()

    def _show_result(self, _button: Button) -> None:
        if self.test.finished:
            result = self.test.result()
            lines = "".join(f"<p>{escape(str(preference))}</p>" for preference in result.preferences)
            saved = f"<p>saved in {escape(self.test.path.name)}</p>"
            self.outcome.value = f"{lines}{result.table().html}{saved}"
            self._enable()
