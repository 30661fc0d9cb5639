"""Melody conditioning: a wave to 7.8 pitch classes per second (MusicGen, arXiv:2306.05284, section 2.3).

Axes: C channels, N samples, F chroma frames.

    wave [C, N] -> (stems) -> STFT -> chroma [12, F] -> argmax -> classes [F] -> one-hot [F, 12] -> model
    wave [1, N] <- tones <- (edit) <- classes [F]
    "C G A:min F" -> chords -> multi-hot [F, 12] -> model
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.brief import brief
from mgkit.chords import Progression, parse_progression
from mgkit.spectra import stft

N_FFT = 16384  # samples, also the window length
HOP = 4096  # samples
PITCH_CLASSES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")

Separate = Callable[[Tensor, int], Tensor]
"""Stem separation: a wave [C, N] and its sample rate to the wave [C, N] of the stems with the melody."""


def chroma(wave: Tensor, rate: int) -> Tensor:
    """Chroma [12, F] of `wave` [C, N] on the CPU: energy per pitch class from C to B, F = 1 + N // HOP.

    Channels are averaged, each frame is scaled to a maximum of 1, and a wave shorter than N_FFT is padded
    with silence on both sides. Source: audiocraft, `ChromaExtractor`; the same in transformers,
    `MusicgenMelodyFeatureExtractor`.
    """
    wave = wave.float().mean(dim=0)
    short = max(0, N_FFT - wave.shape[-1])
    wave = F.pad(wave, (short // 2, short - short // 2))
    window = torch.hann_window(N_FFT, device=wave.device, dtype=wave.dtype)
    power = (stft(wave, N_FFT, HOP) / window.pow(2).sum().sqrt()).abs().pow(2)
    return F.normalize(
        chroma_filters(rate, N_FFT).to(wave.device) @ power, p=float("inf"), dim=0, eps=1e-6
    ).cpu()


@lru_cache
def chroma_filters(rate: int, n_fft: int) -> Tensor:
    """Chroma filterbank [12, n_fft / 2 + 1], tuned to A = 440 Hz (librosa)."""
    from librosa.filters import chroma as filters

    return torch.from_numpy(filters(sr=rate, n_fft=n_fft, tuning=0, n_chroma=12)).float()


def classes(wave: Tensor, rate: int, frames: int) -> Tensor:
    """Strongest pitch class [frames] per chroma frame of `wave` [C, N], 0 = C.

    A short melody repeats, a long one is cut. Silence is class 0, which the models know as the null melody.
    """
    detected = chroma(wave, rate).argmax(dim=0)
    return detected.repeat(-(-frames // len(detected)))[:frames]


def one_hot(classes: Tensor) -> Tensor:
    """One-hot chroma [..., F, 12] of classes [..., F], the model's input."""
    return F.one_hot(classes, 12).float()


def parse_classes(classes: Tensor, name: str = "the melody") -> Tensor:
    """`classes` [F] as int64 on the CPU; `name` is for error messages.

    Raises: ValueError for floats, another shape, no frames, or values outside 0 (C) to 11 (B).
    """
    if classes.is_floating_point() or classes.dim() != 1 or len(classes) == 0:
        raise ValueError(
            f"{name} has {classes.dtype} values of shape {list(classes.shape)}; "
            "pitch classes must be integers [frames]"
        )
    if classes.min() < 0 or classes.max() > 11:
        raise ValueError(
            f"{name} has values from {classes.min()} to {classes.max()}; "
            "pitch classes are 0 (C) to 11 (B), and audio samples must be floats from -1 to 1"
        )
    return classes.detach().cpu().long()


def chords(
    progression: Progression,
    bpm: float = 120,
    beats: float = 4,
    seconds: float | None = None,
    rate: int = 32000,
) -> Tensor:
    """Multi-hot chroma [F, 12] of a chord progression: 1 for each pitch class of the chord that sounds.

    `progression` is a text of chord names in Harte's notation (`mgkit.chords`), each lasting `beats` beats at
    `bpm` beats a minute, which repeats until `seconds` if they are given; or a list of times and names,
    [(0, "C"), (2, "A:min")], whose last chord ends at `seconds`. A frame takes the chord at its centre,
    HOP / `rate` seconds after the previous one. "N", no chord, is pitch class 0, as silence is.

    The published melody models were trained on one pitch class per frame; that they follow several was found
    by MusicGen-Chord (arXiv:2412.00325).

    Raises: ValueError for an invalid chord, with its position, invalid times, or a chord that lasts less than
    a frame.

    >>> chords("C A:min", bpm=120, beats=1).shape, chords([(0, "C"), (0.5, "A:min")], seconds=1).shape
    (torch.Size([8, 12]), torch.Size([8, 12]))
    """
    parts, length = parse_progression(progression, bpm, beats, seconds, shortest=HOP / rate)
    rows = torch.tensor([[float(pitch in notes) for pitch in range(12)] for _, notes in parts])
    frames = math.ceil(round((seconds or length) * rate / HOP, 6))
    starts, times = [start for start, _ in parts], [i * HOP / rate % length for i in range(frames)]
    # a chord that starts at a frame's centre must not miss it by rounding
    return rows[[bisect_right(starts, time + 1e-9) - 1 for time in times]]


def parse_chroma(chroma: Tensor, name: str = "the chroma") -> Tensor:
    """`chroma` [F, 12] as float32 on the CPU; `name` is for error messages.

    Raises: ValueError for no frames, or values other than 0 and 1.
    """
    if chroma.dim() != 2 or len(chroma) == 0 or chroma.shape[1] != 12:
        raise ValueError(f"{name} has shape {list(chroma.shape)}; chroma must be [frames, 12]")
    chroma = chroma.detach().cpu().float()
    if not ((chroma == 0) | (chroma == 1)).all():
        raise ValueError(
            f"{name} has values other than 0 and 1; mark the pitch classes that sound, as in (chroma > 0.5)"
        )
    return chroma


def edit(classes: Tensor, to: str, start: float, end: float, rate: int) -> Tensor:
    """Copy of `classes` [F] with the pitch class `to`, such as F♯ or F#, from `start` to `end` seconds.

    A frame lasts HOP / `rate` seconds, at the sample rate of the model; the one at `end` is not changed.

    Raises: ValueError for an unknown pitch class or invalid `classes`.

    >>> edit(torch.zeros(6, dtype=torch.long), "F#", 0.2, 0.5, 32000)
    tensor([0, 0, 6, 6, 0, 0])
    """
    name = to.replace("#", "♯")
    if name not in PITCH_CLASSES:
        raise ValueError(f"{brief(to)} is not a pitch class; choose one of {', '.join(PITCH_CLASSES)}")
    edited = parse_classes(classes).clone()
    seconds = torch.arange(len(edited)) * HOP / rate
    edited[(seconds >= start) & (seconds < end)] = PITCH_CLASSES.index(name)
    return edited


def tones(classes: Tensor, rate: int) -> Tensor:
    """Wave [1, (F - 1) * HOP] of `classes` [F] as Shepard tones: each class sounds in five octaves at once.

    The function `classes` detects them in this wave again, if each note lasts at least two frames. Each tone
    fades in and out to avoid clicks, in 16 ms at 32 kHz.

    Raises: ValueError for a single frame, which has no duration, or invalid `classes`.
    """
    if len(classes) == 1:
        raise ValueError("a melody of one frame has no duration; give at least two frames")
    part = HOP // 8  # samples per fade
    # frame 0 is centred on sample 0
    sounding = one_hot(parse_classes(classes)).T.repeat_interleave(8, dim=1)[:, 4:-4]
    sounding[:, :1] = sounding[:, -1:] = 0
    gates = F.interpolate(sounding[None], scale_factor=part, mode="linear")[0]
    # smoothstep: no corner where a fade begins or ends
    gates = gates * gates * (3 - 2 * gates)
    # in float32 the phase would become audible noise after a few seconds
    seconds = torch.arange(gates.shape[1], dtype=torch.float64) / rate
    wave = torch.zeros(1, gates.shape[1], dtype=torch.float32)
    for pitch in classes.unique().tolist():
        for octave in range(2, 7):
            hertz = 440 * 2 ** ((pitch - 9) / 12 + octave - 4)
            bell = math.exp(-0.5 * math.log2(hertz / 440) ** 2)
            wave += 0.2 * bell * gates[pitch] * torch.sin(2 * math.pi * hertz * seconds).float()
    return wave


class Similarity(NamedTuple):
    """Similarity of music and a melody, each from 0 to 1."""

    accuracy: float  # share of frames whose strongest pitch class is the melody's
    cosine: float  # cosine similarity of chroma and one-hot melody, averaged over frames
    chance_accuracy: float  # expected accuracy if frames were paired at random
    chance_cosine: float  # expected cosine if frames were paired at random


def similarity(chroma: Tensor, classes: Tensor) -> Similarity:
    """Similarity of `chroma` [12, F] to the melody `classes` [F], over the frames of the shorter one.

    Compare with chance, which is not 1/12: a tune that rests on a few notes often agrees by accident.

    Raises: ValueError for invalid `classes`.
    """
    frames = min(chroma.shape[1], len(classes))
    chroma, melody = chroma[:, :frames], one_hot(parse_classes(classes)[:frames]).T
    strongest, unit = one_hot(chroma.argmax(dim=0)).T, F.normalize(chroma, dim=0)
    paired = [float((x * melody).sum(dim=0).mean()) for x in (strongest, unit)]
    chance = [float(x.mean(dim=1) @ melody.mean(dim=1)) for x in (strongest, unit)]
    return Similarity(*paired, *chance)


def rotate(wave: Tensor, start: int, samples: int) -> Tensor:
    """`samples` samples of `wave` [C, N] played in a loop from sample `start`."""
    return wave[:, (start + torch.arange(samples, device=wave.device)) % wave.shape[-1]]


def demucs(device: str = "cpu") -> Separate:
    """Stem separation with torchaudio's HDemucs: removes drums and bass, so that chroma follows the melody.

    Downloads its weights (about 330 MB) on first use.

    Raises: RuntimeError if torchaudio or the weights are not available.
    """
    try:
        from torchaudio.functional import resample
        from torchaudio.pipelines import HDEMUCS_HIGH_MUSDB_PLUS as bundle

        model = bundle.get_model().to(device).eval()
    # with another version of torch, importing torchaudio raises any of these; so does a failed download
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"stem separation needs torchaudio and its HDemucs weights, which could not be loaded ({error}); "
            "use the melody as it is, or a recording of the melody alone"
        ) from error
    keep = [model.sources.index(name) for name in ("vocals", "other")]

    @torch.no_grad()
    def separate(wave: Tensor, rate: int) -> Tensor:
        stereo = resample(wave.expand(2, -1) if wave.shape[0] == 1 else wave, rate, bundle.sample_rate)
        centre, scale = stereo.mean(), stereo.std() + 1e-8
        stems = model(((stereo - centre) / scale)[None].to(device))[0, keep].sum(dim=0)
        stems = resample(stems.cpu() * scale + centre * len(keep), bundle.sample_rate, rate)
        return F.pad(stems, (0, max(0, wave.shape[-1] - stems.shape[-1])))[:, : wave.shape[-1]]

    return separate
