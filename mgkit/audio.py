"""Audio files and waves: reading, writing, resampling, channels and loudness.

The rest of mgkit opens audio files through this file. A wave is a float32 tensor [C, N] with full scale at 1.
Axes: C channels, N samples.
"""

import io
import json
import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

import librosa
import numpy as np
import pyloudnorm
import soundfile
import torch
from torch import Tensor

from mgkit import files
from mgkit.brief import brief
from mgkit.files import replace_file as replace_file
from mgkit.formats import decoding
from mgkit.formats.decoding import READABLE as READABLE
from mgkit.formats.encoding import FORMATS as FORMATS
from mgkit.formats.encoding import encode as encode
from mgkit.formats.encoding import parse_rate as parse_rate

Strategy = Literal["loudness", "peak", "rms", "clip"]

LOUDNESS = -14.0  # LUFS
PEAK = -1.0  # dBFS
RMS = -18.0  # dBFS
SILENCE = 2e-3  # RMS below which a wave is silent
BLOCK = 0.4  # seconds, the block length of ITU-R BS.1770
CHANNELS = 8  # of a file, at most: 7.1 surround


# --- files ------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> tuple[Tensor, int]:
    """Wave [C, N] and sample rate of a WAV, FLAC, OGG or MP3 file, or any other format of soundfile.

    With PyAV (`pip install av`), also of m4a, AAC, WebM and WMA files.

    Raises: FileNotFoundError; ValueError if the file is not audio, damaged or empty.
    """
    _parse_file(path)
    with open(path, "rb") as file:
        return decoding.decode(file, str(path))


def decode(content: bytes, name: str) -> tuple[Tensor, int]:
    """Wave [C, N] and sample rate of an audio file's bytes, such as an upload; `name` is for error messages.

    Raises: ValueError if the content is not audio, damaged or empty.
    """
    return decoding.decode(io.BytesIO(content), name)


def _parse_file(path: str | os.PathLike) -> Path:
    """`path`. Raises: FileNotFoundError; ValueError unless it is a regular file: reading a pipe may hang."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, a pipe or a socket"
        raise ValueError(f"{str(path)!r} is {kind}; give the name of an audio file")
    return path


def write(
    path: str | os.PathLike,
    wave: Tensor,
    rate: int,
    strategy: Strategy = "loudness",
    manifest: dict | None = None,
) -> Path:
    """Write `wave` [C, N] in the format of the file extension, 16-bit or compressed, and return the path.

    `strategy` sets the level; see `normalize`. The `manifest` goes into the comment, its licence into the
    licence tag. The file is written completely or not at all; see `replace_file`.

    Raises: ValueError for another extension, wave or sample rate; OSError if the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{path.name!r} has the extension {path.suffix!r}; choose one of {', '.join(FORMATS)}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} for {path.name}")
    try:
        rate = int(parse_rate(rate, path.suffix.lower()))
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be written: {error}") from None
    samples = normalize(as_wave(wave), rate, strategy).clamp(-1, 1)
    try:
        content = encode(samples, rate, path.suffix.lower(), manifest and {**manifest, "strategy": strategy})
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be written at {rate} Hz ({error.error_string}); use .wav") from None
    return replace_file(path, lambda draft: draft.write_bytes(content))


def check_output(
    path: str | os.PathLike, rate: float | None = None, channels: int = 1, seconds: float = 0
) -> None:
    """Check, before minutes of work, that `write` can write to `path`: name, folder, rights, rate and space.

    Raises: ValueError for another extension or sample rate, or a folder; OSError for the others.
    """
    path = Path(path)
    extension = path.suffix.lower()
    if extension not in FORMATS:
        raise ValueError(f"the output {path.name!r} must end in {', '.join(FORMATS)}")
    if rate is not None:
        parse_rate(rate, extension)
    files.check_output(path, 2 * channels * seconds * (rate or 0))


def write_or_rescue(
    path: str | os.PathLike,
    wave: Tensor,
    rate: int,
    strategy: Strategy = "loudness",
    manifest: dict | None = None,
) -> Path:
    """Write the file like `write`; if that fails, a WAV file in a new folder, which the error names.

    Raises: OSError with the reason and the path of the WAV file; as `write` if nothing can be written.
    """
    try:
        return write(path, wave, rate, strategy, manifest)
    except (OSError, ValueError) as error:
        if spare := _rescue(Path(path).parent, wave, rate, strategy, manifest):
            raise OSError(f"{error}; the music is in {spare}: move it from there") from error
        raise


def _rescue(parent: Path, wave: Tensor, rate: int, strategy: Strategy, manifest: dict | None) -> Path | None:
    """A WAV file beside the output, in the folder for temporary files or in the user's; None if all fail."""
    for folder in (parent, None, os.path.expanduser("~")):
        with suppress(OSError, ValueError):
            spare = Path(tempfile.mkdtemp(prefix="mgkit-", dir=folder))
            try:
                return write(spare / "music.wav", wave, rate, strategy, manifest)
            except (OSError, ValueError):
                spare.rmdir()
    return None


def read_manifest(path: str | os.PathLike) -> dict:
    """The manifest of the run, as `write` stored it.

    Raises: FileNotFoundError; ValueError if the file has no manifest.
    """
    path = _parse_file(path)
    try:
        manifest = json.loads(_riff_comment(path) if path.suffix.lower() == ".wav" else _comment(path))
    # json: a text nested too deeply
    except (soundfile.LibsndfileError, TypeError, ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or "mgkit" not in manifest:
        raise ValueError(
            f"{path} has no record of how it was made: it was not written by mgkit, or converted since"
        )
    return manifest


def _comment(path: Path) -> str:
    """The comment of a FLAC, OGG or MP3 file."""
    with soundfile.SoundFile(path) as file:
        return file.comment


def _riff_comment(path: Path) -> str:
    """The comment at the end of a WAV file."""
    data = path.read_bytes()
    start = data.rindex(b"INFOICMT") + 12
    return data[start : start + int.from_bytes(data[start - 4 : start], "little")].rstrip(b"\0").decode()


# --- waves ------------------------------------------------------------------------------------------------


def as_wave(samples: Tensor | np.ndarray, name: str = "the wave", channels: int = 2) -> Tensor:
    """Float32 wave [C, N] of samples [C, N], or [N] for mono; `name` is for error messages.

    Raises: ValueError for integers, another shape, more channels than `channels`, no samples, NaN or
    infinity.
    """
    if not isinstance(samples, Tensor | np.ndarray):
        raise ValueError(
            f"{name} is {brief(samples)}; it must be an array of samples: audio.read returns one and its rate"
        )
    wave = torch.as_tensor(samples)
    if not wave.is_floating_point():
        raise ValueError(
            f"{name} has {wave.dtype} samples; scale them to floats from -1 to 1 (int16: divide by 32768)"
        )
    if wave.dim() == 1:
        wave = wave[None]
    if wave.dim() != 2 or not 1 <= wave.shape[0] <= channels:
        several = wave.dim() == 2 and 2 < len(wave) <= CHANNELS
        advice = ": audio.to_channels(wave, 1) averages them" if several else ""
        allowed = "1 or 2" if channels == 2 else f"1 to {channels}"
        raise ValueError(
            f"{name} has shape {list(wave.shape)}; it must be [{allowed} channels, samples]{advice}"
        )
    if wave.shape[-1] == 0:
        raise ValueError(f"{name} contains no samples")
    if not wave.isfinite().all():
        raise ValueError(f"{name} contains NaN or infinity; check how it was recorded or computed")
    return wave.detach().float()


def resample(wave: Tensor, rate: int, to: int) -> Tensor:
    """`wave` [C, N] converted from `rate` to the rate `to`: exactly ceil(N * to / rate) samples.

    Raises: ValueError for an invalid sample rate.
    """
    parse_rate(rate), parse_rate(to)
    if rate == to:
        return wave
    data = librosa.resample(wave.cpu().numpy(), orig_sr=rate, target_sr=to, res_type="soxr_hq", fix=True)
    # in integers: librosa computes the length in floats, which can be one sample too long
    length = -(-wave.shape[-1] * int(to) // int(rate))
    return torch.from_numpy(librosa.util.fix_length(data, size=length)).to(wave.device)


def to_channels(wave: Tensor, channels: int) -> Tensor:
    """`wave` [..., C, N] with 1 channel (the mean of all) or 2 (mono duplicated, or the first two of more).

    Source: audiocraft, `convert_audio_channels`.
    """
    if wave.shape[-2] == channels:
        return wave
    if channels == 1:
        return wave.mean(dim=-2, keepdim=True)
    return wave.expand(*wave.shape[:-2], channels, -1) if wave.shape[-2] == 1 else wave[..., :channels, :]


# --- levels -----------------------------------------------------------------------------------------------


def loudness(wave: Tensor, rate: int) -> float:
    """Integrated loudness of `wave` [C, N] in LUFS (ITU-R BS.1770); -inf for silence and below 0.4 s."""
    if wave.shape[-1] < BLOCK * rate:
        return -math.inf
    return float(pyloudnorm.Meter(rate).integrated_loudness(wave.cpu().numpy().T))


def normalize(wave: Tensor, rate: int, strategy: Strategy = "loudness") -> Tensor:
    """`wave` [C, N] at a standard level within full scale; strategies and levels are audiocraft's.

        loudness   -14 LUFS, then clipped to full scale; below 0.4 s: as `peak`
        peak       largest sample at -1 dBFS
        rms        -18 dBFS RMS, then clipped to full scale
        clip       level unchanged, clipped to -1 dBFS

    With `loudness`, silence and constant offsets are returned unchanged.

    Raises: ValueError for another strategy.
    """
    if strategy == "loudness" and wave.shape[-1] >= BLOCK * rate:
        if wave.pow(2).mean().sqrt() < SILENCE:
            return wave
        gain = LOUDNESS - loudness(wave, rate)
        # a constant offset has a level, but no loudness
        if not math.isfinite(gain):
            return wave
    elif strategy in ("peak", "loudness"):
        gain = PEAK - _decibels(wave.abs().max())
    elif strategy == "rms":
        gain = RMS - _decibels(wave.mean(dim=0).pow(2).mean().sqrt())
    elif strategy == "clip":
        top = 10 ** (PEAK / 20)
        return wave.clamp(-top, top)
    else:
        raise ValueError(f"the strategy is {brief(strategy)}; it must be loudness, peak, rms or clip")
    return (wave * 10 ** (gain / 20)).clamp(-1, 1)


def _decibels(level: Tensor) -> float:
    return 20 * float(level.clamp(min=1e-8).log10())
