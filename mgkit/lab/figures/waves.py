"""Plots of audio: waveforms, mel spectrograms, chromagrams.

Axes: C channels, N samples, F chroma frames.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mgkit.lab.drawing import (
    ACCENT,
    BANDS,
    FLOOR,
    LOUD,
    MEL_HOP,
    MORE,
    N_FFT,
    Picture,
    draw_wave,
    mel_power,
    new_picture,
    one_seam_each,
    set_title,
    to_samples,
)
from mgkit.melody import HOP, PITCH_CLASSES
from mgkit.spectra import mel_filters


def waveform(wave: Tensor | np.ndarray, rate: int, title: str = "", seam: float | None = None) -> Picture:
    """Waveform of [C, N] over seconds, one row per channel, full scale ±1.

    A dashed line marks `seam`, the end of an audio prompt in seconds. Raises: as `player`.
    """
    samples = to_samples(wave)
    figure = new_picture(1.0 + 0.9 * len(samples), f"waveform, {samples.shape[1] / rate:.2f} s", title)
    rows = figure.subplots(len(samples), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, channel in zip(rows, samples, strict=True):
        draw_wave(axes, channel, rate, seam)
    rows[-1].set_xlabel("seconds")
    return figure


def mel(
    items: Sequence[tuple[str, Tensor | np.ndarray]],
    rate: int,
    seam: float | Sequence[float | None] | None = None,
) -> Picture:
    """Mel spectrograms of (title, wave [C, N]), one row each, channels averaged, on one dB scale.

    0 dB is the maximum over all of them; -80 dB and below is white. `seam`, the end of an audio prompt in
    seconds, is one value for all waves or one for each. Raises: as `players`, and ValueError for no items.
    """
    if not items:
        raise ValueError("mel needs at least one (title, wave); got none")
    bands = mel_filters(rate, N_FFT, BANDS)
    powers = [mel_power(to_samples(wave), rate) for _, wave in items]
    top = max(float(power.max()) for power in powers) or 1.0
    figure = new_picture(
        0.6 + 1.5 * len(items), f"mel spectrograms: {', '.join(title for title, _ in items)}"
    )
    rows = figure.subplots(len(items), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, _), power, at in zip(rows, items, powers, one_seam_each(seam, len(items)), strict=True):
        decibels = 10 * torch.log10(power.clamp(min=1e-12) / top)
        edges = (0, power.shape[1] * MEL_HOP / rate, 0, len(bands))
        image = axes.imshow(decibels.numpy(), origin="lower", aspect="auto", cmap=LOUD, extent=edges)
        image.set_clim(-FLOOR, 0)
        set_title(axes, title)
        marks = [hertz for hertz in (250, 1000, 4000) if hertz < rate / 2]
        peaks = [int(bands[:, round(hertz * N_FFT / rate)].argmax()) for hertz in marks]
        axes.set_yticks(peaks, [f"{hertz} Hz" for hertz in marks])
        if at is not None:
            axes.axvline(at, color="black", linestyle="--", linewidth=1)
    rows[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=list(rows), label="dB", aspect=15 * len(items), pad=0.01)
    return figure


def chroma(items: Sequence[tuple[str, Tensor]], rate: int) -> Picture:
    """Chromagrams (title, chroma [12, F]), one row each, such as a melody and the music that follows it.

    `rate` (Hz) is the sampling rate of the audio; frames are mgkit.melody.HOP samples apart. A dot marks the
    strongest pitch class of each frame: this is what a melody model is conditioned on. Raises: ValueError for
    another shape or no items.
    """
    if not items:
        raise ValueError("chroma needs at least one (title, chroma [12, F]); got none")
    figure = new_picture(0.4 + 1.9 * len(items), f"chroma: {', '.join(title for title, _ in items)}")
    rows = figure.subplots(len(items), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, energy) in zip(rows, items, strict=True):
        if energy.ndim != 2 or len(energy) != 12:
            raise ValueError(f"expected chroma [12, F], got {list(energy.shape)}: see mgkit.melody.chroma")
        seconds = np.arange(energy.shape[1]) * HOP / rate
        edges = (seconds[0] - HOP / rate / 2, seconds[-1] + HOP / rate / 2, -0.5, 11.5)
        image = axes.imshow(energy.numpy(), origin="lower", aspect="auto", cmap=MORE, extent=edges)
        image.set_clim(0, 1)
        axes.plot(seconds, energy.argmax(dim=0).numpy(), ".", color=ACCENT, markersize=4)
        axes.set_yticks(range(12), PITCH_CLASSES, fontsize=7)
        set_title(axes, title)
    rows[-1].set_xlabel("seconds")
    label = "share of maximum"
    figure.colorbar(image, ax=list(rows), label=label, aspect=15 * len(items), pad=0.01)
    return figure
