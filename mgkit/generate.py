"""From a condition to codes: one window after another, one step after another, one frame after another.

Letters: B batch, K codebooks, T frames, S delayed steps, V codebook size.

A model has learned windows of 30 s (nano: 10 s). Longer music is made by windows that overlap: each starts
`stride` after the last, is shown what it shares with it, and goes on from there (arXiv:2306.05284, section 3).

    0 s          18 s    30 s            48 s
    |--- new -----------|                              a window's positions start at 0,
                 |known |---- new ------|              and so does its melody, turned to its start
                                 |known |--- new ...
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Real
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .condition import Condition
from .delay import delay, delays, undelay
from .lm import LM, KVCache
from .sampling import draw, guide, guide_double, noise, probabilities

UNKNOWN = -1  # a token that is still to be generated


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
        lambda x: 0 < x <= 86400,
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
    """Frames start..end of the piece, the first `known` of them known when the window begins."""

    start: int
    known: int
    end: int


def windows(total: int, prompt: int, window: int, stride: int) -> list[Window]:
    """The windows that bring a piece from its `prompt` to `total` frames.

    >>> windows(3000, 0, window=1500, stride=900)[1:]
    [Window(start=900, known=600, end=2400), Window(start=1800, known=600, end=3000)]
    """
    plan, start, done = [], 0, prompt
    while done < total:
        if done - start >= window:
            start = done - (window - stride)
        end = min(start + window, total)
        plan.append(Window(start, done - start, end))
        done = end
    return plan


class Stop(Protocol):
    """Anything that says whether to stop, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """True once generation should end."""


def frames(
    lm: LM,
    told: Callable[[int], Sequence[Condition]],
    prompt: Tensor,
    plan: Sequence[Window],
    settings: Settings,
    generators: list[torch.Generator],
    on_step: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> Iterator[Tensor]:
    """Yields one frame [B, K] after another, from the end of `prompt` [B, K, T] to the end of the `plan`.

    `told(start)` gives the streams of guidance for the window at frame `start`: the condition alone, or with the
    null one, or with melody alone and the null one (double guidance). `on_step(done, total)` counts steps of the
    whole piece. When `stop` is set, no further step is made; the frames that were yielded stand.
    """
    wait = max(delays(lm.config.codebooks, lm.config.channels))
    total = sum(window.end - window.start - window.known + wait for window in plan)
    codes, done = prompt, 0
    for window in plan:
        if stop is not None and stop.is_set():
            return
        known = codes[..., window.start : window.start + window.known]
        new: list[Tensor] = []
        for frame in _window(lm, told(window.start), known, window.end - window.start, settings, generators):
            done += 1
            if on_step:
                on_step(done, total)
            if frame is not None:
                new.append(frame)
                yield frame
            if stop is not None and stop.is_set():
                return
        codes = torch.cat([codes, torch.stack(new, dim=-1)], dim=-1)


@torch.no_grad()
def _window(
    lm: LM,
    streams: Sequence[Condition],
    known: Tensor,
    length: int,
    settings: Settings,
    generators: list[torch.Generator],
) -> Iterator[Tensor | None]:
    """Yields, for every step, the frame [B, K] that it completes, or None while the delays fill."""
    shifts, first = delays(lm.config.codebooks, lm.config.channels), known.shape[-1]
    codes = F.pad(known, (0, length - first), value=UNKNOWN)
    steps = delay(codes, shifts, lm.config.special)

    groups = streams if settings.two_step_cfg else [Condition.cat(streams)]
    caches = [lm.cache(group.batch, group.prefix_length + steps.shape[-1] - 1) for group in groups]
    fed = 0
    for s in range(first + 1, steps.shape[-1]):
        seen = steps[..., fed:s]
        logits = [_next(lm, seen, group, cache) for group, cache in zip(groups, caches, strict=True)]
        tokens = choose(torch.cat(logits).chunk(len(streams)), settings, generators)
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
    """Tokens [B, K] from the logits [B, K, V] of each stream."""
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
