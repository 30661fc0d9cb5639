"""A bridge between two recordings: continuations of the first, chosen by how well the second follows.

Axes: C channels, N samples, K codebooks, T frames.

    before -> candidates that continue it -> likelihood of `after` behind each -> the best
           -> likelihood of `after` from each frame of its first half second -> joined there
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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
from mgkit.manifest import pack, unpack
from mgkit.perform import OnStep, decode_whole
from mgkit.request import encode_audio_prompt, parse_request
from mgkit.settings import DAY

AHEAD = 1.0  # seconds of the second recording whose likelihood is compared
OVERLAP = 0.5  # seconds of its beginning that may be replaced
STEP = 0.1  # seconds between the frames that are tried


@dataclass(frozen=True)
class Bridge:
    """Two recordings and what was generated between them; if it was stopped, the music so far.

    The codec has decoded all of it, the recordings too.
    """

    wave: Tensor  # [C, N]
    codes: Tensor  # [K, T]
    manifest: dict
    start: float  # seconds, where the bridge begins
    join: float | None  # seconds, where the second recording takes over
    likelihoods: list[
        float
    ]  # of the second recording after each candidate, in nats per token, the best first


def generate_between(
    model: Door,
    before: Tensor,
    after: Tensor,
    sample_rate: int,
    seconds: float,
    description: str | None = None,
    *,
    candidates: int = 8,
    seed: int | None = None,
    negative: str | None = None,
    progress: bool = False,
    on_step: OnStep | None = None,
    stop: Stop | None = None,
) -> Bridge:
    """Music of `seconds` seconds that leads from the wave `before` [C, N] to the wave `after` [C, N].

    The bridge is generated as a continuation of `before`, without knowledge of `after`: MusicGen was not
    trained to fill gaps, and a bridge does not prepare a change of key, tempo or instruments. Of `candidates`
    bridges, with seeds from `seed` on, the one after which `after` is most likely is taken. `after` takes
    over at the likeliest frame of its first half second, whose beginning the bridge replaces, so the whole
    is as long as `before`, the bridge and `after`. The model's settings apply, except the duration.

    Raises:
        ValueError: an invalid argument, or `after` shorter than a second.
    """
    plain, rate = model.model, model.model.frame_rate
    gap = max(1, round(parse_number("seconds", seconds, DAY / 2) * rate))
    known, following = (encode_audio_prompt(plain, 1, (wave, sample_rate)) for wave in (before, after))
    overlap, ahead = round(OVERLAP * rate), round(AHEAD * rate)
    if following.shape[-1] < 2 * overlap:
        raise ValueError(
            f"the recording after the bridge lasts {following.shape[-1] / rate:g} s; give at least "
            f"{2 * OVERLAP:g} s to lead to"
        )
    ahead = min(ahead, following.shape[-1] - overlap)
    start, end = known.shape[-1], known.shape[-1] + gap
    settings = replace(model.settings, duration=(end + overlap) / rate)
    one = parse_request(plain, settings, [description], 0, negative, None, (before, sample_rate))
    request = several(one, candidates, seed)
    tokens = generate_tokens(plain, request, progress, on_step, stop)
    if tokens.shape[-1] < end + overlap:
        return Bridge(*so_far(plain, request, tokens), start / rate, None, [])

    text, target = encode_text(plain, description), following[0]
    values = [likelihood(plain, text, piece[:, :end], target[:, :ahead]) for piece in tokens]
    best = max(range(candidates), key=values.__getitem__)
    joins = range(0, overlap + 1, max(1, round(STEP * rate)))
    skip = max(
        joins,
        key=lambda join: likelihood(
            plain, text, tokens[best, :, : end + join], target[:, join : join + ahead]
        ),
    )
    chosen, manifest = pick(plain, request, tokens, best)
    manifest["between"] = {"after": pack(target), "join": end + skip, "skip": skip}
    wave, codes = rejoin(plain, manifest["between"], chosen)
    ranked = sorted(values, reverse=True)
    return Bridge(wave[0], codes[0], manifest, start / rate, (end + skip) / rate, ranked)


def rejoin(model: Model, entry: Mapping[str, Any], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The wave [1, C, N] and codes [1, K, T] of the bridge that the entry "between" of a manifest describes.

    `tokens` [1, K, T] are those of the continuation.

    Raises: ValueError if the entry was changed.
    """
    try:
        after = unpack(entry["after"]).view(1, tokens.shape[1], -1).to(tokens.device)
        join, skip = int(entry["join"]), int(entry["skip"])
        if not 0 < join <= tokens.shape[-1] or not 0 <= skip < after.shape[-1]:
            raise ValueError(f"joined at frame {join} of {tokens.shape[-1]}")
        if not 0 <= int(after.min()) <= int(after.max()) < model.lm.config.codebook_size:
            raise ValueError("a token out of range")
    except (LookupError, TypeError, ArithmeticError, RuntimeError, ValueError, zlib.error) as error:
        raise ValueError(
            f"the manifest's bridge was changed ({brief(str(error))}): it cannot be replayed"
        ) from None
    codes = torch.cat([tokens[..., :join], after[..., skip:]], dim=-1)
    return decode_whole(model, codes), codes
