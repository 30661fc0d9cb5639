"""Widgets for playback, live playback during generation, and recording.

Axes: C channels, N samples, n samples of a chunk.

    Player        a finished wave: waveform with cursor, click to seek, seam, loop, download
    Players       any HTML with static players, each with the same
    LivePlayer    a growing wave: chunks play back to back as they arrive
    Recorder      the microphone, as a wave in the kernel

Their browser side is `player.js` and `live.js`, embedded in the widget, so nothing is fetched. It needs the
package anywidget (in the `lab` extra and on Colab); without it, each is a plain HTML widget naming the
missing package. All are written to ipywidgets 7.7 and work on 8.

Every button has an equivalent in code: `LivePlayer.play()`, `LivePlayer.stop.set()`, `Recorder.wave = …`.
"""

import math
import threading
import time
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
from mgkit.lab import pages

Widget: Any
try:
    import anywidget

    Widget, LIVE = anywidget.AnyWidget, True
except ImportError:
    Widget, LIVE = ipywidgets.HTML, False

SCRIPT = pages.SCRIPT + Path(__file__).with_name("live.js").read_text(encoding="utf-8")
# Seconds of a live piece kept in memory.
HISTORY = 600.0
# Speed in multiples of real time: below it, music is buffered before playback. player.js has the same value.
MARGIN = 1.1
NEEDS = (
    "needs the package <code>anywidget</code>: <code>pip install anywidget</code>, then restart the kernel"
)


class Players(Widget):
    """HTML with static players (`html`, which may be assigned), each enhanced like `Player`.

    `on_played(name)` is called for each play of a named player (`pages.bare_player`) that lasted a second.
    """

    view = Unicode("players").tag(sync=True)
    html = Unicode().tag(sync=True)
    _esm = SCRIPT

    def __init__(self, html: str = "", on_played: Callable[[str], None] | None = None):
        super().__init__(html=html)
        self._on_played = on_played
        if LIVE:
            self.on_msg(self._on_browser)
        else:
            self.value = html
            self.observe(lambda change: setattr(self, "value", change.new), "html")

    def play(self) -> None:
        """Let the browser play the first player; it does so only on a page that was clicked."""
        self.send({"kind": "play"})

    def _on_browser(self, _widget: object, content: dict, _buffers: list[memoryview]) -> None:
        if content.get("kind") == "played" and self._on_played:
            self._on_played(str(content.get("name")))

    def __repr__(self) -> str:
        return type(self).__name__


class Player(Players):
    """Player of a finished wave: waveform with a moving cursor, click to seek, loop, download.

    As the output of a cell it is HTML with embedded script and audio, so it works without a kernel and in an
    exported page; in an untrusted notebook, where scripts are blocked, it is the browser's own player. Inside
    another widget (`VBox([player])`) it works too.
    """

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
        """Player of `wave` [C, N] at `rate` Hz; arguments and errors as in `figures.player`."""
        super().__init__(pages.player(wave, rate, title, seam, level, loop, manifest).html)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.html + pages.PAGE_SCRIPT}

    # Otherwise ipywidgets 7 shows the widget, which needs a kernel.
    _ipython_display_ = None


class LivePlayer(Widget):
    """Plays a wave during generation, chunks joined without gaps or clicks.

    With a source, Play starts a worker thread to generate the music, and Stop ends it:

        live = LivePlayer(model.sample_rate, model.audio_channels, seconds=30,
                          source=lambda stop: (wave[0] for wave in model.stream(["calm piano"], stop=stop)))

    Without a source, push chunks from any thread and mark the end:

        live = LivePlayer(32000)
        live.push(wave)
        live.finish()

    Playback starts once enough is buffered to continue without a stall, and the status line reports the wait.
    The slower the generation is than real time, the larger the part of `seconds` that must be buffered.

    With `starter`, the CSS class of a button elsewhere on the page, a click on that button lets the next
    piece play as it arrives, and the player has no Stop of its own: call `halt()`.

    The browser reports, in traits to `observe`: `started` (Play was pressed, and the piece has not ended),
    `played` (seconds), `underruns` (number of stalls), `discontinuities` (joins not exact to the
    sample), `context_rate` (sampling rate of the browser's audio, normally `rate`).
    """

    view = Unicode("live").tag(sync=True)
    rate = Int().tag(sync=True)
    channels = Int().tag(sync=True)
    seconds = Float().tag(sync=True)
    has_source = Bool().tag(sync=True)
    starter = Unicode().tag(sync=True)
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
        starter: str = "",
    ):
        """Player for chunks [C, n] with `channels` channels at `rate` Hz.

        `seconds` is the expected length of the piece, 0 if unknown. `source(stop)` yields the chunks of a new
        piece and returns soon after `stop` is set; its exceptions are shown in the widget.
        """
        audio.parse_rate(rate)
        if channels not in (1, 2):
            raise ValueError(f"channels is {channels!r}; it must be 1 or 2")
        super().__init__(
            rate=int(rate),
            channels=channels,
            seconds=float(seconds),
            has_source=source is not None,
            starter=starter,
        )
        self.stop = threading.Event()
        self._source, self._lock, self._piece = source, threading.RLock(), 0
        self._connected = False
        self._clear()
        self.on_msg(self._on_browser)
        if not LIVE:
            self.value = f"<p>The live player {NEEDS}. Until then the music appears when it is complete.</p>"

    # --- control -------------------------------------------------------------------------------------------

    def push(self, wave: Tensor | np.ndarray) -> None:
        """Append the chunk `wave` [C, n]. May be called from any thread.

        Raises: ValueError for another number of channels, and as `audio.as_wave`.
        """
        wave = audio.as_wave(wave)
        if len(wave) != self.channels:
            raise ValueError(f"the wave has {len(wave)} channels; this player expects {self.channels}")
        with self._lock:
            self._measure(wave.shape[-1] / self.rate)
            chunk = (self._pushed, (wave * 32768).round().clamp(-32768, 32767).short().cpu().numpy())
            self._chunks.append(chunk)
            self._pushed += wave.shape[-1]
            while self._pushed - self._chunks[0][0] > HISTORY * self.rate:
                self._chunks.popleft()
            self._send_chunk(chunk)

    def finish(self) -> None:
        """Mark the end of the piece: the browser plays the rest of its buffer."""
        with self._lock:
            self._finished = True
            self.send({"kind": "finish", "piece": self._piece})
            if not LIVE and self._chunks:
                self.value = pages.player(self.wave, self.rate).html

    def halt(self) -> None:
        """Silence the player."""
        self.send({"kind": "halt", "piece": self._piece})

    def reset(
        self, seconds: float | None = None, rate: int | None = None, channels: int | None = None
    ) -> None:
        """Start a new piece: set `stop` and replace it, drop the buffer, and zero the counters.

        The piece may have another length, rate and number of channels than the last one.
        """
        with self._lock:
            self.stop.set()
            self.stop = threading.Event()
            self._piece += 1
            self._clear()
            if seconds is not None:
                self.seconds = float(seconds)
            self.rate, self.channels = rate or self.rate, channels or self.channels
            self.message, self.played, self.underruns, self.discontinuities = "", 0.0, 0, 0
            head = {"kind": "reset", "piece": self._piece, "rate": self.rate, "channels": self.channels}
            self.send(head)

    def play(self) -> threading.Thread:
        """Start a new piece from the source, as Play does, and return its thread.

        A piece in progress is stopped first. Raises: ValueError without a source.
        """
        if self._source is None:
            raise ValueError("this player has no source: pass source=, or push waves to it")
        with self._lock:
            self.reset()
            thread = threading.Thread(target=self._work, args=(self.stop, self._piece), daemon=True)
        thread.start()
        return thread

    def pace(self, ahead: float) -> None:
        """Block the worker thread until fewer than `ahead` seconds are buffered, or `stop` is set.

        This bounds the delay between moving a slider and hearing the change. Returns immediately if no
        browser shows the player, as in a notebook executed without a reader, or if generation is barely
        faster than real time.
        """
        while self._connected and self.speed >= MARGIN and self.ahead > ahead and not self.stop.wait(0.05):
            pass
        # Waiting does not count as work.
        self._since = time.perf_counter()

    # --- state ---------------------------------------------------------------------------------------------

    @property
    def pushed(self) -> float:
        """Seconds pushed so far."""
        return self._pushed / self.rate

    @property
    def ahead(self) -> float:
        """Seconds pushed and not yet played."""
        return self.pushed - self.played

    @property
    def speed(self) -> float:
        """Recent seconds of music per second of work, without waiting; 0 until the second chunk."""
        return self._music / self._work_time if self._work_time else 0.0

    @property
    def wave(self) -> Tensor:
        """The piece so far, [C, N], or its last ten minutes."""
        with self._lock:
            parts = [torch.from_numpy(data).float() / 32768 for _, data in self._chunks]
        return torch.cat(parts, dim=-1) if parts else torch.zeros(self.channels, 0)

    def __repr__(self) -> str:
        return "LivePlayer: it needs a running kernel"

    # --- inside --------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        # Of each chunk, the position of its first sample, and its samples, int16 [C, n].
        self._chunks: deque[tuple[int, np.ndarray]] = deque()
        self._pushed, self._finished = 0, False
        self._music = self._work_time = 0.0
        # Time at which the work on the next chunk began, 0 if unknown.
        self._since = 0.0

    def _measure(self, seconds: float) -> None:
        """Count the time since the last chunk as work for `seconds` of music, in an exponential average."""
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
                    if self._piece != piece:
                        return
                    self.push(wave)
        # Nobody sees the traceback of a thread.
        except Exception as error:
            self.message = f"{type(error).__name__}: {error}"
        with self._lock:
            if self._piece == piece:
                self.finish()

    def _on_browser(self, _widget: object, content: dict, _buffers: list[memoryview]) -> None:
        kind = content.get("kind")
        if kind == "ready":
            with self._lock:
                self._connected = True
                played = self.played * self.rate
                rest = [chunk for chunk in self._chunks if chunk[0] + chunk[1].shape[-1] > played]
                start = rest[0][0] if rest else self._pushed
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
    """Records the microphone: `wave` is the recording [1, N] at `rate` Hz, None before the first.

        recorder = Recorder()
        recorder.observe(lambda change: print(change.new.shape), "wave")

    Browsers allow it on https and localhost only, after asking the reader; otherwise `message`, also shown in
    the widget, gives the reason. Gain, echo and noise are not processed.
    """

    view = Unicode("recorder").tag(sync=True)
    rate = Int().tag(sync=True)
    seconds = Float().tag(sync=True)
    message = Unicode().tag(sync=True)
    wave = AnyTrait(None)
    _esm = SCRIPT

    def __init__(self, rate: int = 32000, seconds: float = 30.0):
        """Recorder of at most `seconds` at `rate` Hz. Raises: ValueError for an invalid rate or length."""
        audio.parse_rate(rate)
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds is {seconds!r}; it must be a finite number greater than 0")
        super().__init__(rate=int(rate), seconds=float(seconds))
        self.on_msg(self._on_browser)
        if not LIVE:
            self.message = "Recording needs the package anywidget: upload a file instead."
            self.value = f"<p>Recording {NEEDS}. Or upload a file instead.</p>"

    def _on_browser(self, _widget: object, content: dict, buffers: list[memoryview]) -> None:
        if content.get("kind") == "recorded" and buffers:
            samples = np.frombuffer(buffers[0], dtype="<i2").astype(np.float32) / 32768
            if len(samples):
                self.wave = torch.from_numpy(samples)[None]

    def __repr__(self) -> str:
        return "Recorder: it needs a running kernel"
