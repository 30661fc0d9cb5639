"""Rendering: a `Piece` to audio by a sound font, with light reverberation and a fixed loudness.

    track -> sound font -> level for its role -> sum -> reverb -> gain -> soft limiter -> mix  [N] float32

The melody track, without reverberation but with the same gain, is returned beside the mix.
"""

from __future__ import annotations

import functools
import math
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgkit.band.piece import Piece, Track
from mgkit.band.styles import STYLES

if TYPE_CHECKING:
    import tinysoundfont

RATE = 32000  # Hz
LEVELS = {
    "melody": 0.0,
    "chords": -11.5,
    "bass": -9.0,
    "pad": -19.0,
    "drums": -7.0,
}  # dB relative to the melody
LOUDNESS = -16.0  # dBFS, RMS of the mix
KNEE, PEAK = 0.7, 0.97  # threshold and ceiling of the limiter, amplitudes

SOUNDFONTS = {
    "fluidr3mono": ("FluidR3Mono_GM.sf3", "fluidr3mono-gm-soundfont"),
    "musescore": ("MuseScore_General_Lite.sf3", "musescore-general-soundfont-small"),
}


def find_soundfont(name: str = "fluidr3mono") -> Path:
    """Path of a sound font: 'fluidr3mono' plays all training audio, 'musescore' is reserved for evaluation.

    The folder is Debian's, or the value of the environment variable MGKIT_SOUNDFONTS.

    Raises: FileNotFoundError with the package to install; ValueError for an unknown name.
    """
    if name not in SOUNDFONTS:
        raise ValueError(f"unknown soundfont {name!r}; choose from {', '.join(SOUNDFONTS)}")
    file, package = SOUNDFONTS[name]
    path = Path(os.environ.get("MGKIT_SOUNDFONTS", "/usr/share/sounds/sf3")) / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; install it with: sudo apt-get install {package}")
    return path


def processes(workers: int | None = None) -> ProcessPoolExecutor:
    """A pool of rendering processes, one per core by default; each decodes its soundfont once."""
    return ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn"))


def render(
    piece: Piece, *, seconds: float = 10.0, rate: int = RATE, soundfont: str | Path = "fluidr3mono"
) -> tuple[np.ndarray, np.ndarray]:
    """(mix, melody), mono float32 [seconds * rate] each: the piece with reverberation; its melody alone, dry.

    The mix has an RMS of about -16 dBFS and peaks below 0.98; the melody has the level it has in the mix.
    `soundfont` is a name (see `find_soundfont`) or a file.

    Raises: FileNotFoundError or ImportError with the package to install.
    """
    path = soundfont if isinstance(soundfont, Path) else find_soundfont(soundfont)
    samples = round(seconds * rate)
    room = STYLES[piece.style].room
    melody, mix = np.zeros(samples, np.float32), np.zeros(samples, np.float32)
    for track in piece.tracks:
        if not track.notes:
            continue
        stem = _render_track(track, samples, rate, path)
        stem *= 0.1 * 10 ** (LEVELS[track.role] / 20) / _active_rms(stem, rate)
        mix += stem
        if track.is_melody:
            melody = stem
    size = 1 << (samples + round(room * rate)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(mix, size) * _room_spectrum(room, rate, size), size)[:samples]
    mix = mix + np.float32(0.12 + 0.06 * room) * wet.astype(np.float32)
    gain = 10 ** (LOUDNESS / 20) / (math.sqrt(np.square(mix, dtype=np.float64).mean()) + 1e-9)
    gain = min(gain, 1.6 / (np.abs(mix).max() + 1e-9))
    mix, melody = mix * np.float32(gain), melody * np.float32(gain)
    return _limit(mix), _limit(melody)


def require_synthesizer(soundfont: str) -> None:
    """Load the synthesizer with this sound font. Raises: as `render`."""
    _synthesizer(find_soundfont(soundfont), RATE)


@functools.lru_cache(maxsize=2)
def _synthesizer(path: Path, rate: int) -> tuple[tinysoundfont.Synth, int]:
    """(synthesizer, sound font id), cached because loading takes longer than playing."""
    try:
        import tinysoundfont
    except ImportError as error:
        raise ImportError(
            "rendering needs tinysoundfont; install it with: pip install --no-deps tinysoundfont==0.3.7"
        ) from error
    synth = tinysoundfont.Synth(gain=-6.0, samplerate=rate)
    return synth, synth.sfload(str(path))


def _render_track(track: Track, samples: int, rate: int, path: Path) -> np.ndarray:
    """One track alone, dry, at the sound font's own level. float32 [samples]."""
    synth, font = _synthesizer(path, rate)
    synth.soundfonts[font].reset()
    # Notes of the previous track fade within 10 ms of a reset: discard 100 ms.
    synth.generate_simple(rate // 10)
    synth.program_select(0, font, 128 if track.percussion else 0, track.program, track.percussion)
    events = []
    for start, duration, pitch, velocity in track.notes:
        events.append((round(start * rate), 1, pitch, velocity))
        events.append((round((start + duration) * rate), 0, pitch, 0))
    stereo = np.zeros((samples, 2), np.float32)
    now = 0
    # Sorted, note-off (0) precedes note-on (1) at the same sample, so a repeated pitch is struck again.
    for at, on, pitch, velocity in sorted(events):
        at = min(at, samples)
        if at > now:
            synth.generate_simple(at - now, stereo[now:at].data.cast("B"))
            now = at
        if now == samples:
            break
        if on:
            synth.noteon(0, pitch, velocity)
        else:
            synth.noteoff(0, pitch)
    if now < samples:
        synth.generate_simple(samples - now, stereo[now:].data.cast("B"))
    return stereo.mean(axis=1)


def _active_rms(wave: np.ndarray, rate: int) -> float:
    """RMS over the active part: frames of 50 ms within 20 dB of the loudest."""
    frame = rate // 20
    power = np.square(wave[: len(wave) // frame * frame].reshape(-1, frame), dtype=np.float64).mean(axis=1)
    return math.sqrt(power[power >= power.max() * 0.01].mean()) + 1e-9


@functools.lru_cache(maxsize=16)
def _room_spectrum(seconds: float, rate: int, size: int) -> np.ndarray:
    """Spectrum of a room impulse response: low-passed noise after 12 ms, decaying by 60 dB in `seconds`."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(1).standard_normal(len(time)) * np.exp(-6.9 * time / seconds)
    # Air absorbs high frequencies.
    noise = np.convolve(noise, np.full(5, 0.2), mode="same")
    noise[: round(0.012 * rate)] = 0
    return np.fft.rfft(noise / np.sqrt(np.square(noise).sum()), size)


def _limit(wave: np.ndarray) -> np.ndarray:
    """Soft limiter from KNEE to PEAK, so that single hits do not make the whole piece quiet."""
    over = np.maximum(np.abs(wave) - KNEE, 0)
    limited = np.minimum(np.abs(wave), KNEE) + (PEAK - KNEE) * np.tanh(over / (PEAK - KNEE))
    return (np.sign(wave) * limited).astype(np.float32)
