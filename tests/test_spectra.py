"""Spectra agree with librosa and treat the rows of a batch separately."""

import librosa
import torch
from tiny import RATE, noise, tune

from mgkit.spectra import mel_power, stft


def test_mel_power_agrees_with_librosa() -> None:
    wave = tune(1.0)[0] + 0.01 * noise(RATE)
    expected = librosa.feature.melspectrogram(y=wave.numpy(), sr=RATE, n_fft=2048, hop_length=512, n_mels=64)
    power = mel_power(wave, RATE, n_fft=2048, hop=512, bands=64)
    torch.testing.assert_close(power, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_a_spectrum_does_not_depend_on_the_batch() -> None:
    waves = noise(2, 3, 5000)
    spectrum = stft(waves, 512, 128)
    assert spectrum.shape == (2, 3, 257, 1 + 5000 // 128)
    torch.testing.assert_close(spectrum[1, 2], stft(waves[1, 2], 512, 128))
