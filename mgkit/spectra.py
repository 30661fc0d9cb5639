"""Spectra of waves: the short-time Fourier transform and its sums in mel bands.

Axes: N samples, T = 1 + N // hop frames, M mel bands.
"""

from functools import lru_cache

import torch
from torch import Tensor


def stft(wave: Tensor, n_fft: int, hop: int, pad_mode: str = "reflect") -> Tensor:
    """Complex spectrogram [..., n_fft / 2 + 1, T] of `wave` [..., N] in centred Hann windows."""
    window = torch.hann_window(n_fft, device=wave.device, dtype=wave.dtype)
    flat = wave.reshape(-1, wave.shape[-1])
    spectrum = torch.stft(flat, n_fft, hop, window=window, pad_mode=pad_mode, return_complex=True)
    return spectrum.view(*wave.shape[:-1], *spectrum.shape[-2:])


@lru_cache
def mel_filters(rate: int, n_fft: int, bands: int) -> Tensor:
    """Mel filterbank [M, n_fft / 2 + 1] of triangles of equal area (librosa's default, after Slaney)."""
    from librosa.filters import mel

    return torch.from_numpy(mel(sr=rate, n_fft=n_fft, n_mels=bands))


def mel_power(wave: Tensor, rate: int, n_fft: int, hop: int, bands: int) -> Tensor:
    """Mel power spectrogram [..., M, T] of `wave` [..., N]; as librosa, it pads with zeros."""
    return mel_filters(rate, n_fft, bands).to(wave.device) @ stft(wave, n_fft, hop, "constant").abs().pow(2)
