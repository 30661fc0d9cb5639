"""From a condition to codes: one window after another, one step after another, one frame after another.

Letters: B batch, K codebooks, T frames, S delayed steps, V codebook size.

A model has learned windows of 30 s (nano: 10 s). Longer music is made by windows that overlap: each starts
`stride` after the last, is shown what it shares with it, and goes on from there (arXiv:2306.05284, section 3).

    0 s          18 s    30 s            48 s
    |--- new -----------|                              a window's positions start at 0,
                 |known |---- new ------|              and so does its melody, turned to its start
                                 |known |--- new ...

Where the prompt changes, a window is left and the next begins in the same way: it is shown the end of what was played,
and goes on under the new prompt.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Real
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.condition import Condition
from mgkit.delay import delay, delays, undelay
from mgkit.lm import LM, KVCache
from mgkit.sampling import draw, guide, guide_double, mix, noise, probabilities

UNKNOWN = -1  # a token that is still to be generated
DAY = 86400  # seconds; the longest piece


def _setting(default: Any, kind: type, takes: str, fits: Callable[[Any], bool], help: str) -> Any:
    return field(default=default, metadata={"kind": kind, "takes": takes, "fits": fits, "help": help})


def _flag(default: bool, help: str) -> Any:
    return _setting(default, bool, "True or False", lambda x: True, help)


@dataclass(frozen=True)
class Settings:
    """How to generate; names and defaults of audiocraft's `set_generation_params`.

    The command line and the notebooks' panel take their options and their words from here.
    Errors: ValueError that names the setting, what it is and what it must be.
    """

    use_sampling: bool = _flag(True, "draw tokens at random; without it, always take the likeliest")
    top_k: int = _setting(
        250,
        int,
        "a whole number from 0",
        lambda x: x >= 0,
        "draw from the k likeliest tokens only; 0 for all",
    )
    top_p: float = _setting(
        0.0,
        float,
        "a number from 0 to 1",
        lambda x: 0 <= x <= 1,
        "draw from the likeliest tokens that reach this probability; over 0 it replaces top-k",
    )
    temperature: float = _setting(
        1.0,
        float,
        "a number from 0",
        lambda x: x >= 0,
        "over 1 more surprising, under 1 safer, 0 the likeliest token",
    )
    duration: float = _setting(
        30.0,
        float,
        "a number of seconds over 0, a day at most",
        lambda x: 0 < x <= DAY,
        "length of the result in seconds, an audio prompt included",
    )
    cfg_coef: float = _setting(
        3.0, float, "a number", lambda x: True, "guidance: how far to follow the prompt; 1 is no guidance"
    )
    cfg_coef_beta: float | None = _setting(
        None,
        float,
        "a number",
        lambda x: True,
        "double guidance: how far the text is followed beyond the melody",
    )
    two_step_cfg: bool = _flag(
        False, "two small passes a step for guidance instead of a big one: less memory"
    )
    extend_stride: float | None = _setting(
        None,
        float,
        "a number of seconds over 0",
        lambda x: x > 0,
        "seconds from one window to the next in music longer than a window; left out, 0.6 of a window",
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not (value is None and setting.default is None):
                object.__setattr__(self, setting.name, _checked(setting, value))


def _checked(setting: Field, value: Any) -> Any:
    """`value` as the plain bool, int or float that the setting takes."""
    kind, fits = setting.metadata["kind"], setting.metadata["fits"]
    number = isinstance(value, Real) and (kind is bool or not isinstance(value, bool))
    try:
        if number and math.isfinite(value) and kind(value) == value and fits(value):
            return kind(value)
    except OverflowError:  # an int beyond all floats
        pass
    raise ValueError(f"{setting.name} is {value!r}; it must be {setting.metadata['takes']}")


class Window(NamedTuple):
    """Frames start..end of the piece, the first `known` of them known when the window begins.

    Where the next one begins before its end, it is left there.
    """

    start: int
    known: int
    end: int


def windows(total: int, prompt: int, window: int, stride: int, changes: Iterable[int] = ()) -> list[Window]:
    """The windows that bring a piece from its `prompt` to `total` frames.

    One that is full, or comes to one of the frames where the condition `changes`, is followed by one that knows the
    last `window` - `stride` frames of it, or all where it has fewer.

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
    left = [later.start + later.known for later in plan[1:]] + [window.end for window in plan[-1:]]
    return [end - window.start - window.known for window, end in zip(plan, left, strict=True)]


def steps(lm: LM, plan: Sequence[Window]) -> int:
    """Steps that the plan takes: one for each new frame, and in each window those in which the delays fill."""
    return sum(lengths(plan)) + len(plan) * max(delays(lm.config.codebooks, lm.config.channels))


class Told(NamedTuple):
    """What a window is told: the streams of guidance, and how much each prompt among them counts."""

    streams: Sequence[
        Condition
    ]  # one prompt or several; melody alone, in double guidance; null, where it matters
    weights: Tensor | None = None  # [n, B] of the n prompts that come first; None for a plain one


class Stop(Protocol):
    """Anything that says whether to stop, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """True once generation should end."""


def frames(
    lm: LM,
    told: Callable[[Window], Told],
    prompt: Tensor,
    plan: Sequence[Window],
    settings: Settings,
    generators: list[torch.Generator],
    on_step: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> Iterator[Tensor]:
    """Yields one frame [B, K] after another, from the end of `prompt` [B, K, T] to the end of the `plan`.

    `told` says what a window is told. `on_step(done, total)` counts steps of the whole piece. When `stop` is set, no
    further step is made; the frames that were yielded stand.
    """
    total = steps(lm, plan)
    codes, done = prompt, 0
    for window, length in zip(plan, lengths(plan), strict=True):
        if stop is not None and stop.is_set():
            return
        known = codes[..., window.start : window.start + window.known]
        new: list[Tensor] = []
        for frame in _window(lm, told(window), known, window.end - window.start, settings, generators):
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
    told: Callable[[Window], Told],
    changed: Callable[[int], bool],
    window: int,
    stride: int,
    settings: Settings,
    generators: list[torch.Generator],
    stop: Stop | None = None,
) -> Iterator[Tensor]:
    """Yields one frame [B, K] after another until `stop` is set, in windows as `windows` plans them, planned on the way.

    `changed(frame)` is asked, once the frames before it are made, whether the condition changes there. The same
    changes planned beforehand give the same frames. No more than a window is kept.
    """
    known, start = torch.zeros(len(generators), lm.config.codebooks, 0, dtype=torch.long, device=lm.device), 0
    while stop is None or not stop.is_set():
        streams = told(Window(start, known.shape[-1], start + window))
        for frame in _window(lm, streams, known, window, settings, generators):
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
    told: Told,
    known: Tensor,
    length: int,
    settings: Settings,
    generators: list[torch.Generator],
) -> Iterator[Tensor | None]:
    """Yields, for every step, the frame [B, K] that it completes, or None while the delays fill."""
    shifts, first = delays(lm.config.codebooks, lm.config.channels), known.shape[-1]
    codes = F.pad(known, (0, length - first), value=UNKNOWN)
    steps = delay(codes, shifts, lm.config.special)

    streams, weights = told
    groups = streams if settings.two_step_cfg else [Condition.cat(streams)]
    caches = [lm.cache(group.batch, group.prefix_length + steps.shape[-1] - 1) for group in groups]
    fed = 0
    for s in range(first + 1, steps.shape[-1]):
        seen = steps[..., fed:s]
        logits = [_next(lm, seen, group, cache) for group, cache in zip(groups, caches, strict=True)]
        each = torch.cat(logits).chunk(len(streams))
        if weights is not None:
            each = (mix(each[: len(weights)], weights, each[len(weights)]), *each[len(weights) :])
        tokens = choose(each, settings, generators)
        steps[..., s] = torch.where(steps[..., s] == UNKNOWN, tokens, steps[..., s])
        fed = s
        frame = s - 1 - max(shifts)
        yield undelay(steps[..., frame : s + 1], shifts)[..., 0] if frame >= first else None


def _next(lm: LM, seen: Tensor, told: Condition, cache: KVCache) -> Tensor:
    """Logits [rows, K, V] of the step after `seen` [B, K, s], for every row of the condition."""
    rows = seen.repeat(told.batch // seen.shape[0], 1, 1)
    if cache.length == 0:
        hidden = lm.hidden(rows, cache, told.prefix, told.prefix_mask, told.cross, told.cross_mask)
    else:
        hidden = lm.hidden(rows, cache)
    return lm.logits(hidden[:, -1:])[:, :, 0]


def choose(streams: Sequence[Tensor], settings: Settings, generators: list[torch.Generator]) -> Tensor:
    """Tokens [B, K] from the logits [B, K, V] of each stream: the prompt's; melody alone; null."""
    logits = streams[0]
    if len(streams) == 3:
        assert settings.cfg_coef_beta is not None
        logits = guide_double(logits, streams[1], streams[2], settings.cfg_coef, settings.cfg_coef_beta)
    elif len(streams) == 2:
        logits = guide(logits, streams[1], settings.cfg_coef)
    if not settings.use_sampling or settings.temperature == 0:
        return logits.argmax(dim=-1)
    probs = probabilities(logits, settings.temperature, settings.top_k, settings.top_p)
    return draw(probs, noise(generators, tuple(probs.shape[1:])))
