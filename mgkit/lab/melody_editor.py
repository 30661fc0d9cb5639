"""A melody editor: pitch classes for melody conditioning, drawn on a canvas or edited in code.

Axes: C channels, N samples, F chroma frames.

    wave -> detect -> MelodyEditor, drawn by melody_editor.js -> classes -> generate_with_chroma
"""

import html
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit import melody
from mgkit.lab import figures

if TYPE_CHECKING:
    from anywidget import AnyWidget
    from ipywidgets import Text, VBox

REST = -1
# A frame is a rest below this share of the loudest frame's RMS (-30 dB), and below this RMS in any case.
QUIET, SILENT = 0.03, 1e-3


def detect(wave: Tensor, rate: int) -> Tensor:
    """Pitch classes [F] of `wave` [C, N], with REST where it is silent, F = 1 + N // melody.HOP."""
    detected = melody.chroma(wave, rate).argmax(dim=0)
    power = F.pad(wave.mean(dim=0), (melody.HOP, melody.HOP)).square()
    # Each frame with its neighbours: two hops around its centre.
    rms = F.avg_pool1d(power[None], 2 * melody.HOP, melody.HOP)[0].sqrt()
    rms = F.pad(rms, (0, max(0, len(detected) - len(rms))))[: len(detected)]
    detected[rms < max(QUIET * float(rms.max()), SILENT)] = REST
    return detected


def hold(classes: Tensor) -> Tensor:
    """`classes` [F] with each REST replaced by the note before it, or at the start by the note after it.

    The models have no rest: silence is the pitch class C to them, as in audiocraft. Raises: ValueError if
    there are only rests.

    >>> hold(torch.tensor([-1, 4, -1, -1, 7]))
    tensor([4, 4, 4, 4, 7])
    """
    notes = (classes != REST).nonzero()[:, 0]
    if not len(notes):
        raise ValueError("the melody has no note, only rests: record it louder, or draw one")
    last = torch.searchsorted(notes, torch.arange(len(classes)), right=True) - 1
    return classes[notes[last.clamp(min=0)]]


def chord_tones(chroma: Tensor, rate: int) -> Tensor:
    """Wave [1, N] of multi-hot `chroma` [F, 12]: its pitch classes as Shepard tones, at most four at once."""
    voices = []
    for voice in range(4):
        rows = [row.nonzero()[:, 0] for row in chroma]
        notes = torch.tensor([int(row[min(voice, len(row) - 1)]) if len(row) else REST for row in rows])
        if (notes != REST).any():
            voices.append(melody.tones(hold(notes), rate))
    return torch.stack(voices).mean(dim=0) if voices else torch.zeros(1, len(chroma) * melody.HOP)


class MelodyEditor:
    """Editable pitch classes `drawn` int64 [F], in which -1 is a rest; `detected` are the initial ones.

    `rate` (Hz) is the sampling rate of the audio they describe. Raises: as `melody.parse_classes`.
    """

    def __init__(self, classes: Tensor, rate: int):
        self._canvases: list[AnyWidget] = []
        self._fields: list[Text] = []
        self.show(classes, rate)

    def show(self, classes: Tensor, rate: int) -> None:
        """Start again with another melody, in all views."""
        rests = classes == REST
        self.detected = melody.parse_classes(classes.masked_fill(rests, 0)).masked_fill(rests.cpu(), REST)
        self.rate, self.drawn = rate, self.detected.clone()
        # Chord names in order, and their chroma [F, 12]; empty without chords.
        self._names: list[str] = []
        self._chords = torch.zeros(0, 12)
        # Frames drawn by hand, and the steps to undo.
        self._by_hand = torch.zeros(len(classes), dtype=torch.bool)
        self._history: list[tuple[Tensor, Tensor]] = []
        for field in self._fields:
            field.value = ""
        self._update()

    @property
    def classes(self) -> Tensor:
        """The model's input: pitch classes int64 [F], each rest holding the note before it; see `hold`."""
        return hold(self.drawn)

    @property
    def condition(self) -> Tensor:
        """The chroma float [F, 12] of the chords, if there are any; else `classes`."""
        return self._chords if self._names else self.classes

    @property
    def edited(self) -> bool:
        """Whether the condition differs from the detected melody."""
        return bool(self._names) or not torch.equal(self.drawn, self.detected)

    def set_chords(self, progression: str) -> None:
        """Condition on chords, such as "C G A:min F", each as long as the others; on the melody if empty.

        Raises: ValueError for an invalid chord, with its position; see `melody.chords`.
        """
        names, length = progression.split(), len(self.drawn) * melody.HOP / self.rate
        starts = [(i * length / len(names), name) for i, name in enumerate(names)]
        chroma = melody.chords(starts, seconds=length, rate=self.rate) if names else torch.zeros(0, 12)
        self._names, self._chords = names, chroma[: len(self.drawn)]
        self._update()

    def edit(self, to: str, start: float, end: float) -> None:
        """Write the pitch class named `to` from `start` to `end` seconds, except where a hand drew.

        Raises: as `melody.edit`.
        """
        rests = self.drawn == REST
        edited = melody.edit(self.drawn.masked_fill(rests, 0), to, start, end, self.rate)
        seconds = torch.arange(len(edited)) * melody.HOP / self.rate
        inside = (seconds >= start) & (seconds < end) & ~self._by_hand
        self._keep()
        self.drawn = torch.where(inside, edited, self.drawn)
        self._update()

    def undo(self) -> None:
        """Take back the last stroke, edit or reset."""
        if self._history:
            self.drawn, self._by_hand = self._history.pop()
            self._update()

    def reset(self) -> None:
        """Restore the detected pitch classes."""
        self._keep()
        self.drawn, self._by_hand = self.detected.clone(), torch.zeros_like(self._by_hand)
        self._update()

    def player(self) -> figures.Player:
        """Player of the chords, or of the pitch classes, as tones, silent in rests."""
        if self._names:
            wave = chord_tones(self._chords, self.rate)
            return figures.player(wave, self.rate, f"the chords as tones: {' '.join(self._names)}")
        wave = melody.tones(self.classes, self.rate)
        sounding = (self.drawn != REST).float()[None, None]
        gate = F.interpolate(sounding, size=wave.shape[-1], mode="linear", align_corners=True)[0]
        return figures.player(wave * gate.clamp(0, 1), self.rate, "the melody as tones")

    def widget(self, on_problem: Callable[[str], None] | None = None) -> "VBox | figures.Player":
        """Canvas for pointer and arrow keys, buttons and a row for chords.

        `on_problem` receives the message for invalid chords, or an empty text; without it, the widget shows
        the message. If a package is missing, the widget is a message that names it.
        """
        try:
            import ipywidgets

            from mgkit.lab.player import Players

            canvas = _canvas_class()(names=list(melody.PITCH_CLASSES))
        except ImportError as error:
            missing = html.escape(error.name or "anywidget")
            return figures.Player(
                f"<p>The melody editor needs the package {missing}; "
                "without it, use <code>edit(to, start, end)</code>.</p>"
            )
        self._canvases.append(canvas)
        self._update()
        canvas.observe(lambda change: self._on_stroke(torch.tensor(change["new"])), "values")
        sound = Players()
        buttons = {
            "Play": ("the melody as tones", lambda: self._play(sound)),
            "Undo": ("take back the last stroke", self.undo),
            "Reset": ("back to what was detected", self.reset),
        }
        row = []
        for name, (tooltip, action) in buttons.items():
            button = ipywidgets.Button(description=name, tooltip=tooltip)
            button.on_click(lambda _, action=action: action())
            row.append(button)
        message = ipywidgets.HTML()
        chords = ipywidgets.Text(
            description="Chords", placeholder="C G A:min F (in place of the melody)", continuous_update=False
        )

        def read_chords(_: object) -> None:
            problem = ""
            try:
                self.set_chords(chords.value)
            except ValueError as error:
                problem = str(error)
            if on_problem:
                on_problem(problem)
            else:
                message.value = f'<p style="color: #c2410c">{html.escape(problem)}</p>' if problem else ""

        chords.observe(read_chords, "value")
        self._fields.append(chords)
        return ipywidgets.VBox([canvas, ipywidgets.HBox(row), chords, message, sound])

    def _play(self, sound: "AnyWidget") -> None:
        sound.html = self.player().html
        sound.play()

    def _on_stroke(self, drawn: Tensor) -> None:
        # Also called for our own assignments.
        if not torch.equal(drawn, self.drawn):
            self._keep()
            self._by_hand = self._by_hand | (drawn != self.drawn)
            self.drawn = drawn
            self._update()

    def _keep(self) -> None:
        self._history.append((self.drawn.clone(), self._by_hand.clone()))

    def _update(self) -> None:
        """Draw the current state in every view."""
        for canvas in self._canvases:
            canvas.frame = melody.HOP / self.rate
            canvas.detected, canvas.values = self.detected.tolist(), self.drawn.tolist()
            canvas.chords = [row.nonzero()[:, 0].tolist() for row in self._chords]
            canvas.chord_names = self._names


@cache
def _canvas_class() -> "type[AnyWidget]":
    """The widget drawn by melody_editor.js, defined on first use because both libraries are optional."""
    import anywidget
    import traitlets

    class Canvas(anywidget.AnyWidget):
        """Pitch class of each frame, now (`values`) and initially (`detected`); `frame` is in seconds.

        `chords` are the pitch classes of each frame in place of `values`, or empty.
        """

        _esm = Path(__file__).with_name("melody_editor.js")
        values = traitlets.List(traitlets.Int()).tag(sync=True)
        detected = traitlets.List(traitlets.Int()).tag(sync=True)
        chords = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
        chord_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
        names = traitlets.List(traitlets.Unicode()).tag(sync=True)
        frame = traitlets.Float().tag(sync=True)

    return Canvas
