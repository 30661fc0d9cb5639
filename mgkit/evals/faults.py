"""Faults that a listener hears before the music: hiss, clicks, offset, clipping, a note that does not end.

Axes: N samples.

None of them needs a reference; the values of renders are the scale to read them on.
"""

import numpy as np
import torch

from mgkit import melody
from mgkit.lab.pages import Table, shaded_table

Wave = np.ndarray
"""Mono samples [N], float32."""

SILENCE_DB = -100.0  # levels below count as this
WINDOW = 0.05  # seconds, of which the level is taken
QUIETEST = 0.05  # share of the windows that count as rests
FULL_SCALE = 0.999
FRAME = 0.02  # seconds, between which a codec could click

NAMES = {
    "level": "level, dBFS",
    "rests": "level in the quietest twentieth, dBFS",
    "clicks": "clicks at frames, dB above elsewhere",
    "offset": "constant offset, dBFS",
    "clipped": "clipped samples, per thousand",
    "longest": "longest note, s",
}


def faults(wave: Wave, rate: int) -> dict[str, float]:
    """The value of every one of NAMES for `wave` [N].

    Raises: ValueError for a wave of less than a second.
    """
    if len(wave) < rate:
        raise ValueError(f"the wave has {len(wave)} samples; at {rate} Hz a second or more is needed")
    size = round(WINDOW * rate)
    levels = decibel((wave[: len(wave) // size * size].reshape(-1, size) ** 2).mean(axis=1))
    return {
        "level": float(decibel((wave**2).mean())),
        "rests": float(np.quantile(levels, QUIETEST)),
        "clicks": frame_clicks(wave, rate),
        "offset": float(decibel(wave.mean() ** 2)),
        "clipped": float(1000 * (np.abs(wave) >= FULL_SCALE).mean()),
        "longest": longest_note(wave, rate),
    }


def decibel(power: np.ndarray) -> np.ndarray:
    """Mean squares in dB, no lower than SILENCE_DB."""
    return 10 * np.log10(np.maximum(power, 10 ** (SILENCE_DB / 10)))


def frame_clicks(wave: Wave, rate: int) -> float:
    """How much rougher `wave` [N] is at the borders of frames than elsewhere, in dB; 0 without clicks.

    Roughness is the mean absolute second difference; a step from one frame to the next raises it there.
    """
    rough, size = np.abs(np.diff(wave, 2)), round(FRAME * rate)
    near = (np.arange(len(rough)) + 1) % size <= 1
    return float(20 * np.log10((rough[near].mean() + 1e-9) / (rough[~near].mean() + 1e-9)))


def longest_note(wave: Wave, rate: int) -> float:
    """Longest time in seconds for which one pitch class is the strongest of `wave` [N]."""
    classes = melody.chroma(torch.from_numpy(wave)[None], rate).argmax(dim=0).numpy()
    borders = np.flatnonzero(np.diff(classes)) + 1
    runs = np.diff(np.concatenate([[0], borders, [len(classes)]]))
    return float(runs.max() * melody.HOP / rate)


def table(sets: dict[str, list[dict[str, float]]]) -> Table:
    """Each fault (rows) in every set of waves (columns): median, and 99th percentile in parentheses."""
    cells = []
    for name in NAMES:
        columns = [np.array([one[name] for one in found]) for found in sets.values()]
        cells.append([f"{np.median(column):.1f} ({np.quantile(column, 0.99):.1f})" for column in columns])
    plain = [[0.0] * len(sets)] * len(cells)
    return shaded_table(cells, plain, list(NAMES.values()), list(sets), "median (99th percentile)")
