"""From conditions to codes: window after window, step after step, frame after frame.

Axes: B batch, K codebooks, T frames, S delayed steps, V codebook size.

A model is trained on windows of 30 s (nano: 10 s). Longer music is generated in overlapping windows: each
starts `stride` after the previous one and continues the frames they share (arXiv:2306.05284, section 3).

    0 s          18 s    30 s            48 s
    |--- new -----------|                              positions in a window start at 0,
                 |prompt|---- new ------|              and the melody is rotated to its start
                                |prompt |--- new ...
If the text changes, the current window ends there and the next one continues the music under the new text.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.condition import cat
from mgkit.delay import delay, delays, undelay
from mgkit.interventions import NONE, Interventions
from mgkit.lm import LM, Condition
from mgkit.sampling import draw, guide, guide_double, mix, noise, probabilities
from mgkit.schedule import value_at
from mgkit.settings import Settings
from mgkit.steps import UNKNOWN, Steps
from mgkit.threads import using

MANY = 4  # samples whose noise is drawn in several threads


class Window(NamedTuple):
    """Frames start..end of the piece, the first `known` of them known when the window begins.

    It stops before `end` at the frame where the next window takes over, its `start` + `known`.
    """

    start: int
    known: int
    end: int


def windows(total: int, prompt: int, window: int, stride: int, changes: Iterable[int] = ()) -> list[Window]:
    """The windows of a piece, from its audio prompt of `prompt` frames to `total` frames.

    The next window takes over when one is full, and at the frames of `changes`, where the condition changes.
    It begins with the last `window` - `stride` frames before that, or with all if there are fewer.

    >>> windows(3000, 0, window=1500, stride=900)[1:]
    [Window(start=900, known=600, end=2400), Window(start=1800, known=600, end=3000)]
    >>> windows(1200, 0, window=1500, stride=900, changes=[700])
    [Window(start=0, known=0, end=1200), Window(start=100, known=600, end=1200)]
    """
    cuts = sorted({total, *(frame for frame in changes if prompt < frame < total)})
    plan: list[Window] = []
    start, done = 0, prompt
    while done < total:
        if done - start >= window or plan and done < plan[-1].end:
            start = max(start, done - (window - stride))
        end = min(start + window, total)
        plan.append(Window(start, done - start, end))
        done = min(end, cuts[bisect_right(cuts, done)])
    return plan


def lengths(plan: Sequence[Window]) -> list[int]:
    """New frames of each window of the plan.

    >>> lengths(windows(1200, 0, window=1500, stride=900, changes=[700]))
    [700, 500]
    """
    ends = [later.start + later.known for later in plan[1:]] + [window.end for window in plan[-1:]]
    return [end - window.start - window.known for window, end in zip(plan, ends, strict=True)]


def count_steps(lm: LM, plan: Sequence[Window]) -> int:
    """Steps of the plan: one per new frame, and in each window those before its first complete frame."""
    return sum(lengths(plan)) + len(plan) * max(delays(lm.config.codebooks, lm.config.channels))


class Guidance(NamedTuple):
    """Conditions of one window; each gives a stream of logits.

    `streams` holds, in this order: the prompt, or the n prompts of a mix; for double guidance, the melody
    alone; the null condition, unless it would change nothing. `weights` [n, B] are those of a mix, else None.
    """

    streams: Sequence[Condition]
    weights: Tensor | None = None


class Stop(Protocol):
    """A flag to end generation, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """True once generation should end."""


def frames(
    lm: LM,
    conditions: Callable[[Window], Guidance],
    prompt: Tensor,
    plan: Sequence[Window],
    settings: Settings,
    generators: list[torch.Generator],
    on_step: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
    interventions: Interventions = NONE,
) -> Iterator[Tensor]:
    """Yield one frame [B, K] after another, from the end of the audio `prompt` [B, K, T] to the plan's end.

    `conditions` gives the streams of a window. `on_step(done, total)` counts the steps of the whole piece.
    Once `stop` is set, no further step is made.
    """
    total = count_steps(lm, plan)
    codes, done = prompt, 0
    for window, length in zip(plan, lengths(plan), strict=True):
        if stop is not None and stop.is_set():
            return
        known = codes[..., window.start : window.start + window.known]
        new: list[Tensor] = []
        for frame in _window(lm, conditions(window), known, window, settings, generators, interventions):
            done += 1
            if on_step:
                on_step(done, total)
            if frame is not None:
                new.append(frame)
                yield frame
            if stop is not None and stop.is_set():
                return
            if len(new) == length:
                break
        codes = torch.cat([codes, torch.stack(new, dim=-1)], dim=-1)


def endless(
    lm: LM,
    conditions: Callable[[Window], Guidance],
    changed: Callable[[int], bool],
    window: int,
    stride: int,
    settings: Settings,
    generators: list[torch.Generator],
    stop: Stop | None = None,
    interventions: Interventions = NONE,
) -> Iterator[Tensor]:
    """Yield one frame [B, K] after another until `stop` is set, in `windows` planned during generation.

    After each frame, `changed(frame)` says whether the condition changes at the next one. The same changes
    planned in advance give the same frames. Memory holds one window.
    """
    known = torch.zeros(len(generators), lm.config.codebooks, 0, dtype=torch.long, device=lm.device)
    start = 0
    while stop is None or not stop.is_set():
        now = Window(start, known.shape[-1], start + window)
        for frame in _window(lm, conditions(now), known, now, settings, generators, interventions):
            if frame is not None:
                known = torch.cat([known, frame[..., None]], dim=-1)
                yield frame
            if stop is not None and stop.is_set():
                return
            if frame is not None and changed(start + known.shape[-1]):
                break
        start += max(0, known.shape[-1] - (window - stride))
        known = known[..., -(window - stride) :]


@torch.no_grad()
def _window(
    lm: LM,
    guidance: Guidance,
    known: Tensor,
    window: Window,
    settings: Settings,
    generators: list[torch.Generator],
    interventions: Interventions,
) -> Iterator[Tensor | None]:
    """Yield, for every step, the frame [B, K] that it completes, or None before the first is complete."""
    shifts, first = delays(lm.config.codebooks, lm.config.channels), known.shape[-1]
    codes = F.pad(known, (0, window.end - window.start - first), value=UNKNOWN)
    steps = delay(codes, shifts, lm.config.special)

    with using(1):  # short work; see `threads`
        batches = guidance.streams if settings.two_step_cfg else [cat(guidance.streams)]
    pick = partial(_pick, guidance, settings, interventions, window.start)
    taps = None
    if interventions.active:
        prompts = len(known) * (1 if guidance.weights is None else len(guidance.weights))
        before = accumulate((batch.batch for batch in batches), initial=0)
        taps = [partial(interventions.tap, max(0, prompts - rows), window.start) for rows in before]
    fixed = interventions.logits is None and isinstance(settings.cfg_coef, float)
    run = Steps(lm, batches, steps, pick, taps, fixed)
    shape = (lm.config.codebooks, lm.config.codebook_size)
    # One core draws the noise of few samples in the time of a GPU's step.
    several = len(known) >= MANY and lm.device.type != "cpu"
    with ThreadPoolExecutor() if several else nullcontext() as threads:
        for s in range(first + 1, steps.shape[-1]):
            run.fill(s, noise(generators, shape, threads) if settings.samples else None)
            frame = s - 1 - max(shifts)
            yield undelay(steps[..., frame : s + 1], shifts)[..., 0] if frame >= first else None


def _pick(
    guidance: Guidance,
    settings: Settings,
    interventions: Interventions,
    start: int,
    column: int,
    logits: Tensor,
    exponential: Tensor | None,
) -> Tensor:
    """Tokens [B, K] of a column of the window from frame `start`, from the streams' logits [n B, K, V]."""
    each, weights = logits.chunk(len(guidance.streams)), guidance.weights
    if weights is not None:
        # The mix replaces the prompts; its base is the stream after them, melody alone or null.
        each = (mix(each[: len(weights)], weights, each[len(weights)]), *each[len(weights) :])
    return choose(each, settings, exponential, start + column - 1, interventions)


def choose(
    streams: Sequence[Tensor],
    settings: Settings,
    exponential: Tensor | None,
    step: int = 0,
    interventions: Interventions = NONE,
) -> Tensor:
    """Tokens [B, K] from the logits [B, K, V] of the streams: prompt; melody (double guidance); null.

    `exponential` is Exp(1) noise [B, K, V] if the settings sample, else None. Steps count from the beginning
    of the piece: step s predicts frame s of codebook 0.
    """
    logits, coef = streams[0], value_at(settings.cfg_coef, step / interventions.frame_rate)
    if len(streams) == 3:
        assert settings.cfg_coef_beta is not None
        logits = guide_double(logits, streams[1], streams[2], coef, settings.cfg_coef_beta)
    elif len(streams) == 2:
        logits = guide(logits, streams[1], coef)
    logits = interventions.change_logits(logits, step)
    if exponential is None:
        return logits.argmax(dim=-1)
    probs = probabilities(logits, settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    return draw(probs, exponential)
