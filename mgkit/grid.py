"""Melodies by hand: choose one, and change the pitch classes that the model is told of it.

Letters: C channels, N samples, F chroma frames.

    shipped, uploaded, recorded -> MelodyPicker -> wave -> melody.classes -> GridEditor -> generate_with_chroma

Everything can be done by plain calls; `widget()` shows the same to a hand, or says in a sentence what is missing.
"""

import html
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import audio, melody, show


class MelodyPicker:
    """A melody, `wave` [C, N] at `rate` called `name`: at first the first of those in `folder`.

    Errors: FileNotFoundError for a folder without audio files.
    """

    def __init__(self, folder: str | os.PathLike):
        files = sorted(path for path in Path(folder).glob("*") if path.suffix in audio.FORMATS)
        if not files:
            raise FileNotFoundError(f"there are no audio files in {str(folder)!r}")
        self.shipped = {path.stem: path for path in files}
        self.pick(files[0].stem)

    def pick(self, name: str) -> None:
        """Takes a shipped melody. Errors: ValueError for another name."""
        if name not in self.shipped:
            raise ValueError(f"there is no melody {name!r}; there are {', '.join(self.shipped)}")
        self.take(*audio.read(self.shipped[name]), name)

    def upload(self, content: bytes, name: str) -> None:
        """Takes the bytes of an audio file called `name`. Errors: those of `audio.decode`."""
        self.take(*audio.decode(content, name), name)

    def take(self, wave: Tensor, rate: int, name: str) -> None:
        """Takes a wave [C, N], such as a recording. Errors: those of `audio.check`."""
        self.wave, self.rate, self.name = audio.check(wave, "the melody"), rate, name

    def player(self) -> show.Player:
        """A player of the melody."""
        return show.player(self.wave, self.rate, self.name)

    def widget(self) -> Any:
        """A list of the shipped melodies, an upload, and the player of what was taken last."""
        try:
            import ipywidgets
        except ImportError:
            return show.Player("<p>The panel needs ipywidgets; <code>pick(name)</code> does the same.</p>")
        shipped = ipywidgets.Dropdown(options=list(self.shipped), value=None, description="shipped")
        if self.name in self.shipped:
            shipped.value = self.name
        upload = ipywidgets.FileUpload(accept="audio/*", multiple=False, description="upload audio")
        sound = ipywidgets.HTML(self.player().html)

        def taken(take: Callable[..., None], *what: Any) -> None:
            try:
                take(*what)
                sound.value = self.player().html
            except ValueError as error:  # a file that is no audio: said, and the melody stays as it was
                sound.value = f"<p>{html.escape(str(error))}</p>{self.player().html}"

        def uploaded(_: object) -> None:
            for name, content in _files(upload.value):
                taken(self.upload, content, name)

        shipped.observe(lambda change: taken(self.pick, change["new"]), "value")
        upload.observe(uploaded, "value")
        return ipywidgets.VBox([ipywidgets.HBox([shipped, upload]), sound])


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

    def player(self) -> show.Player:
        """A player of the grid as tones."""
        return show.player(melody.tones(self.classes, self.rate), self.rate, "the grid as tones")

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
            return show.Player(
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


def _files(value: Any) -> list[tuple[str, bytes]]:
    """Names and contents in the value of an upload: a dictionary by name in ipywidgets 7, a tuple in 8."""
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


@cache
def _canvas_class() -> Any:
    """The widget that `grid.js` draws; made on first use, since neither library need be there."""
    import anywidget
    import traitlets

    class Canvas(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("grid.js")
        values = traitlets.List(traitlets.Int()).tag(sync=True)  # pitch class of each frame
        heard = traitlets.List(traitlets.Int()).tag(sync=True)  # the same before any change
        names = traitlets.List(traitlets.Unicode()).tag(sync=True)
        frame = traitlets.Float().tag(sync=True)  # seconds

    return Canvas
