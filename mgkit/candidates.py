"""Several pieces of one request, and how likely it is that other music follows them.

Axes: B candidates, C channels, N samples, K codebooks, T frames, L text length, D width.

The model generates from left to right and does not know what comes later. It does know how likely any
continuation is (`mgkit.score`): `loops` and `between` generate candidates and choose by that.
"""

import math
from contextlib import nullcontext
from dataclasses import replace
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from mgkit.brief import brief
from mgkit.checkpoint import Model
from mgkit.delay import delays
from mgkit.generate import Stop
from mgkit.interrupt import CtrlC
from mgkit.manifest import manifests
from mgkit.perform import OnStep, decode_whole, request_frames, say_stopped
from mgkit.progress import ProgressBar
from mgkit.request import Request, parse_seeds, window_chroma
from mgkit.score import score
from mgkit.settings import Settings

MOST = 64


class Door(Protocol):
    """A `MusicGen`."""

    model: Model
    settings: Settings


def several(request: Request, count: int, seed: int | None) -> Request:
    """The request of one sample `count` times, with seeds from `seed` on, or random ones.

    Raises: ValueError for an invalid count or seed.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise ValueError(f"candidates is {brief(count)}; it must be an integer from 1 to {MOST}")
    return replace(request.rows([0] * count), seeds=parse_seeds(seed, count))


def generate_tokens(
    model: Model, request: Request, progress: bool, on_step: OnStep | None, stop: Stop | None
) -> Tensor:
    """Tokens [B, K, T] of the request; fewer frames after `stop` or Ctrl-C."""
    bar, codes = ProgressBar(on_step) if progress else None, [request.audio_prompt]
    with CtrlC(stop) as stopped, bar or nullcontext():
        codes += [frame[..., None] for frame in request_frames(model, request, bar or on_step, stopped)]
        tokens = torch.cat(codes, dim=-1)
        if stopped.pressed:
            say_stopped(model, request, tokens)
    return tokens


def pick(model: Model, request: Request, tokens: Tensor, index: int) -> tuple[Tensor, dict]:
    """The tokens [1, K, T] and the manifest of one candidate."""
    chosen = tokens[index : index + 1]
    return chosen, manifests(model, request.rows([index]), chosen)[0]


@torch.no_grad()
def encode_text(model: Model, text: str | None) -> Tensor:
    """The vectors [L, D] of a prompt, for `likelihood`."""
    return model.conditioner.encode([text or ""])[0]


@torch.no_grad()
def likelihood(
    model: Model, text: Tensor, before: Tensor, after: Tensor, tune: Tensor | None = None, end: int = 0
) -> float:
    """Mean log-likelihood, in nats per token, of the codes `after` [K, T] if they follow `before` [K, T].

    The model reads as much of what comes before as fits its window, under the prompt `text` [L, D] and the
    melody `tune`, whose frame `end` plays where the second part begins.
    """
    context = min(before.shape[-1], model.window_frames - after.shape[-1])
    codes = torch.cat([before[:, before.shape[-1] - context :], after], dim=-1)
    chroma = None if tune is None else window_chroma(model, [tune], end - context, True)
    # In the last frames, the finer codebooks are predicted from frames that are missing.
    complete = codes.shape[-1] - max(delays(model.lm.config.codebooks, model.lm.config.channels))
    return float(score(model, codes, model.conditioner([text], chroma))[:, context:complete].mean())


def so_far(model: Model, request: Request, tokens: Tensor) -> tuple[Tensor, Tensor, dict]:
    """Wave [C, N], codes [K, T] and manifest of the first candidate of a run that was stopped.

    Raises: ValueError before the first frame.
    """
    if tokens.shape[-1] == 0:
        raise ValueError("stopped before the first frame: there is no music yet")
    codes, manifest = pick(model, request, tokens, 0)
    return decode_whole(model, codes)[0], codes[0], manifest


def parse_number(name: str, value: object, most: float) -> float:
    """`value` as a float.

    Raises: ValueError for anything but a number above 0 and at most `most`.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 < value <= most or not math.isfinite(value):  # type: ignore[operator,arg-type]
        raise ValueError(f"{name} is {brief(value)}; it must be a number above 0, at most {most:g}")
    return float(value)  # type: ignore[arg-type]
