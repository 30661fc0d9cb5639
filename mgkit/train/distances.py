"""Distances between sounds: mel spectra at several resolutions, onsets, and the waveform itself.

Axes: N samples; mels and frames are the axes of a mel spectrum.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.spectra import stft

SHORT, LONG = (256, 512, 1024), (2048, 4096)  # samples; the long windows resolve the partials of a note
WINDOWS = SHORT + LONG  # of the spectra that are compared
FINE_HZ = 6000  # single bins are compared below it
FLOOR_DB = -80.0  # a band below this counts as silent; a full-scale sine is 0 dB
GAP_DB, AUDIBLE_DB = (
    30.0,
    -50.0,
)  # how far a gap is below the partials around it, and how loud these are at least
ONSET_BANDS = 8  # groups of mel bands in which onsets are compared
QUIET = 1e-7  # mean square at which a waveform counts as silence: -70 dBFS


@lru_cache
def _mel_filters(rate: int, window: int, device: torch.device) -> Tensor:
    """Filters [mels, window / 2 + 1] that average: a full-scale sine has magnitude 1 or so in its band."""
    from librosa.filters import mel

    filters = torch.from_numpy(mel(sr=rate, n_fft=window, n_mels=min(160, window // 16), norm=None)).float()
    filters = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-8)
    return (filters * (2 / torch.hann_window(window).sum())).to(device)


def mel_spectrum(wave: Tensor, rate: int, window: int) -> Tensor:
    """Magnitudes [..., mels, frames] of `wave` [..., N] in mel bands; about 1 for a full-scale sine."""
    return _mel_filters(rate, window, wave.device) @ stft(wave, window, window // 4).abs()


def decibel(magnitudes: Tensor) -> Tensor:
    """Magnitudes in dB, no lower than FLOOR_DB."""
    return 20 * magnitudes.clamp(min=10 ** (FLOOR_DB / 20)).log10()


def mel_distances(a: Tensor, b: Tensor, rate: int, windows: Sequence[int] = WINDOWS) -> tuple[Tensor, Tensor]:
    """How far the waves [..., N] are apart: mean |difference| in dB, and mean |difference| of magnitudes over
    mean magnitude; both are means over the mel spectra of all `windows`."""
    found = [spectral_losses(a, b, rate, window) for window in windows]
    return torch.stack([f["mel_db"] for f in found]).mean(), torch.stack([f["linear"] for f in found]).mean()


def spectral_losses(a: Tensor, b: Tensor, rate: int, window: int) -> dict[str, Tensor]:
    """Distances of the waves [..., N] from one spectrogram of each.

    mel_db   mean |difference| in dB of mel magnitudes
    linear   mean |difference| of mel magnitudes over their mean
    onset    mean |difference| in dB of the rise from frame to frame, in ONSET_BANDS groups of mel bands
    fine     mean |difference| in dB of the single bins below FINE_HZ: it separates partials from the noise
             between them, which fall into one mel band; only for windows that resolve partials
    steady   mean |difference| in dB of single bins averaged over the wave: it hears what sounds all the time,
             as a hum or a comb of lines where the music has noise; only for the same windows
    """
    magnitudes = [stft(wave, window, window // 4).abs() for wave in (a, b)]
    filters = _mel_filters(rate, window, a.device)
    x, y = (filters @ magnitude for magnitude in magnitudes)
    logs = [decibel(mels) for mels in (x, y)]
    rises = [_rise(log) for log in logs]
    found = {
        "mel_db": (logs[0] - logs[1]).abs().mean(),
        "linear": (x - y).abs().mean() / x.mean().clamp(min=1e-4),
        "onset": (rises[0] - rises[1]).abs().mean(),
    }
    if window in LONG:
        scale, bins = 4 / window, window * FINE_HZ // rate
        fine = [decibel(magnitude[..., 1:bins, :] * scale) for magnitude in magnitudes]
        found["fine"] = (fine[0] - fine[1]).abs().mean()
        steady = [
            decibel((magnitude * scale).pow(2).mean(dim=-1).clamp(min=1e-12).sqrt())
            for magnitude in magnitudes
        ]
        found["steady"] = (steady[0] - steady[1]).abs().mean()
    return found


def _rise(log: Tensor) -> Tensor:
    """Mean rise in dB [..., ONSET_BANDS, frames - 1] of groups of mel bands from one frame to the next."""
    bands = log[..., : log.shape[-2] // ONSET_BANDS * ONSET_BANDS, :]
    rise = (bands[..., 1:] - bands[..., :-1]).clamp(min=0)
    return rise.unflatten(-2, (ONSET_BANDS, -1)).mean(dim=-2)


def si_sdr(reference: Tensor, wave: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio [...] in dB of `wave` [..., N] (arXiv:1811.02508)."""
    scale = (wave * reference).sum(-1, keepdim=True) / reference.pow(2).sum(-1, keepdim=True).clamp(min=1e-8)
    target = scale * reference
    return (
        10 * (target.pow(2).sum(-1) / (wave - target).pow(2).sum(-1).clamp(min=1e-8)).clamp(min=1e-8).log10()
    )


def noise_level(reference: Tensor, wave: Tensor) -> Tensor:
    """Level [...] of the error of `wave` [..., N] against `reference` in dB: minus the signal-to-noise ratio;
    of a silent reference the level above silence."""
    error = (wave - reference).pow(2).mean(-1)
    return 10 * ((error + QUIET) / (reference.pow(2).mean(-1) + QUIET)).log10()


def onset_correlation(reference: Tensor, wave: Tensor, rate: int) -> float:
    """Mean correlation of the onset strength of the waves [B, N] with that of their references."""
    from librosa.onset import onset_strength

    found = []
    for a, b in zip(reference, wave, strict=True):
        strengths = torch.stack(
            [torch.from_numpy(onset_strength(y=x.float().cpu().numpy(), sr=rate)) for x in (a, b)]
        )
        found.append(F.cosine_similarity(*(s - s.mean() for s in strengths), dim=0))
    return float(torch.stack(found).mean())


def noise_between_partials(reference: Tensor, wave: Tensor, rate: int) -> float:
    """Mean level in dB of `wave` [B, N] above its `reference` in the gaps between the partials of notes.

    A gap is a bin below FINE_HZ in which the reference is GAP_DB or more below its loudest bin within 100 Hz,
    if that one is audible. Meant for solo instruments: several notes at once leave few gaps. 0 without gaps.
    """
    window = LONG[-1]
    bins, reach = window * FINE_HZ // rate, window * 100 // rate
    levels = [
        decibel(stft(x, window, window // 4)[:, 1:bins].abs() * (4 / window)) for x in (reference, wave)
    ]
    columns = levels[0].transpose(1, 2)
    loudest = F.max_pool1d(columns, 2 * reach + 1, 1, reach).transpose(1, 2)
    gaps = (levels[0] < loudest - GAP_DB) & (loudest > AUDIBLE_DB)
    return float((levels[1] - levels[0])[gaps].mean()) if gaps.any() else 0.0
