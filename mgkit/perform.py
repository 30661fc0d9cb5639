"""From a request to tokens and sound: the conditions of each window, whole pieces, streams and live sessions.

Letters: B batch, C channels, K codebooks, T frames, N samples, D width, F chroma frames.

    Request -> window_conditions -> frames [B, K] -> tokens [B, K, T]
                                                  -> chunks of tokens -> codec -> waves [B, C, n], as they come
"""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count

import torch
from torch import Tensor

from mgkit.checkpoint import Model
from mgkit.condition import Conditioner
from mgkit.generate import DAY, Guidance, Settings, Stop, Window, count_steps, endless, frames
from mgkit.lm import Condition
from mgkit.manifest import manifests
from mgkit.prompts import Mix, Prompt, parse_prompt, prompt_at
from mgkit.request import Request, plan_windows, stride_frames, window_chroma

OnStep = Callable[[int, int], None]
"""Called after each step with the steps done and the steps of the whole piece."""

TEXTS_KEPT = 64  # encoded texts that a live session keeps beside those in use


# --- conditions of a window ---------------------------------------------------------------------------------------


@torch.no_grad()
def encode_request(model: Model, request: Request) -> dict[str, Tensor]:
    """The vectors [L, D] of all texts of a request."""
    vectors: dict[str, Tensor] = {}
    texts = [text for timeline in request.texts for _, mix in timeline for text in mix]
    encode_texts(model.conditioner, [*texts, *filter(None, request.negative)], vectors)
    return vectors


@torch.no_grad()
def window_conditions(model: Model, request: Request, window: Window, vectors: dict[str, Tensor]) -> Guidance:
    """The conditions of one window: its prompts and, unless it changes nothing, the null condition.

    `vectors` holds encoded texts from one window to the next.
    """
    now = window.start + window.known
    texts, weights = mix_columns([prompt_at(timeline, now, model.frame_rate) for timeline in request.texts])
    negatives = request.negative if any(request.negative) else []
    encode_texts(model.conditioner, [*chain(*texts), *negatives], vectors)
    columns = [[vectors[text] for text in column] for column in texts]
    chroma = request.chroma.get(window.start)
    if chroma is None and not negatives and not any(chain(*texts)):
        return Guidance([model.conditioner(columns[0])])  # the null condition would be the same
    negative = model.conditioner([vectors[text] for text in negatives]) if negatives else None
    return guidance(model.conditioner, columns, weights, chroma, negative, request.settings)


def mix_columns(mixes: Sequence[Mix]) -> tuple[list[list[str]], list[list[float]]]:
    """The mixes of B samples as n texts [n, B] and weights [n, B]; a shorter mix repeats its first text at weight 0.

    >>> mix_columns([{"calm": 1.0}, {"calm": 0.5, "fast": 0.5}])
    ([['calm', 'calm'], ['calm', 'fast']], [[1.0, 0.5], [0.0, 0.5]])
    """
    rows = [list(mix.items()) for mix in mixes]
    longest = max(len(row) for row in rows)
    padded = [row + [(row[0][0], 0.0)] * (longest - len(row)) for row in rows]
    columns = list(zip(*padded, strict=True))
    return [[text for text, _ in column] for column in columns], [
        [w for _, w in column] for column in columns
    ]


def encode_texts(conditioner: Conditioner, texts: Sequence[str], vectors: dict[str, Tensor]) -> None:
    """Adds the vectors [L, D] of new texts, each encoded alone, independent of its neighbours.

    Of the other texts, the most recent stay.
    """
    for text in list(vectors)[:-TEXTS_KEPT]:
        if text not in texts:
            del vectors[text]
    for text in texts:
        if text not in vectors:
            [vectors[text]] = conditioner.encode([text])


def guidance(
    conditioner: Conditioner,
    columns: Sequence[list[Tensor]],
    weights: Sequence[Sequence[float]],
    chroma: Tensor | None,
    negative: Condition | None,
    settings: Settings,
) -> Guidance:
    """The streams of guidance: one condition for each column of encoded texts, the melody alone if needed, and null."""
    prompts = [conditioner(column, chroma) for column in columns]
    single = len(columns) == 1 and all(weight == 1 for weight in weights[0])
    if single and settings.cfg_coef == 1 and settings.cfg_coef_beta is None:
        return Guidance(prompts)
    mixed = None if single else torch.tensor(weights, device=columns[0][0].device)
    null = conditioner.null(columns[0]) if negative is None else negative
    if settings.cfg_coef_beta is None:
        return Guidance([*prompts, null], mixed)
    melody_alone = conditioner([torch.zeros_like(text) for text in columns[0]], chroma)
    return Guidance([*prompts, melody_alone, null], mixed)


# --- whole pieces -------------------------------------------------------------------------------------------------


def request_frames(
    model: Model, request: Request, on_step: OnStep | None = None, stop: Stop | None = None
) -> Iterator[Tensor]:
    """Yields the new frames [B, K] of the request; samples with different windows run side by side, independently."""
    groups: dict[tuple[Window, ...], list[int]] = {}
    for i, own in enumerate(request.plans):
        groups.setdefault(tuple(own), []).append(i)
    vectors = encode_request(model, request)  # now: a text too long is refused before the first step
    total, done = sum(count_steps(model.lm, plan) for plan in groups), count(1)
    step = on_step and (lambda *_: on_step(next(done), total))
    parts = []
    for plan, rows in groups.items():
        part = request.rows(rows)
        conditions = partial(window_conditions, model, part, vectors=vectors)
        generators = [torch.Generator().manual_seed(seed) for seed in part.seeds]
        parts.append(
            frames(model.lm, conditions, part.audio_prompt, plan, part.settings, generators, step, stop)
        )
    order = torch.tensor(list(chain(*groups.values()))).argsort()
    # After a stop, some groups are one frame ahead of others: zip ends with the shortest.
    return (torch.cat(group)[order] for group in zip(*parts, strict=False))


@torch.no_grad()
def decode(model: Model, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yields the sound [B, C, n] of chunks of tokens, as they come."""
    yield from model.codec.decode_stream(chunks, model.channels)


class Session(Iterator[Tensor]):
    """An iterator of waves over a generator."""

    _waves: Generator[Tensor]

    def __next__(self) -> Tensor:
        return next(self._waves)

    def close(self) -> None:
        """End the music; `tokens` and `manifests` keep what was generated."""
        self._waves.close()


class Stream(Session):
    """The music of a request while it is generated: an iterator of waves [B, C, n], `chunk` frames at a time.

    `tokens` and `manifests` describe the music so far.
    """

    def __init__(self, model: Model, request: Request, chunk: int, on_step: OnStep | None, stop: Stop | None):
        self.model, self.request, self.chunk = model, request, chunk
        self._codes = [request.audio_prompt]
        self._waves = self._play(request_frames(model, request, on_step, stop))

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
            say_stopped(self.model, self.request, self.tokens)
            with torch.no_grad():
                rest = self.model.codec.decode(self.tokens, self.model.channels)[..., sent:]
            if rest.shape[-1]:
                yield rest

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
        self.replayable, self.end = True, 0  # within a day; frames at the end of the current window
        self._ask, self._melodies, self._vectors = ask, melodies, encode_request(model, request)
        self._codes = [request.audio_prompt.cpu().short()]
        self._waves = self._play(stop)

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
        self.end = window.end
        if window.end > DAY * self.model.frame_rate:
            self.replayable = False
            self._codes = [self._codes[0][..., :0]]
            self.chroma.clear()
            del self.timeline[:-1]
        if self._melodies is not None:
            self.chroma[window.start] = window_chroma(self.model, self._melodies, window.start, True)
        return window_conditions(self.model, self._current, window, self._vectors)

    def _play(self, stop: Stop | None) -> Generator[Tensor]:
        try:
            yield from decode(self.model, self._chunks(stop))
        except KeyboardInterrupt:
            print("stopped; the music so far is kept", file=sys.stderr)

    def _chunks(self, stop: Stop | None) -> Iterator[Tensor]:
        model, settings = self.model, self.request.settings
        window, stride = model.window_frames, stride_frames(model, settings)
        generators = [torch.Generator().manual_seed(seed) for seed in self.request.seeds]
        frames = endless(
            model.lm, self._conditions, self._changed, window, stride, settings, generators, stop
        )
        held: list[Tensor] = []
        try:
            for frame in frames:
                held.append(frame)
                if len(held) == self.chunk:
                    yield self._keep(held)
                    held = []
        except KeyboardInterrupt:
            print("stopped; the music so far is kept", file=sys.stderr)
        if held:
            yield self._keep(held)

    def _keep(self, held: list[Tensor]) -> Tensor:
        codes = torch.stack(held, dim=-1)
        if self.replayable:
            self._codes.append(codes.cpu().short())
        return codes


def say_stopped(model: Model, request: Request, tokens: Tensor) -> None:
    """Report the progress of an interrupted run."""
    seconds, total = tokens.shape[-1] / model.frame_rate, request.plans[0][-1].end / model.frame_rate
    print(f"stopped after {seconds:g} of {total:g} s; the music so far is kept", file=sys.stderr)
