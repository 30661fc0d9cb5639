"""A melody by hand: the pitch classes that the model is told of it, to be drawn in.

Letters: F chroma frames.

    wave -> melody.classes -> GridEditor, drawn by grid.js -> classes -> generate_with_chroma

Plain calls do what a hand does.
"""

import html
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgkit import melody
from mgkit.lab import figures


class GridEditor:
    """The pitch classes `classes` int64 [F] of a melody, to be changed by hand; `heard` are those it began with.

    `rate` in Hz is that of the waves that they are of. Errors: those of `melody.check`.
    """

    def __init__(self, classes: Tensor, rate: int):
        self.heard, self.rate = melody.check(classes), rate
        self.classes = self.heard.clone()
        self._canvases: list[Any] = []

    def edit(self, to: str, start: float, end: float) -> None:
        """Writes the pitch class named `to` from `start` to `end` seconds; see `melody.edit`."""
        self._set(melody.edit(self.classes, to, start, end, self.rate))

    def reset(self) -> None:
        """Makes it as it was heard."""
        self._set(self.heard.clone())

    def player(self) -> figures.Player:
        """A player of the grid as tones."""
        return figures.player(melody.tones(self.classes, self.rate), self.rate, "the grid as tones")

    def widget(self) -> Any:
        """The grid to draw in with pointer or arrow keys; buttons that play it and make it as it was."""
        try:
            import ipywidgets

            canvas = _canvas_class()(
                values=self.classes.tolist(),
                heard=self.heard.tolist(),
                names=list(melody.PITCH_CLASSES),
                frame=melody.HOP / self.rate,
            )
        except ImportError as error:
            return figures.Player(
                f"<p>The grid to draw in needs {html.escape(error.name or 'anywidget')}; "
                "<code>edit(to, start, end)</code> does the same.</p>"
            )
        self._canvases.append(canvas)
        canvas.observe(lambda change: self._set(torch.tensor(change["new"])), "values")
        play, reset = ipywidgets.Button(description="Play"), ipywidgets.Button(description="As it was")
        sound = ipywidgets.HTML()

        def played(_: object) -> None:
            sound.value = self.player().html

        play.on_click(played)
        reset.on_click(lambda _: self.reset())
        return ipywidgets.VBox([canvas, ipywidgets.HBox([play, reset]), sound])

    def _set(self, classes: Tensor) -> None:
        self.classes = classes
        for canvas in self._canvases:
            canvas.values = classes.tolist()


@cache
def _canvas_class() -> Any:
    """The widget that `grid.js` draws; made on first use, since neither library need be there."""
    import anywidget
    import traitlets

    class Canvas(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("melody_editor.js")
        values = traitlets.List(traitlets.Int()).tag(sync=True)  # pitch class of each frame
        heard = traitlets.List(traitlets.Int()).tag(sync=True)  # the same before any change
        names = traitlets.List(traitlets.Unicode()).tag(sync=True)
        frame = traitlets.Float().tag(sync=True)  # seconds

    return Canvas
