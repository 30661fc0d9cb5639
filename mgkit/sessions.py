"""Sessions: music as an iterator. A stream has an end; a live session has none, and its prompt may change.

Axes: B batch, C channels, K codebooks, T frames.

    frames [B, K], one after another -> chunks of tokens [B, K, t] -> decoder -> waves [B, C, n]
"""

import math
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from numbers import Real

import torch
from torch import Tensor

from mgkit.brief import brief
from mgkit.checkpoint import Model
from mgkit.generate import Guidance, Stop, Window, endless
from mgkit.interrupt import CtrlC
from mgkit.manifest import manifests
from mgkit.perform import (
    OnStep,
    decode,
    decode_whole,
    encode_request,
    request_frames,
    say_stopped,
    window_conditions,
)
from mgkit.prompts import Prompt, parse_prompt
from mgkit.request import Request, plan_windows, stride_frames, window_chroma
from mgkit.settings import DAY


def chunk_frames(model: Model, seconds: float) -> int:
    """Frames of a chunk of `seconds`, at least one.

    Raises:
        ValueError: not a number of seconds above 0.
    """
    if not isinstance(seconds, Real) or not 0 < seconds < math.inf:
        raise ValueError(f"chunk_seconds is {brief(seconds)}; it must be a number of seconds above 0")
    return max(1, round(seconds * model.frame_rate))


class Session(Iterator[Tensor]):
    """An iterator of waves over a generator. On Ctrl-C it yields the rest of the music so far, and ends."""

    _waves: Generator[Tensor]
    _stop: CtrlC

    def __next__(self) -> Tensor:
        before = self._stop.pressed
        # Not in the generator: at a yield the caller's code runs, and Ctrl-C there is the caller's.
        with self._stop:
            try:
                return next(self._waves)
            finally:
                if self._stop.pressed and not before:
                    self._say_stopped()

    def _say_stopped(self) -> None:
        print("stopped; the music so far is kept", file=sys.stderr)

    def close(self) -> None:
        """End the music; `tokens` and `manifests` keep what was generated."""
        self._waves.close()


class Stream(Session):
    """The music of a request while it is generated: an iterator of waves [B, C, n], `chunk` frames at a time.

    `tokens` and `manifests` describe the music so far.
    """

    def __init__(self, model: Model, request: Request, chunk: int, on_step: OnStep | None, stop: Stop | None):
        self.model, self.request, self.chunk = model, request, chunk
        self._codes, self._stop = [request.audio_prompt], CtrlC(stop)
        self._waves = self._play(request_frames(model, request, on_step, self._stop))

    @property
    def tokens(self) -> Tensor:
        """Tokens [B, K, T] so far, the audio prompt included."""
        return torch.cat(self._codes, dim=-1)

    @property
    def manifests(self) -> list[dict]:
        """A manifest for each sample, for `replay`."""
        return manifests(self.model, self.request, self.tokens)

    def _play(self, frames: Iterator[Tensor]) -> Generator[Tensor]:
        sent = 0
        try:
            for wave in decode(self.model, self._chunks(frames)):
                sent += wave.shape[-1]
                yield wave
        except KeyboardInterrupt:
            self._say_stopped()
            rest = decode_whole(self.model, self.tokens)[..., sent:]
            if rest.shape[-1]:
                yield rest

    def _say_stopped(self) -> None:
        say_stopped(self.model, self.request, self.tokens)

    def _chunks(self, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        if self.request.audio_prompt.shape[-1]:
            yield self.request.audio_prompt
        held: list[Tensor] = []
        for frame in frames:
            self._codes.append(frame[..., None])
            held.append(frame)
            if len(held) == self.chunk:
                yield torch.stack(held, dim=-1)
                held = []
        if held:
            yield torch.stack(held, dim=-1)


class LiveSession(Session):
    """Endless music under a changing prompt: an iterator of waves [1, C, n], `chunk` frames at a time.

    Before each chunk, `ask` gives the prompt. The session keeps its timeline and, for a day, its tokens, for
    `manifests`.
    """

    def __init__(
        self,
        model: Model,
        request: Request,
        ask: Callable[[], Prompt],
        melodies: list[Tensor | None] | None,
        chunk: int,
        stop: Stop | None,
    ):
        self.model, self.request, self.chunk = model, request, chunk
        self.timeline, self.chroma = list(request.texts[0]), dict[int, Tensor]()
        self.replayable = True  # for a day
        self.end = 0  # of the current window, in frames
        self._ask, self._melodies, self._vectors = ask, melodies, encode_request(model, request)
        self._codes, self._stop = [request.audio_prompt.cpu().short()], CtrlC(stop)
        self._waves = self._play(self._stop)

    @property
    def tokens(self) -> Tensor:
        """Tokens [1, K, T] so far; empty once a day has passed."""
        return torch.cat(self._codes, dim=-1).long()

    @property
    def manifests(self) -> list[dict]:
        """The manifest of the music so far, as a timeline; none before the first window or after a day."""
        if not self.replayable or not self.end:
            return []
        settings = replace(self.request.settings, duration=self.end / self.model.frame_rate)
        plan = plan_windows(self.model, settings, 0, self.timeline)
        return manifests(self.model, replace(self._current, settings=settings, plans=[plan]), self.tokens)

    @property
    def _current(self) -> Request:
        return replace(self.request, texts=[self.timeline], chroma=self.chroma)

    def _changed(self, frame: int) -> bool:
        """Whether another prompt begins at this frame; asks at the start of each chunk."""
        if frame % self.chunk:
            return False
        mix = parse_prompt(self._ask())
        if mix == self.timeline[-1][1]:
            return False
        self.timeline.append((frame / self.model.frame_rate, mix))
        return True

    def _conditions(self, window: Window) -> Guidance:
        """The conditions of the next window; what `manifests` needs is updated, or dropped after a day."""
        self.end = window.end
        if window.end > DAY * self.model.frame_rate:
            self.replayable = False
            self._codes = [self._codes[0][..., :0]]
            self.chroma.clear()
            del self.timeline[:-1]
        if self._melodies is not None:
            self.chroma[window.start] = window_chroma(self.model, self._melodies, window.start, True)
        return window_conditions(self.model, self._current, window, self._vectors)

    def _play(self, stop: Stop) -> Generator[Tensor]:
        try:
            yield from decode(self.model, self._chunks(stop))
        except KeyboardInterrupt:
            self._say_stopped()

    def _chunks(self, stop: Stop) -> Iterator[Tensor]:
        model, settings = self.model, self.request.settings
        window, stride = model.window_frames, stride_frames(model, settings)
        generators = [torch.Generator().manual_seed(seed) for seed in self.request.seeds]
        how = (settings, generators, stop, self.request.interventions)
        frames = endless(model.lm, self._conditions, self._changed, window, stride, *how)
        held: list[Tensor] = []
        try:
            for frame in frames:
                held.append(frame)
                if len(held) == self.chunk:
                    yield self._keep(held)
                    held = []
        except KeyboardInterrupt:
            self._say_stopped()
        if held:
            yield self._keep(held)

    def _keep(self, held: list[Tensor]) -> Tensor:
        codes = torch.stack(held, dim=-1)
        if self.replayable:
            self._codes.append(codes.cpu().short())
        return codes
