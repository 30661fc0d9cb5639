"""Widgets that play, also while the music is still being made, and that record.

Letters: C channels, N samples, n samples of a chunk.

    Player        a finished wave: picture with a cursor, click to seek, seam, loop, download
    LivePlayer    a wave that grows: chunks are played back to back as they come
    Recorder      the microphone, as a wave in the kernel

Their other half is `player.js`, which travels inside the widget: nothing is fetched from anywhere. It needs the
package anywidget (the `lab` extra has it, Colab has it); where that is missing each is a plain HTML widget that says
in one sentence what it cannot do. All are written to ipywidgets 7.7, and work on 8.

Every button has a call that does the same: `LivePlayer.play()` and `LivePlayer.stop.set()`, `Recorder.wave = ...`.
"""

import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import torch
from torch import Tensor
from traitlets import Any as AnyTrait
from traitlets import Bool, Float, Int, Unicode

from mgkit import audio
from mgkit.lab import figures

Widget: Any
try:
    import anywidget

    Widget, LIVE = anywidget.AnyWidget, True
except ImportError:  # then a widget is a piece of HTML
    Widget, LIVE = ipywidgets.HTML, False

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
KEPT = 600.0  # seconds of a live piece that are kept; endless music would fill the memory
SPARE = 1.1  # times real time: a machine slower than this must collect before it plays; player.js has it too
NEEDS = "needs the package <code>anywidget</code> here: <code>pip install anywidget</code>, then restart the kernel"


class Player(Widget):
    """A finished wave to listen to: its picture with a moving cursor; click to seek; loop; download.

    As the output of a cell it is HTML with its script and sound inside, so it goes on working without a kernel and in
    an exported page; where scripts are not allowed (a notebook not yet trusted) it is the plain player of `show`.
    Inside another widget (`VBox([player])`) it is the same.
    """

    view = Unicode("player").tag(sync=True)
    html = Unicode().tag(sync=True)
    _esm = SCRIPT

    def __init__(
        self,
        wave: Tensor | np.ndarray,
        rate: int,
        title: str = "",
        seam: float | None = None,
        level: float | None = None,
        loop: bool = False,
        manifest: dict | None = None,
    ):
        """Plays `wave` [C, N] at `rate` Hz. The arguments and errors are those of `figures.player`."""
        plain = figures.player(wave, rate, title, seam, level, loop, manifest).html
        name = "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")[:60] or "mgkit"
        super().__init__(html=f'<div class="mgkit" data-file="{name}.flac">{plain}</div>')
        if not LIVE:
            self.value = self.html

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        mark = uuid.uuid4().hex  # the same notebook may show several, and the same one twice
        page = self.html.replace('class="mgkit"', f'class="mgkit" id="mgkit-{mark}"', 1)
        return {
            "text/plain": repr(self),
            "text/html": f'{page}<script type="module">{SCRIPT}\nenhanceWhenShown("mgkit-{mark}");</script>',
        }

    _ipython_display_ = None  # ipywidgets 7 would show the widget, which needs a kernel

    def __repr__(self) -> str:
        return "Player"


class LivePlayer(Widget):
    """Plays a wave while it is made, with no gap and no click between its chunks.

    With a source, Play makes the music in a worker thread, and Stop ends it:

        live = LivePlayer(model.sample_rate, model.audio_channels, seconds=30,
                          source=lambda stop: (wave[0] for wave in model.stream(["calm piano"], stop=stop)))

    Without one, push what you make, from any thread, and say when it ends:

        live = LivePlayer(32000)
        live.push(wave)
        live.finish()

    The browser starts once enough is there to play on without a pause, and says what it waits for: where this machine
    makes music slower than it plays, that is the part of `seconds` it would fall behind.

    What the browser tells back, as traits to `observe`: `started` (Play was pressed and the piece has not ended),
    `played` (seconds heard), `underruns` (how often it ran out of music), `discontinuities` (joins that were not exact
    to the sample), `context_rate` (samples a second of the browser's audio; `rate`, or joins would click).
    """

    view = Unicode("live").tag(sync=True)
    rate = Int().tag(sync=True)
    channels = Int().tag(sync=True)
    seconds = Float().tag(sync=True)
    sourced = Bool().tag(sync=True)
    started = Bool(False).tag(sync=True)
    played = Float(0.0).tag(sync=True)
    underruns = Int(0).tag(sync=True)
    discontinuities = Int(0).tag(sync=True)
    context_rate = Float(0.0).tag(sync=True)
    message = Unicode().tag(sync=True)
    _esm = SCRIPT

    def __init__(
        self,
        rate: int,
        channels: int = 1,
        seconds: float = 0.0,
        source: Callable[[threading.Event], Iterable[Tensor]] | None = None,
    ):
        """A player of waves [C, n] with `channels` channels at `rate` Hz.

        `seconds` is how long the piece will be, 0 where nobody knows. `source(stop)` yields the waves of a new piece
        and ends soon after `stop` is set; an exception in it is shown in the widget and raised by nobody.
        """
        audio.check_rate(rate)
        if channels not in (1, 2):
            raise ValueError(f"channels is {channels!r}; it must be 1 or 2")
        super().__init__(
            rate=int(rate), channels=channels, seconds=float(seconds), sourced=source is not None
        )
        self.stop = threading.Event()
        self._source, self._lock, self._piece = source, threading.RLock(), 0
        self._connected = False
        self._clear()
        self.on_msg(self._on_browser)
        if not LIVE:
            self.value = f"<p>The live player {NEEDS}. Until then the music appears when it is finished.</p>"

    # --- from the kernel ----------------------------------------------------------------------------------------

    def push(self, wave: Tensor | np.ndarray) -> None:
        """Adds `wave` [C, n] to the end; may be called from any thread.

        Errors: ValueError for another number of channels, and those of `audio.check`.
        """
        wave = audio.check(wave)
        if len(wave) != self.channels:
            raise ValueError(f"the wave has {len(wave)} channels; this player has {self.channels}")
        with self._lock:
            self._measure(wave.shape[-1] / self.rate)
            chunk = (self._made, (wave * 32768).round().clamp(-32768, 32767).short().cpu().numpy())
            self._chunks.append(chunk)
            self._made += wave.shape[-1]
            while self._made - self._chunks[0][0] > KEPT * self.rate:
                self._chunks.popleft()
            self._send_chunk(chunk)

    def finish(self) -> None:
        """Says that nothing will follow: the browser plays what it has to the end."""
        with self._lock:
            self._finished = True
            self.send({"kind": "finish", "piece": self._piece})
            if not LIVE and self._chunks:
                self.value = figures.player(self.wave, self.rate).html

    def reset(self, seconds: float | None = None) -> None:
        """Begins a new piece: what was not heard yet is dropped, counters are 0, and `stop` is a new event, the old one set."""
        with self._lock:
            self.stop.set()
            self.stop = threading.Event()
            self._piece += 1
            self._clear()
            if seconds is not None:
                self.seconds = float(seconds)
            self.message, self.played, self.underruns, self.discontinuities = "", 0.0, 0, 0
            self.send({"kind": "reset", "piece": self._piece})

    def play(self) -> threading.Thread:
        """What pressing Play does: a new piece from the source, in a thread that is returned.

        A piece that still runs is stopped first. Errors: ValueError where there is no source.
        """
        if self._source is None:
            raise ValueError("this player has no source: give it one, or push waves to it")
        with self._lock:
            self.reset()
            thread = threading.Thread(target=self._work, args=(self.stop, self._piece), daemon=True)
        thread.start()
        return thread

    def pace(self, ahead: float) -> None:
        """Waits, in a worker thread, until fewer than `ahead` seconds are left to play, or `stop` is set.

        So sliders are heard soon: without it a quick machine would be minutes ahead of what is heard. Returns at once
        where no browser shows the player, as in a notebook that runs without a reader, and on a machine that has
        nothing to spare.
        """
        while self._connected and self.speed >= SPARE and self.ahead > ahead and not self.stop.wait(0.05):
            pass
        self._since = time.perf_counter()  # waiting is not work

    # --- what is known ------------------------------------------------------------------------------------------

    @property
    def made(self) -> float:
        """Seconds pushed so far."""
        return self._made / self.rate

    @property
    def ahead(self) -> float:
        """Seconds pushed and not yet heard."""
        return self.made - self.played

    @property
    def speed(self) -> float:
        """Seconds of music made in a second, of late and without the waiting; 0 until the second chunk."""
        return self._music / self._work_time if self._work_time else 0.0

    @property
    def wave(self) -> Tensor:
        """What was pushed, [C, N]: at most the last ten minutes."""
        with self._lock:
            parts = [torch.from_numpy(data).float() / 32768 for _, data in self._chunks]
        return torch.cat(parts, dim=-1) if parts else torch.zeros(self.channels, 0)

    def __repr__(self) -> str:
        return "LivePlayer: it plays where the kernel runs"

    # --- inside -------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._chunks: deque[tuple[int, np.ndarray]] = (
            deque()
        )  # where each starts, in samples, and int16 [C, n]
        self._made, self._finished = 0, False
        self._music = self._work_time = 0.0
        self._since = 0.0  # when the work on the next chunk began; 0 where nobody knows

    def _measure(self, seconds: float) -> None:
        """Takes the time since the chunk before as the work for these `seconds` of music; older ones fade."""
        now = time.perf_counter()
        if self._since:
            self._music = 0.9 * self._music + seconds
            self._work_time = 0.9 * self._work_time + now - self._since
        self._since = now

    def _send_chunk(self, chunk: tuple[int, np.ndarray]) -> None:
        start, data = chunk
        head = {"kind": "chunk", "piece": self._piece, "start": start, "speed": self.speed}
        self.send(head, [data.astype("<i2").tobytes()])

    def _work(self, stop: threading.Event, piece: int) -> None:
        assert self._source is not None
        try:
            for wave in self._source(stop):
                with self._lock:
                    if self._piece != piece:  # somebody has begun another
                        return
                    self.push(wave)
        except Exception as error:  # nobody reads a thread's traceback
            self.message = f"{type(error).__name__}: {error}"
        with self._lock:
            if self._piece == piece:
                self.finish()

    def _on_browser(self, _widget: Any, content: dict, _buffers: list) -> None:
        kind = content.get("kind")
        if kind == "ready":
            with self._lock:
                self._connected = True
                heard = self.played * self.rate
                rest = [chunk for chunk in self._chunks if chunk[0] + chunk[1].shape[-1] > heard]
                start = rest[0][0] if rest else self._made
                self.send({"kind": "from", "piece": self._piece, "start": start})
                for chunk in rest:
                    self._send_chunk(chunk)
                if self._finished:
                    self.send({"kind": "finish", "piece": self._piece})
        elif kind == "play" and self._source is not None:
            self.play()
        elif kind == "stop" and content.get("piece") == self._piece:
            self.stop.set()


class Recorder(Widget):
    """Records the microphone: `wave` is then what was heard, a tensor [1, N] at `rate` Hz, and None before.

        recorder = Recorder()
        recorder.observe(lambda change: print(change.new.shape), "wave")

    Browsers allow it on https and on localhost only, and ask the reader first; where it cannot be, `message` (also in
    the widget) says why in a sentence. Level, echo and noise are left as they are.
    """

    view = Unicode("recorder").tag(sync=True)
    rate = Int().tag(sync=True)
    seconds = Float().tag(sync=True)
    message = Unicode().tag(sync=True)
    wave = AnyTrait(None)
    _esm = SCRIPT

    def __init__(self, rate: int = 32000, seconds: float = 30.0):
        """A recorder of at most `seconds` seconds at `rate` Hz. Errors: ValueError for what is no rate or length."""
        audio.check_rate(rate)
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds is {seconds!r}; it must be a number of seconds over 0")
        super().__init__(rate=int(rate), seconds=float(seconds))
        self.on_msg(self._on_browser)
        if not LIVE:
            self.message = "Recording needs the package anywidget: upload a file instead."
            self.value = f"<p>Recording {NEEDS}. Or upload a file instead.</p>"

    def _on_browser(self, _widget: Any, content: dict, buffers: list) -> None:
        if content.get("kind") == "recorded" and buffers:
            samples = np.frombuffer(buffers[0], dtype="<i2").astype(np.float32) / 32768
            if len(samples):
                self.wave = torch.from_numpy(samples)[None]

    def __repr__(self) -> str:
        return "Recorder: it records where the kernel runs"
