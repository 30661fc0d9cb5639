"""A request, checked and complete, and what is said of it afterwards: the manifest that replays it.

Letters: B batch, C channels, K codebooks, T frames, N samples, F chroma frames.
"""

import base64
import hashlib
import math
import operator
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgkit import audio, melody
from mgkit.generate import Settings, Window

Texts = Sequence[str | None]
Prompt = str | None | Mapping[str, float]
"""A text, or several texts and how much each counts: {"calm piano": 0.7, "fast jazz": 0.3}."""
Descriptions = Sequence[Prompt | Sequence[tuple[float, Prompt]]]
"""For each sample a prompt, or a timeline of prompts by the second: [(0, "calm piano"), (6, "fast jazz")]."""

Mix = dict[str, float]  # a checked prompt
Timeline = list[
    tuple[float, Mix]
]  # a checked description: the first from second 0 on, each other than the one before


@dataclass(frozen=True)
class Job:
    """What is asked for each sample of a batch, and the windows in which it is made."""

    texts: list[Timeline]
    negative: list[str]
    melody: dict[int, Tensor]  # for the window that starts at the frame, pitch classes [B, F]; or empty
    prompt: Tensor  # [B, K, T], T = 0 without a prompt
    seeds: list[int]
    settings: Settings
    plans: list[list[Window]]

    def only(self, rows: Sequence[int]) -> "Job":
        """The job of these samples of the batch."""
        return Job(
            [self.texts[i] for i in rows],
            [self.negative[i] for i in rows],
            {start: grid[list(rows)] for start, grid in self.melody.items()},
            self.prompt[list(rows)],
            [self.seeds[i] for i in rows],
            self.settings,
            [self.plans[i] for i in rows],
        )


def check_texts(texts: Texts, what: str = "descriptions") -> list[str]:
    """The texts as strings, None as an empty one. Errors: ValueError for another type, or none at all."""
    return [_text(text, what, "it must hold strings, or None for no text") for text in _rows(texts, what)]


def check_descriptions(descriptions: Descriptions) -> list[Timeline]:
    """The descriptions as timelines. Errors: ValueError for another type, wrong times or weights, or none at all."""
    return [_timeline(description) for description in _rows(descriptions, "descriptions")]


def check_prompt(prompt: Prompt) -> Mix:
    """The texts of a prompt that count, and how much; a text alone counts 1, and where none counts, no text does.

    Errors: ValueError for another type, or a weight that is no number from 0.

    >>> check_prompt("calm piano"), check_prompt({"calm piano": 0.5, "fast jazz": 0})
    ({'calm piano': 1.0}, {'calm piano': 0.5})
    """
    forms = (
        "it must hold strings, None for no text, weights such as {'calm piano': 0.7, 'fast jazz': 0.3}, or times such "
        "as [(0, 'calm piano'), (6, 'fast jazz')]"
    )
    if not isinstance(prompt, Mapping) or not prompt:
        return {_text(prompt, "descriptions", forms): 1.0}
    mix = {}
    for text, weight in dict(prompt).items():
        if not _is_number(weight) or weight < 0:
            raise ValueError(f"the weight of {text!r} is {weight!r}; it must be a number from 0")
        if weight:
            mix[_text(text, "descriptions", forms)] = float(weight)
    return mix or {"": 1.0}


def at(timeline: Timeline, frame: int, rate: int) -> Mix:
    """What the timeline asks for at a frame, of which there are `rate` in a second."""
    return next(mix for seconds, mix in reversed(timeline) if round(seconds * rate) <= frame)


def plain(timeline: Timeline) -> Any:
    """The timeline as its description, in plain values.

    >>> plain(check_descriptions([[(0, "calm piano"), (6, {"calm piano": 0.5, "fast jazz": 0.5})]])[0])
    [[0.0, 'calm piano'], [6.0, {'calm piano': 0.5, 'fast jazz': 0.5}]]
    """
    said = [[seconds, next(iter(mix)) if list(mix.values()) == [1.0] else mix] for seconds, mix in timeline]
    return said if len(said) > 1 else said[0][1]


def _timeline(description: Any) -> Timeline:
    """A description, checked; entries that change nothing are left out."""
    pairs = isinstance(description, list | tuple) and all(
        isinstance(entry, list | tuple) and len(entry) == 2 for entry in description
    )
    if not pairs or not description:
        return [(0.0, check_prompt(description))]
    times = [seconds for seconds, _ in description]
    if not all(map(_is_number, times)) or times[0] != 0 or any(b <= a for a, b in pairwise(times)):
        raise ValueError(
            f"the times of a description are {times}; they must be seconds that rise, the first of them 0"
        )
    timeline: Timeline = []
    for seconds, prompt in description:
        mix = check_prompt(prompt)
        if not timeline or mix != timeline[-1][1]:
            timeline.append((float(seconds), mix))
    return timeline


def _rows(given: Iterable, what: str) -> list:
    """What a list of descriptions holds."""
    if isinstance(given, str):
        raise ValueError(f"{what} is one string; give a list, such as [{given[:40]!r}]")
    try:
        rows = [] if isinstance(given, bytes | Mapping) else list(given)
    except TypeError:
        rows = []
    if not rows:
        raise ValueError(
            f"{what} is {given!r}; it must be a list of at least one string, such as ['calm piano']"
        )
    return rows


def _text(text: object, what: str, forms: str) -> str:
    """A text as a string, None as an empty one; `forms` says what there may be."""
    if not (text is None or isinstance(text, str)):
        raise ValueError(f"{what} holds {text!r}, a {type(text).__name__}; {forms}")
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} holds {text!r}, which is not valid Unicode: read it again as UTF-8"
        ) from None
    return text or ""


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_seeds(seed: int | Sequence[int] | None, batch: int) -> list[int]:
    """One seed for each sample: `seed` + i, or those given, or, without any, drawn from torch's global generator.

    Errors: ValueError for what is no whole number, outside what torch takes, or too few or too many.
    """
    if seed is None:
        return torch.randint(2**31, (batch,)).tolist()
    try:
        try:
            seeds = [operator.index(seed) + i for i in range(batch)]  # type: ignore[arg-type]
        except TypeError:
            seeds = [operator.index(value) for value in seed]  # type: ignore[union-attr]
    except TypeError:
        raise ValueError(f"the seed is {seed!r}; it must be a whole number, or a list of them") from None
    if len(seeds) != batch:
        raise ValueError(
            f"there are {len(seeds)} seeds for {batch} samples; give one number, or one for each sample"
        )
    if not all(0 <= value < 2**63 for value in seeds):
        raise ValueError(f"the seed is {seed}; it must be a whole number from 0 to 2^63 - 1")
    return seeds


def check_waves(
    waves: Tensor | Sequence[Tensor | None], batch: int, what: str, tunes: bool = False
) -> list[Tensor | None]:
    """A wave [C, N] for each sample; a single one serves all.

    As `tunes` they may also be pitch classes, int64 [F] (or [B, F]), or None for none. Errors: ValueError for waves
    that `audio.check` refuses, other whole numbers than pitch classes, or another number of them.
    """
    if not isinstance(waves, list | tuple):
        several = 2 if tunes and _is_grid(waves) else 3
        waves = list(waves) if getattr(waves, "ndim", 0) == several else [waves]  # type: ignore[list-item, arg-type]
    checked: list[Tensor | None] = []
    for wave in waves:
        if tunes and _is_grid(wave):
            checked.append(melody.check(wave, what))
        else:
            checked.append(None if wave is None and tunes else audio.check(wave, what))
    if len(checked) == 1:
        checked *= batch
    if len(checked) != batch:
        raise ValueError(
            f"{what} comes {len(checked)} times for {batch} samples; give one, or one for each sample"
        )
    return checked


def manifest(job: Job, i: int, tokens: Tensor) -> dict:
    """What sample `i` of the job was and came to, `tokens` [K, T], in plain values: enough to make it again alone."""
    starts = {window.start for window in job.plans[i]}
    return {
        "text": plain(job.texts[i]),
        "negative": job.negative[i],
        "seed": job.seeds[i],
        "settings": asdict(job.settings),
        "melody": {str(start): pack(grid[i]) for start, grid in job.melody.items() if start in starts},
        "prompt": pack(job.prompt[i]),
        "frames": tokens.shape[-1],
        "tokens": digest(tokens),
    }


def from_manifest(manifest: dict, codebooks: int) -> Job:
    """The job, of one sample and not yet planned, that a manifest tells of.

    Errors: ValueError where something is missing or was changed.
    """
    try:
        int(manifest["frames"])
        return Job(
            texts=check_descriptions([manifest["text"]]),
            negative=check_texts([manifest["negative"]]),
            melody={int(start): unpack(grid)[None] for start, grid in manifest["melody"].items()},
            prompt=unpack(manifest["prompt"]).view(1, codebooks, -1),
            seeds=check_seeds([manifest["seed"]], 1),
            settings=Settings(**manifest["settings"]),
            plans=[],
        )
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, zlib.error) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"was changed ({error})"
        raise ValueError(f"the manifest {what}: it cannot be replayed") from None


def pack(values: Tensor) -> str:
    """Whole numbers under 32768 as text.

    >>> unpack(pack(torch.tensor([1, 2047])))
    tensor([   1, 2047])
    """
    return base64.b64encode(zlib.compress(_bytes(values))).decode()


def unpack(text: str) -> Tensor:
    """The whole numbers, flat, that `pack` made the text of."""
    return torch.from_numpy(np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i2").astype(np.int64))


def digest(values: Tensor) -> str:
    """Tells whether whole numbers are the same."""
    return hashlib.sha256(_bytes(values)).hexdigest()[:32]


def _bytes(values: Tensor) -> bytes:
    return values.cpu().numpy().astype("<i2").tobytes()


def _is_grid(tune: object) -> bool:
    """Whether it is whole numbers as `melody.classes` gives them; sound in whole numbers comes in fewer bits."""
    return isinstance(tune, Tensor) and tune.dtype == torch.int64
