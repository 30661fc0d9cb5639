"""A melody editor: pitch classes for melody conditioning, drawn on a canvas or edited in code.

Axes: F chroma frames.

    wave -> melody.classes -> MelodyEditor, drawn by melody_editor.js -> classes -> generate_with_chroma
"""

import html
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgkit import melody
from mgkit.lab import figures

if TYPE_CHECKING:
    from anywidget import AnyWidget
    from ipywidgets import VBox


class MelodyEditor:
    """Editable pitch classes `classes` int64 [F]; `detected` are the initial ones.

    `rate` (Hz) is the sampling rate of the audio they describe. Raises: as `melody.parse_classes`.
    """

    def __init__(self, classes: Tensor, rate: int):
        self.detected, self.rate = melody.parse_classes(classes), rate
        self.classes = self.detected.clone()
        self._canvases: list[AnyWidget] = []

    def edit(self, to: str, start: float, end: float) -> None:
        """Write the pitch class named `to` from `start` to `end` seconds; see `melody.edit`."""
        self._set(melody.edit(self.classes, to, start, end, self.rate))

    def reset(self) -> None:
        """Restore the detected pitch classes."""
        self._set(self.detected.clone())

    def player(self) -> figures.Player:
        """Player of the pitch classes as tones."""
        return figures.player(melody.tones(self.classes, self.rate), self.rate, "the melody as tones")

    def widget(self) -> "VBox | figures.Player":
        """Canvas for pointer and arrow keys with Play and Reset, or a message if a package is missing."""
        try:
            import ipywidgets

            canvas = _canvas_class()(
                values=self.classes.tolist(),
                detected=self.detected.tolist(),
                names=list(melody.PITCH_CLASSES),
                frame=melody.HOP / self.rate,
            )
        except ImportError as error:
            missing = html.escape(error.name or "anywidget")
            return figures.Player(
                f"<p>The melody editor needs the package {missing}; "
                "without it, use <code>edit(to, start, end)</code>.</p>"
            )
        self._canvases.append(canvas)
        canvas.observe(lambda change: self._set(torch.tensor(change["new"])), "values")
        play, reset = ipywidgets.Button(description="Play"), ipywidgets.Button(description="Reset")
        sound = ipywidgets.HTML()

        def show_player(_: object) -> None:
            sound.value = self.player().html

        play.on_click(show_player)
        reset.on_click(lambda _: self.reset())
        return ipywidgets.VBox([canvas, ipywidgets.HBox([play, reset]), sound])

    def _set(self, classes: Tensor) -> None:
        self.classes = classes
        for canvas in self._canvases:
            canvas.values = classes.tolist()


@cache
def _canvas_class() -> "type[AnyWidget]":
    """The widget drawn by melody_editor.js, defined on first use because both libraries are optional."""
    import anywidget
    import traitlets

    class Canvas(anywidget.AnyWidget):
        """Pitch class of each frame, now (`values`) and initially (`detected`); `frame` is in seconds."""

        _esm = Path(__file__).with_name("melody_editor.js")
        values = traitlets.List(traitlets.Int()).tag(sync=True)
        detected = traitlets.List(traitlets.Int()).tag(sync=True)
        names = traitlets.List(traitlets.Unicode()).tag(sync=True)
        frame = traitlets.Float().tag(sync=True)

    return Canvas
