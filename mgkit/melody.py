"""What MusicGen hears of a melody: one pitch class out of twelve, 7.8 times a second (arXiv:2306.05284, section 2.3).

Letters: B batch, C channels, N samples, F chroma frames.

    wave [C, N] -> (stems) -> power spectrum -> 12 pitch classes [12, F] -> the loudest of each frame, F classes
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

N_FFT = 16384  # samples; also the window
HOP = 4096  # samples
PITCH_CLASSES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")

Separate = Callable[[Tensor, int], Tensor]
"""Takes a wave [C, N] and its rate, returns the wave [C, N] of the stems that carry the melody."""


def chroma(wave: Tensor, rate: int) -> Tensor:
    """Energy of the 12 pitch classes [12, F], C first, each frame's largest 1; F = 1 + N // HOP.

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
    return F.normalize(_filters(rate).to(wave.device) @ power, p=float("inf"), dim=0, eps=1e-6)


def classes(wave: Tensor, rate: int, frames: int) -> Tensor:
    """Loudest pitch class [frames] (0 is C) of each frame of `wave` [C, N]; a short melody repeats, a long one is cut.

    Silence is class 0, which is what the models were trained to take for "no melody".
    """
    heard = chroma(wave, rate).argmax(dim=0)
    return heard.repeat(-(-frames // len(heard)))[:frames]


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
