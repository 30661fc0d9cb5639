"""The list of takes in the studio: cards with a player, and buttons for what can be done with a take.

    Take -> item (facts and envelope, about 2 kB) -> card -> sound, when it is played

The browser side is `takes.js`. Sounds are sent in binary and on demand, so a page with many takes is light.
"""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from traitlets import Bool, Dict, List, Unicode

from mgkit import audio
from mgkit.lab import pages
from mgkit.lab.drawing import envelope, to_samples
from mgkit.lab.player import LIVE, Widget
from mgkit.lab.takes import Take

SCRIPT = pages.SCRIPT + Path(__file__).with_name("takes.js").read_text(encoding="utf-8")
# Columns of a card's waveform.
COLUMNS = 400


def packed_envelope(wave: Tensor, columns: int = COLUMNS) -> str:
    """Minimum and maximum of `wave` [C, N] per column, relative to its peak, as int8 pairs in base64."""
    samples = to_samples(wave)
    low, high = envelope(samples.mean(axis=0), columns)
    peak = max(float(np.abs(low).max()), float(np.abs(high).max())) or 1.0
    pairs = np.stack([low, high], axis=1) / peak * 127
    return base64.b64encode(pairs.round().astype(np.int8).tobytes()).decode()


def _item(take: Take) -> dict:
    """What the browser needs of a take, apart from its sound."""
    return {
        "number": take.number,
        "name": take.name,
        "prompt": take.prompt or "no prompt",
        "starred": take.starred,
        "seconds": take.seconds,
        "seam": take.seam,
        "facts": take.facts,
        "code": take.code,
        "wave": packed_envelope(take.wave),
    }


class TakeCards(Widget):
    """Cards of takes, newest first. `on_action(kind, number, value)` is called for each click.

    Kinds: star, rename, continue, melody, more, delete, undo, start_over, download, download_all.
    """

    items = List(Dict()).tag(sync=True)
    # What undo would bring back, in words.
    undo = Unicode().tag(sync=True)
    busy = Bool(False).tag(sync=True)
    # CSS class of the buttons that start a run, for a LivePlayer.
    starter = Unicode().tag(sync=True)
    has_melody = Bool(True).tag(sync=True)
    _esm = SCRIPT

    def __init__(self, on_action: Callable[[str, int, str], None], starter: str = ""):
        super().__init__(starter=starter)
        self._on_action = on_action
        self._takes: dict[int, Take] = {}
        self.on_msg(self._on_browser)

    def show(self, takes: Sequence[Take]) -> None:
        """Show these takes."""
        self._takes = {take.number: take for take in takes}
        self.items = [_item(take) for take in takes]
        if not LIVE:
            newest_first = "".join(f"{take.player().html}<br>" for take in reversed(takes))
            self.value = f"<div>{newest_first}</div>"

    def send_file(self, name: str, content: bytes) -> None:
        """Let the browser save a file."""
        self.send({"kind": "file", "name": name}, [content])

    def _on_browser(self, _widget: object, content: dict, _buffers: list[memoryview]) -> None:
        kind, number = str(content.get("kind")), int(content.get("number") or 0)
        if kind != "sound":
            self._on_action(kind, number, str(content.get("value") or ""))
        elif take := self._takes.get(number):
            flac = audio.encode(take.wave.clamp(-1, 1), take.rate, ".flac")
            self.send({"kind": "sound", "number": number}, [flac])

    def __repr__(self) -> str:
        return "TakeCards: it needs a running kernel"
