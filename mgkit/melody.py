"""What MusicGen hears of a melody: one pitch class out of twelve, 7.8 times a second (arXiv:2306.05284, section 2.3).

Letters: B batch, C channels, N samples, F chroma frames.

    wave [C, N] -> (stems) -> power spectrum -> 12 pitch classes [12, F] -> the loudest of each frame, F classes
    wave [1, N] <- tones <- (edit) <- F classes
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

N_FFT = 16384  # samples; also the window
HOP = 4096  # samples
PITCH_CLASSES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")

Separate = Callable[[Tensor, int], Tensor]
"""Takes a wave [C, N] and its rate, returns the wave [C, N] of the stems that carry the melody."""


def chroma(wave: Tensor, rate: int) -> Tensor:
    """Energy of the 12 pitch classes [12, F], C first, each frame's largest 1, on the CPU; F = 1 + N // HOP.

    `wave` [C, N] is averaged over its channels; fewer than N_FFT samples are padded with silence on both sides.
    The same numbers as audiocraft's ChromaExtractor and transformers' MusicgenMelodyFeatureExtractor.
    """
    wave = wave.float().mean(dim=0)
    short = max(0, N_FFT - wave.shape[-1])
    wave = F.pad(wave, (short // 2, short - short // 2))
    window = torch.hann_window(N_FFT, device=wave.device)
    spectrum = torch.stft(
        wave, N_FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    power = (spectrum / window.pow(2).sum().sqrt()).abs().pow(2)
    return F.normalize(_filters(rate).to(wave.device) @ power, p=float("inf"), dim=0, eps=1e-6).cpu()


def classes(wave: Tensor, rate: int, frames: int) -> Tensor:
    """Loudest pitch class [frames] (0 is C) of each frame of `wave` [C, N]; a short melody repeats, a long one is cut.

    Silence is class 0, which is what the models were trained to take for "no melody".
    """
    heard = chroma(wave, rate).argmax(dim=0)
    return heard.repeat(-(-frames // len(heard)))[:frames]


def check(classes: Tensor, what: str = "the melody") -> Tensor:
    """`classes` [F] as int64. Errors: ValueError for fractions, another shape, none, or others than 0 (C) to 11 (B)."""
    if classes.is_floating_point() or classes.dim() != 1 or len(classes) == 0:
        raise ValueError(
            f"{what} has {classes.dtype} values of shape {list(classes.shape)}; pitch classes are whole numbers [frames]"
        )
    if classes.min() < 0 or classes.max() > 11:
        raise ValueError(
            f"{what} runs from {classes.min()} to {classes.max()}; pitch classes run from 0 (C) to 11 (B), and sound is "
            "given as floats from -1 to 1"
        )
    return classes.detach().cpu().long()


def edit(classes: Tensor, to: str, start: float, end: float, rate: int) -> Tensor:
    """A copy of `classes` [F] with the pitch class named `to` in the frames from `start` to before `end`, in seconds.

    `rate` is that of the waves that they are of, which sets the time of a frame, HOP / rate.
    Errors: ValueError for a name that is not in PITCH_CLASSES (# may stand for ♯), and those of `check`.

    >>> edit(torch.zeros(6, dtype=torch.long), "F#", 0.2, 0.5, 32000)
    tensor([0, 0, 6, 6, 0, 0])
    """
    name = to.replace("#", "♯")
    if name not in PITCH_CLASSES:
        raise ValueError(f"{to!r} is no pitch class; they are {', '.join(PITCH_CLASSES)}")
    edited = check(classes).clone()
    seconds = torch.arange(len(edited)) * HOP / rate
    edited[(seconds >= start) & (seconds < end)] = PITCH_CLASSES.index(name)
    return edited


def tones(classes: Tensor, rate: int) -> Tensor:
    """Wave [1, (F - 1) * HOP] that plays `classes` [F] as Shepard tones: a pitch class in all octaves, and so in none.

    `classes` of the wave are those that it plays, as far as they last two frames or more. Each tone fades in and out
    in 16 ms at 32 kHz, so that nothing clicks. Errors: ValueError for a single frame, which lasts no time, and those
    of `check`.
    """
    if len(classes) == 1:
        raise ValueError("one frame is a moment without length; give at least two to hear")
    part = HOP // 8  # samples; the step in which tones fade
    sounding = one_hot(check(classes)).T.repeat_interleave(8, dim=1)[
        :, 4:-4
    ]  # frame 0 is centred on sample 0
    sounding[:, :1] = sounding[:, -1:] = 0
    gates = F.interpolate(sounding[None], scale_factor=part, mode="linear")[0]
    gates = gates * gates * (3 - 2 * gates)  # no corner where a fade begins or ends
    seconds = (
        torch.arange(gates.shape[1], dtype=torch.float64) / rate
    )  # float32 would hiss after a few seconds
    wave = torch.zeros(1, gates.shape[1])
    for pitch in classes.unique().tolist():
        for octave in range(2, 7):
            hertz = 440 * 2 ** ((pitch - 9) / 12 + octave - 4)
            bell = math.exp(-0.5 * math.log2(hertz / 440) ** 2)
            wave += 0.2 * bell * gates[pitch] * torch.sin(2 * math.pi * hertz * seconds).float()
    return wave


class Follows(NamedTuple):
    """How far music follows a melody, each from 0 to 1, and what chance would give."""

    share: float  # of the frames whose loudest pitch class is the one told
    cosine: float  # mean, of the energy of the twelve pitch classes with the one told
    chance_share: float  # were the frames of the two paired at random
    chance_cosine: float


def follows(wave: Tensor, rate: int, told: Tensor) -> Follows:
    """How far `wave` [C, N] follows the pitch classes `told` [F], frame by frame up to the end of the shorter.

    Chance is not 1 in 12: a tune that rests on one note is often met by accident. Errors: those of `check`.
    """
    energy = chroma(wave, rate)
    frames = min(energy.shape[1], len(told))
    unit = F.normalize(energy[:, :frames], dim=0)
    loudest = one_hot(energy[:, :frames].argmax(dim=0)).T
    target = one_hot(check(told)[:frames]).T
    met = [float((heard * target).sum(dim=0).mean()) for heard in (loudest, unit)]
    chance = [float(heard.mean(dim=1) @ target.mean(dim=1)) for heard in (loudest, unit)]
    return Follows(*met, *chance)


def one_hot(classes: Tensor) -> Tensor:
    """Grid [..., F, 12] of classes [..., F]: what the model is given."""
    return F.one_hot(classes, 12).float()


def rotate(wave: Tensor, start: int, samples: int) -> Tensor:
    """The `samples` that follow sample `start` of `wave` [C, N] played in a loop, [C, samples]."""
    return wave[:, (start + torch.arange(samples, device=wave.device)) % wave.shape[-1]]


def demucs(device: str = "cpu") -> Separate:
    """Stem separation by torchaudio's HDemucs: drums and bass taken out, so that chroma follows voice and melody.

    Downloads its weights (about 330 MB) on first use. Errors: RuntimeError in one sentence where torchaudio or
    the weights cannot be had.
    """
    try:
        from torchaudio.functional import resample
        from torchaudio.pipelines import HDEMUCS_HIGH_MUSDB_PLUS as bundle

        model = bundle.get_model().to(device).eval()
    except Exception as error:  # torchaudio beside another torch raises ImportError, OSError or RuntimeError
        raise RuntimeError(
            f"stem separation needs torchaudio with its HDemucs weights, which could not be loaded ({error}); "
            "pass the melody as it is, or a recording of the melody alone"
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


@lru_cache
def _filters(rate: int) -> Tensor:
    """Weights [12, N_FFT / 2 + 1] that sum a power spectrum into pitch classes, tuned to A = 440 Hz."""
    from librosa.filters import chroma as chroma_filters

    return torch.from_numpy(chroma_filters(sr=rate, n_fft=N_FFT, tuning=0, n_chroma=12)).float()
