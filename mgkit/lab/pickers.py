"""Widgets for choosing audio: an upload, and the part of a recording that is given to the model.

    Uploader      file -> (browser: size, decoding if the kernel cannot) -> parts -> kernel -> on_file
    Trimmer       recording -> player with two handles -> `given` seconds before `end`

Their browser side is `pickers.js`.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from traitlets import Float, Int, Unicode

from mgkit import audio
from mgkit.lab import pages
from mgkit.lab.cards import packed_envelope
from mgkit.lab.player import Widget

SCRIPT = pages.SCRIPT + Path(__file__).with_name("pickers.js").read_text(encoding="utf-8")
# Bytes of the largest file.
LIMIT = 100 * 2**20
# Share of the peak below which the end of a recording is silent (-40 dB).
QUIET = 0.01


def audible(wave: Tensor, rate: int) -> float:
    """Seconds of `wave` [C, N] before its silent end: below 1 % of its peak."""
    loud = (wave.abs().amax(dim=0) > QUIET * wave.abs().max()).nonzero()
    return (int(loud[-1]) + 1 if len(loud) else wave.shape[-1]) / rate


class Uploader(Widget):
    """Button for a file of at most `limit` bytes, which may also be dropped on it.

    A file is sent in parts, so it may be larger than a server's largest message. `on_file(name, content)`
    returns False if the kernel cannot read the content; then the browser decodes it, and sends a WAV file.
    `on_problem(message)` is called for a file that is too large, or that neither of them can read.
    """

    view = Unicode("uploader").tag(sync=True)
    limit = Int().tag(sync=True)
    _esm = SCRIPT

    def __init__(
        self,
        on_file: Callable[[str, bytes], bool],
        on_problem: Callable[[str], None],
        limit: int = LIMIT,
    ):
        super().__init__(limit=limit)
        self._on_file, self._on_problem = on_file, on_problem
        self._parts: list[bytes] = []
        self.on_msg(self._on_browser)

    def _on_browser(self, _widget: object, content: dict, buffers: list[memoryview]) -> None:
        kind, name = content.get("kind"), str(content.get("name") or "")
        if kind == "problem":
            self._on_problem(str(content.get("message")))
        elif kind == "part" and buffers:
            if not content.get("index"):
                self._parts = []
            self._parts.append(bytes(buffers[0]))
            if sum(map(len, self._parts)) > self.limit:
                # Only a page other than ours gets here.
                self._parts = []
            elif content.get("last"):
                parts, self._parts = b"".join(self._parts), []
                if self._on_file(name, parts):
                    self.send({"kind": "done"})
                else:
                    self.send({"kind": "unreadable"})
            else:
                self.send({"kind": "next"})

    def __repr__(self) -> str:
        return "Uploader: it needs a running kernel"


class Trimmer(Widget):
    """Player of a recording with two handles: `given` seconds before `end` are the audio prompt."""

    view = Unicode("trimmer").tag(sync=True)
    name = Unicode().tag(sync=True)
    wave = Unicode().tag(sync=True)
    seconds = Float().tag(sync=True)
    given = Float().tag(sync=True)
    end = Float().tag(sync=True)
    _esm = SCRIPT

    def __init__(self) -> None:
        super().__init__()
        self._sound: tuple[Tensor, int] | None = None
        self.on_msg(self._on_browser)

    def show(self, name: str, wave: Tensor, rate: int, given: float) -> None:
        """Show `wave` [C, N] with the handles around the last `given` seconds of sound."""
        self._sound = (wave, rate)
        end = audible(wave, rate)
        with self.hold_trait_notifications():
            self.name, self.seconds, self.end = name, wave.shape[-1] / rate, end
            self.given, self.wave = min(given, end), packed_envelope(wave)

    def clear(self) -> None:
        """Show nothing."""
        self._sound, self.wave = None, ""

    def _on_browser(self, _widget: object, content: dict, _buffers: list[memoryview]) -> None:
        if content.get("kind") == "sound" and self._sound:
            wave, rate = self._sound
            self.send({"kind": "sound"}, [audio.encode(wave.clamp(-1, 1), int(rate), ".flac")])

    def __repr__(self) -> str:
        return "Trimmer: it needs a running kernel"
