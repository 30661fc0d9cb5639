"""A request for music: everything a user asks for, parsed, checked and complete.

Axes: B batch, C channels, K codebooks, T frames, N samples, F chroma frames.

    descriptions -> timelines of prompts  --.
    melody       -> chroma of each window --+-> Request: texts, chroma, audio prompt, seeds, settings, windows
    audio prompt -> codes [B, K, T]       --'
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from mgkit import audio, melody
from mgkit.brief import brief
from mgkit.checkpoint import Model
from mgkit.edits import Change
from mgkit.generate import Window, windows
from mgkit.interventions import NONE, Interventions, LogitsHook, parse_interventions
from mgkit.model import Adapter
from mgkit.prompts import Descriptions, Texts, Timeline, parse_descriptions, parse_texts
from mgkit.settings import Settings

Waves: TypeAlias = Tensor | Sequence[Tensor | None]
"""One wave [C, N] for all samples, [B, C, N], or a list with one each; melodies may also be chroma."""


@dataclass(frozen=True)
class Request:
    """Conditions, seeds and settings of each sample of a batch, and its windows."""

    texts: list[Timeline]
    negative: list[str]
    chroma: dict[int, Tensor]  # first frame of a window: chroma [B, F, 12] of 0 and 1; empty without a melody
    audio_prompt: Tensor  # [B, K, T]; T = 0 without one
    seeds: list[int]
    settings: Settings
    plans: list[list[Window]]
    adapters: tuple[Adapter, ...] = ()  # of the model, when the request was made
    interventions: Interventions = NONE

    def rows(self, rows: Sequence[int]) -> "Request":
        """The request of these samples alone."""
        return Request(
            [self.texts[i] for i in rows],
            [self.negative[i] for i in rows],
            {start: chroma[list(rows)] for start, chroma in self.chroma.items()},
            self.audio_prompt[list(rows)],
            [self.seeds[i] for i in rows],
            self.settings,
            [self.plans[i] for i in rows],
            self.adapters,
            self.interventions,
        )


# --- from a user's arguments to a request -----------------------------------------------------------------


def parse_request(
    model: Model,
    settings: Settings,
    descriptions: Descriptions,
    seed: int | Sequence[int] | None = None,
    negative: str | Texts | None = None,
    melodies: Sequence[Tensor | None] | None = None,
    audio_prompt: tuple[Waves, int] | None = None,
    edits: Sequence[Change] = (),
    logits: LogitsHook | None = None,
) -> Request:
    """A request from the arguments of `MusicGen.generate` and its variants; `melodies` are parsed already.

    Raises:
        ValueError: an invalid argument.
    """
    texts = parse_descriptions(descriptions)
    batch = len(texts)
    if negative is None or isinstance(negative, str):
        negative = [negative] * batch
    negatives = parse_texts(negative, "negative")
    if len(negatives) != batch:
        raise ValueError(
            f"there are {batch} descriptions and {len(negatives)} negative texts; give one, or one for each"
        )
    if settings.cfg_coef_beta is not None and melodies is None:
        raise ValueError(
            "cfg_coef_beta weighs the text against a melody, and there is none: "
            "leave it out, or give a melody"
        )
    last = max(timeline[-1][0] for timeline in texts)
    if last and last >= settings.duration:
        raise ValueError(
            f"a description changes at {last:g} s, and the duration is {settings.duration:g} s: set a longer "
            "duration, or leave that change out"
        )
    interventions = parse_interventions(edits, logits, model.lm.config, model.frame_rate, settings)
    codes = encode_audio_prompt(model, batch, audio_prompt)
    plans = [plan_windows(model, settings, codes.shape[-1], timeline) for timeline in texts]
    chroma = {}
    if melodies is not None:
        several = plans[0][-1].end > model.window_frames
        starts = sorted({window.start for plan in plans for window in plan})
        chroma = {start: window_chroma(model, melodies, start, several) for start in starts}
    seeds = parse_seeds(seed, batch)
    inside = model.adapters, interventions
    return Request(texts, negatives, chroma, codes, seeds, settings, plans, *inside)


def plan_windows(model: Model, settings: Settings, prompt: int, timeline: Timeline) -> list[Window]:
    """The windows of a piece, from an audio prompt of `prompt` frames to its duration.

    Raises:
        ValueError: a prompt as long as the duration, or a stride longer than the model's window.
    """
    window, stride = model.window_frames, stride_frames(model, settings)
    total = max(1, round(settings.duration * model.frame_rate))
    changes = [round(seconds * model.frame_rate) for seconds, _ in timeline[1:]]
    if prompt >= total:
        raise ValueError(
            f"the audio prompt lasts {prompt / model.frame_rate:g} s, and the duration, which includes it, "
            f"is {settings.duration:g} s: set a longer duration or give a shorter prompt"
        )
    if (total > window or changes) and not 0 < stride < window:
        raise ValueError(
            f"extend_stride is {settings.extend_stride:g} s; it must be at least one frame and less than "
            f"a window of this model ({model.window:g} s): leave it out for {0.6 * model.window:g} s"
        )
    return windows(total, prompt, window, stride, changes)


def stride_frames(model: Model, settings: Settings) -> int:
    """Frames from the start of one window to the start of the next."""
    return round((settings.extend_stride or 0.6 * model.window) * model.frame_rate)


@torch.no_grad()
def encode_audio_prompt(model: Model, batch: int, given: tuple[Waves, int] | None) -> Tensor:
    """Codes [B, K, T] of an audio prompt, `given` as waves and their sample rate; T = 0 without one."""
    if given is None:
        return torch.zeros(batch, model.lm.config.codebooks, 0, dtype=torch.long, device=model.lm.device)
    waves, rate = given
    prepared = [
        audio.resample(audio.to_channels(wave, model.channels), rate, model.sample_rate)
        for wave in parse_waves(waves, batch, "the audio prompt")
        if wave is not None
    ]
    if len({wave.shape[-1] for wave in prepared}) > 1:
        raise ValueError(
            "the audio prompts of a batch must have one length; cut them, or continue them one by one"
        )
    with torch.autocast(model.lm.device.type, enabled=False):
        return model.codec.encode(torch.stack(prepared).to(model.lm.device))


def parse_melodies(
    model: Model,
    batch: int,
    given: Waves,
    rate: int,
    separate: melody.Separate | None = None,
    duration: float = math.inf,
) -> list[Tensor | None]:
    """The melody of each sample: a wave [C, N] at the model's rate, chroma [F, 12], or None.

    Of a wave, the part that music of `duration` seconds does not reach is cut off before the work.

    Raises:
        ValueError: a model without melody conditioning, or a silent melody.
    """
    if model.conditioner.melody_frames is None:
        raise ValueError(no_melody(model))
    melodies: list[Tensor | None] = []
    for tune in parse_waves(given, batch, "the melody", melodies=True):
        if tune is not None and not _is_chroma(tune):
            audio.parse_rate(rate)
            if tune.shape[0] > 2:
                tune = audio.to_channels(tune, model.channels)
            # The last window starts before the end of the music; a second more is for the resampler.
            window = max(model.window, model.conditioner.melody_frames * melody.HOP / model.sample_rate)
            reach = max(duration, window) + window + melody.N_FFT / model.sample_rate + 1
            if tune.shape[-1] > reach * rate:
                tune = tune[:, : math.ceil(reach * rate)]
            tune = audio.resample(separate(tune, rate) if separate else tune, rate, model.sample_rate)
            if not tune.mean(dim=0).any():  # the mean of the channels, from which chroma is computed
                raise ValueError(
                    "the melody is silent once its channels are averaged: check the recording, "
                    "give one channel, or leave the melody out"
                )
        melodies.append(tune)
    return melodies


def no_melody(model: Model) -> str:
    """The message for a melody where the model takes none."""
    return f"the model {model.name!r} takes no melody; nano, melody, melody-large and stereo-melody do"


def window_chroma(model: Model, melodies: Sequence[Tensor | None], start: int, several: bool) -> Tensor:
    """Chroma [B, F, 12] of the window at frame `start`, in a piece of `several` windows or one.

    The melody plays in a loop; a window gets the part that plays from its own start.
    """
    length, past = model.conditioner.melody_frames, start * model.codec.config.hop
    assert length is not None
    null = melody.one_hot(torch.zeros(length, dtype=torch.long))
    rows = []
    for tune in melodies:
        if tune is None:
            rows.append(null)
        elif _is_chroma(tune):
            rows.append(melody.rotate(tune.T, round(past / melody.HOP), length).T)
        else:
            if several or start:
                tune = melody.rotate(tune, past, round(model.window * model.sample_rate))
            rows.append(melody.one_hot(melody.classes(tune, model.sample_rate, length)))
    return torch.stack(rows)


# --- single arguments -------------------------------------------------------------------------------------


def parse_seeds(seed: int | Sequence[int] | None, batch: int) -> list[int]:
    """One seed for each sample: `seed` + i, the given ones, or random ones from torch's global generator.

    Raises:
        ValueError: not an integer, out of torch's range, or another number of seeds.
    """
    if seed is None:
        return torch.randint(2**31, (batch,)).tolist()
    try:
        try:
            seeds = [operator.index(seed) + i for i in range(batch)]  # type: ignore[arg-type]
        except TypeError:
            seeds = [operator.index(value) for value in seed]  # type: ignore[union-attr]
    except TypeError:
        raise ValueError(f"the seed is {brief(seed)}; it must be an integer, or a list of integers") from None
    if len(seeds) != batch:
        raise ValueError(
            f"there are {len(seeds)} seeds for {batch} samples; give one integer, or one for each sample"
        )
    if not all(0 <= value < 2**63 for value in seeds):
        raise ValueError(f"the seed is {brief(seed)}; it must be an integer from 0 to 2^63 - 1")
    return seeds


def parse_waves(waves: Waves, batch: int, what: str, melodies: bool = False) -> list[Tensor | None]:
    """A wave [C, N] for each sample; a single one serves all.

    With `melodies`, chroma [F, 12] (or [B, F, 12]) and pitch classes int64 [F] (or [B, F]) are allowed too,
    which become chroma, and None for no melody.

    Raises:
        ValueError: not a wave, not a melody, or another number of them.
    """
    if not isinstance(waves, list | tuple):
        batched = 2 if melodies and _is_pitch_classes(waves) else 3
        waves = list(waves) if getattr(waves, "ndim", 0) == batched else [waves]  # type: ignore[list-item, arg-type]
    parsed: list[Tensor | None] = []
    for wave in waves:
        if melodies and _is_pitch_classes(wave):
            parsed.append(melody.one_hot(melody.parse_classes(wave, what)))
        elif melodies and _is_chroma(wave):
            parsed.append(melody.parse_chroma(torch.as_tensor(wave), what))
        elif melodies and isinstance(wave, str):
            raise ValueError(
                f"{what} is the text {brief(wave)}; melody.chords makes chroma of chord names, "
                "and audio.read a wave of a file"
            )
        else:
            parsed.append(None if wave is None and melodies else audio.as_wave(wave, what, audio.CHANNELS))
    if len(parsed) == 1:
        parsed *= batch
    if len(parsed) != batch:
        raise ValueError(
            f"{what} has {len(parsed)} entries for {batch} samples; give one, or one for each sample"
        )
    return parsed


def _is_pitch_classes(tune: object) -> bool:
    """Whether these are integers as from `melody.classes`; audio in integers has fewer bits."""
    return isinstance(tune, Tensor) and tune.dtype == torch.int64


def _is_chroma(tune: object) -> bool:
    """Whether this is chroma [F, 12]: nobody's melody is a wave of 12 samples."""
    return isinstance(tune, Tensor | np.ndarray) and tune.ndim == 2 and tune.shape[1] == 12
