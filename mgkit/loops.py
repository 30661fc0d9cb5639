"""Loops: music that may be repeated without a gap, cut at beats.

Axes: C channels, N samples, K codebooks, T frames.

    description -> candidates, cut from each beat of the first bar -> likelihood of the start after the end
                -> the likeliest cut [K, T] -> decoded as a ring [C, N]: exactly `beats` at `bpm`
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgkit.brief import brief
from mgkit.candidates import (
    Door,
    encode_text,
    generate_tokens,
    likelihood,
    parse_number,
    pick,
    several,
    so_far,
)
from mgkit.checkpoint import Model
from mgkit.generate import Stop
from mgkit.perform import OnStep, decode_whole
from mgkit.request import Waves, parse_melodies, parse_request
from mgkit.settings import DAY
from mgkit.spectra import stft

BAR = 4  # beats that are tried as the start
AHEAD = 1.0  # seconds of the start whose likelihood is compared
MARGIN = 1.0  # seconds decoded before and after the loop, so that the decoder knows what is around the seam
SIZE = 1024  # samples of a spectrum


class Seam(NamedTuple):
    """How well a loop's start follows its end."""

    likelihood: float  # of the first second after the end: mean log-likelihood of a token, in nats
    own: float  # the same of the second with which the piece itself continued, for comparison
    change: float  # share of the loop's spectra that differ less from their predecessor than at the seam


@dataclass(frozen=True)
class Loop:
    """A loop; if generation was stopped, the music so far, and no seam."""

    wave: Tensor  # [C, N]
    codes: Tensor  # [K, T]
    manifest: dict
    seam: Seam | None


def generate_loop(
    model: Door,
    description: str | None,
    bpm: float,
    beats: float,
    *,
    melody_wavs: Waves | None = None,
    melody_sample_rate: int = 0,
    candidates: int = 4,
    seed: int | None = None,
    negative: str | None = None,
    progress: bool = False,
    on_step: OnStep | None = None,
    stop: Stop | None = None,
) -> Loop:
    """A loop of `beats` beats at `bpm` beats per minute.

    `candidates` pieces are generated, with seeds from `seed` on, and each is cut from every beat of its first
    bar; of these cuts, the one whose start is most likely to follow its end is decoded as a ring. The length
    is exact: whole frames are resampled to it, by at most 10 ms. Whether the music keeps the tempo is up to
    the model: put it into the description, as in "calm piano, 100 bpm". The model's settings apply, except
    the duration; `melody_wavs` is as in `generate_with_chroma`.

    Raises:
        ValueError: an invalid argument, or a loop of less than a second.
    """
    plain, rate = model.model, model.model.frame_rate
    bpm, beats = parse_number("bpm", bpm, DAY), parse_number("beats", beats, DAY)
    if not 1 <= beats * 60 / bpm <= DAY / 2:
        raise ValueError(
            f"{beats:g} beats at {bpm:g} bpm last {beats * 60 / bpm:g} s; a loop lasts from 1 s to 12 hours"
        )
    length, ahead = round(beats * 60 / bpm * rate), round(AHEAD * rate)
    starts = [round(beat * 60 / bpm * rate) for beat in range(min(BAR, max(1, int(beats))))]
    total = starts[-1] + length + ahead
    settings, tunes = replace(model.settings, duration=total / rate), None
    if melody_wavs is not None:
        tunes = parse_melodies(plain, 1, melody_wavs, melody_sample_rate, duration=settings.duration)
    request = several(parse_request(plain, settings, [description], 0, negative, tunes), candidates, seed)
    tokens = generate_tokens(plain, request, progress, on_step, stop)
    if tokens.shape[-1] < total:
        return Loop(*so_far(plain, request, tokens), None)

    text, tune = encode_text(plain, description), tunes[0] if tunes else None

    def follows(i: int, start: int, at: int) -> float:
        """Likelihood of the music at frame `at` of a candidate after its loop from frame `start`."""
        end, piece = start + length, tokens[i]
        return likelihood(plain, text, piece[:, start:end], piece[:, at : at + ahead], tune, end)

    value, i, start = max((follows(i, start, start), i, start) for i in range(candidates) for start in starts)
    own = follows(i, start, start + length)
    chosen, manifest = pick(plain, request, tokens, i)
    manifest["loop"] = {"bpm": bpm, "beats": beats, "start": start}
    wave, codes = recut(plain, manifest["loop"], chosen)
    return Loop(wave[0], codes[0], manifest, Seam(value, own, seam_change(wave[0])))


def recut(model: Model, entry: Mapping[str, Any], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The wave [1, C, N] and codes [1, K, T] of the loop that the entry "loop" of a manifest describes.

    `tokens` [1, K, T] are those of the piece.

    Raises: ValueError if the entry was changed.
    """
    try:
        bpm, beats = (parse_number(name, entry[name], DAY) for name in ("bpm", "beats"))
        start, seconds = int(entry["start"]), beats * 60 / bpm
        length, samples = round(seconds * model.frame_rate), round(seconds * model.sample_rate)
        if not 0 <= start < start + length <= tokens.shape[-1]:
            raise ValueError(f"{length} frames from frame {start} of {tokens.shape[-1]}")
    except (LookupError, TypeError, ArithmeticError, ValueError) as error:
        raise ValueError(
            f"the manifest's loop was changed ({brief(str(error))}): it cannot be replayed"
        ) from None
    loop = tokens[..., start : start + length]
    margin, hop = min(length, round(MARGIN * model.frame_rate)), model.codec.config.hop
    ring = torch.cat([loop[..., length - margin :], loop, loop[..., :margin]], dim=-1)
    wave = decode_whole(model, ring)[..., margin * hop : (margin + length) * hop]
    return resample_ring(wave, samples), loop


def resample_ring(wave: Tensor, samples: int) -> Tensor:
    """One period [..., N] of a periodic wave at `samples` samples: its Fourier series, cut or padded.

    >>> resample_ring(torch.tensor([0.0, 1.0, 0.0, -1.0]), 4)
    tensor([ 0.,  1.,  0., -1.])
    """
    before = wave.shape[-1]
    return (
        wave if samples == before else torch.fft.irfft(torch.fft.rfft(wave), n=samples) * (samples / before)
    )


def seam_change(wave: Tensor) -> float:
    """Share of the spectra of a loop [C, N] that differ less from their predecessor than those at its seam.

    In music without an event at the seam it is about 0.5, at a beat near 1, at a click 1.
    """
    mono, hop = wave.float().mean(dim=0).cpu(), SIZE // 2
    # A whole number of hops from the seam, in the middle.
    turned = mono.roll(len(mono) // 2)
    first = (len(mono) // 2) % hop
    spectra = (stft(turned[first:], SIZE, hop).abs() + 1e-4).log()
    changes = (spectra[:, 1:] - spectra[:, :-1]).abs().mean(dim=0)
    at = len(mono) // 2 // hop
    seam = changes[at - 1 : at + 1].max()
    return float((changes < seam).float().mean())
