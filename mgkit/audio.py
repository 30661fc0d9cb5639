"""Audio files and arrays: read, write, resample, channels, loudness. The only module that touches audio files.

Letters: C channels, N samples. A wave is a float32 tensor [C, N], full scale at 1.
"""

import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Literal

import librosa
import numpy as np
import pyloudnorm
import soundfile
import torch
from torch import Tensor

Strategy = Literal["loudness", "peak", "rms", "clip"]

LOUDNESS = -14.0  # LUFS
PEAK = -1.0  # dB below full scale
RMS = -18.0  # dB below full scale
QUIET = 2e-3  # RMS under which a wave counts as silence, whose loudness is left alone
CHUNK = 1 << 14  # samples to write at a time: libsndfile's Vorbis keeps a whole write on the stack
BLOCK = 0.4  # seconds; ITU-R BS.1770 measures loudness in blocks of this length

FORMATS = {  # file ending: what soundfile calls the format and its encoding
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}


def read(path: str | os.PathLike) -> tuple[Tensor, int]:
    """Wave [C, N] and its rate from a WAV, FLAC, OGG or MP3 file (any that soundfile reads).

    Errors: FileNotFoundError; ValueError for a file that is not audio or holds no samples.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    return _decode(path, str(path))


def decode(content: bytes, name: str) -> tuple[Tensor, int]:
    """Wave [C, N] and its rate from the bytes of a file, such as an upload, called `name`. Errors: as `read`."""
    return _decode(io.BytesIO(content), name)


def _decode(file: str | os.PathLike | io.BytesIO, name: str) -> tuple[Tensor, int]:
    try:
        data, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError) as error:
        why = getattr(error, "error_string", error)
        raise ValueError(f"{name!r} is not audio that can be read (WAV, FLAC, OGG or MP3): {why}") from None
    if len(data) == 0:
        raise ValueError(f"{name!r} holds no samples")
    return torch.from_numpy(np.ascontiguousarray(data.T)), rate


def write(
    path: str | os.PathLike,
    wave: Tensor,
    rate: int,
    strategy: Strategy = "loudness",
    manifest: dict | None = None,
) -> Path:
    """Writes `wave` [C, N] in the format of the path's ending, 16-bit or compressed, and returns the path.

    `strategy` sets the level (see `normalize`). The `manifest` of the run travels in the file's comment, the
    licence of the weights in its licence tag. The file appears whole or not at all: a full disk leaves an earlier
    file of that name as it was. Errors: ValueError for another ending, OSError where nothing can be written.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path.name!r} ends in {path.suffix!r}; it can end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name} to")
    form, encoding = FORMATS[path.suffix.lower()]
    rate = int(check_rate(rate))
    data = normalize(check(wave), rate, strategy).clamp(-1, 1).cpu().numpy().T
    comment = json.dumps({**manifest, "strategy": strategy}) if manifest else ""
    made = (
        io.BytesIO()
    )  # whole in memory first: libsndfile says nothing of a disk that fills while it encodes
    try:
        file = soundfile.SoundFile(made, "w", rate, data.shape[1], encoding, format=form)
    except soundfile.LibsndfileError as error:  # MP3 knows some rates only
        raise ValueError(
            f"{path} cannot be written at {rate} Hz ({error.error_string}): take .wav or .flac"
        ) from None
    with file:
        file.software = "mgkit"
        if manifest and manifest.get("licence"):
            file.license = manifest["licence"]
        if comment and form != "WAV":
            file.comment = comment
        for start in range(0, len(data), CHUNK):
            file.write(data[start : start + CHUNK])
    content = made.getvalue()
    if comment and form == "WAV":
        content = _with_riff_comment(content, comment)

    return replace_file(path, lambda draft: draft.write_bytes(content))


def replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Write the file at `path` completely or not at all, and return its path.

    `write` receives the path of a draft, which is renamed once it is complete: `replace_files` for one file.
    """
    path = Path(path)
    replace_files(path.parent, lambda drafts: write(drafts / path.name), path)
    return path


def replace_files(
    folder: str | os.PathLike,
    write: Callable[[Path], object],
    subject: str | os.PathLike | None = None,
) -> None:
    """Write several files of `folder`, replacing earlier versions only when all of them are complete.

        write(drafts)   creates   folder/.draft-x7f2/a.json, folder/.draft-x7f2/b.bin
        os.replace      moves     folder/a.json,             folder/b.bin

    After a failure, Ctrl-C included, the earlier versions are unchanged and the drafts are gone. Drafts have the
    final file names, because some writers choose the format by the extension, and the umask's permissions.

    Raises: OSError about `subject` (default: `folder`) if the disk is full or read-only.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".draft-") as drafts:
            write(Path(drafts))
            for draft in Path(drafts).iterdir():
                os.replace(draft, Path(folder, draft.name))
    # torch.save reports a full disk as a RuntimeError
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(
            f"could not write {subject or folder} ({reason}); an earlier version, if there is one, is unchanged"
        ) from error


def read_manifest(path: str | os.PathLike) -> dict:
    """What the run was that made the file. Errors: FileNotFoundError; ValueError where the file does not say."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        comment = _riff_comment(path) if path.suffix.lower() == ".wav" else soundfile.SoundFile(path).comment
        manifest = json.loads(comment)
    except (soundfile.LibsndfileError, TypeError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or "mgkit" not in manifest:
        raise ValueError(f"{path} does not say how it was made: it is not mgkit's, or was converted since")
    return manifest


def _with_riff_comment(wav: bytes, comment: str) -> bytes:
    """A WAV file with a comment of any length at its end; libsndfile's own breaks the file over some 50 kB."""
    text = comment.encode()
    text += b"\0" * (len(text) % 2)
    info = b"INFOICMT" + len(text).to_bytes(4, "little") + text
    body = wav[8:] + b"\0" * (len(wav) % 2) + b"LIST" + len(info).to_bytes(4, "little") + info
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _riff_comment(path: Path) -> str:
    """The comment at the end of a WAV file."""
    data = path.read_bytes()
    start = data.rindex(b"INFOICMT") + 12
    return data[start : start + int.from_bytes(data[start - 4 : start], "little")].rstrip(b"\0").decode()


def check(wave: Tensor, what: str = "the wave") -> Tensor:
    """`wave` [C, N] as float32; arrays and a mono wave [N] are taken too.

    Errors: ValueError for whole numbers, other shapes, more than two channels, no samples, NaN or infinity.
    """
    if not isinstance(wave, Tensor | np.ndarray):
        raise ValueError(
            f"{what} is {wave!r:.60}; it must be an array of samples, such as the first that audio.read gives"
        )
    wave = torch.as_tensor(wave)
    if not wave.is_floating_point():
        raise ValueError(
            f"{what} has {wave.dtype} samples; scale them to floats from -1 to 1 (int16: divide by 32768)"
        )
    if wave.dim() == 1:
        wave = wave[None]
    if wave.dim() != 2 or wave.shape[0] not in (1, 2):
        raise ValueError(f"{what} has shape {list(wave.shape)}; it must be [1 or 2 channels, samples]")
    if wave.shape[-1] == 0:
        raise ValueError(f"{what} holds no samples")
    if not wave.isfinite().all():
        raise ValueError(f"{what} holds NaN or infinity; look at how it was recorded or computed")
    return wave.detach().float()


def check_rate(rate: float) -> float:
    """`rate` itself. Errors: ValueError for what is no sample rate, 1 kHz to 1 MHz."""
    if not isinstance(rate, Real) or not 1e3 <= rate <= 1e6:
        raise ValueError(f"the sample rate is {rate!r}; it must be samples in a second, such as 44100")
    return rate


def resample(wave: Tensor, rate: int, to: int) -> Tensor:
    """`wave` [C, N] at rate `to`: exactly ceil(N * to / rate) samples. Errors: those of `check_rate`."""
    check_rate(rate), check_rate(to)
    if rate == to:
        return wave
    data = librosa.resample(wave.cpu().numpy(), orig_sr=rate, target_sr=to, res_type="soxr_hq", fix=True)
    length = -(-wave.shape[-1] * int(to) // int(rate))  # librosa rounds its float, which can be one more
    return torch.from_numpy(librosa.util.fix_length(data, size=length)).to(wave.device)


def to_channels(wave: Tensor, channels: int) -> Tensor:
    """`wave` [C, N] with 1 channel (the mean) or 2 (copies of mono)."""
    if wave.shape[0] == channels:
        return wave
    return wave.mean(dim=0, keepdim=True) if channels == 1 else wave.expand(channels, -1)


def loudness(wave: Tensor, rate: int) -> float:
    """Loudness of `wave` [C, N] in LUFS (ITU-R BS.1770); -inf for silence and for what is shorter than 0.4 s."""
    if wave.shape[-1] < BLOCK * rate:
        return -math.inf
    return float(pyloudnorm.Meter(rate).integrated_loudness(wave.cpu().numpy().T))


def normalize(wave: Tensor, rate: int, strategy: Strategy = "loudness") -> Tensor:
    """`wave` [C, N] at a set level, within full scale; strategies and levels are those of audiocraft.

    loudness: to -14 LUFS (ITU-R BS.1770), then clipped; silence and mere offsets are left alone, and what is too short to have a
    loudness (under 0.4 s) takes `peak`. peak: the loudest sample to -1 dB. rms: to -18 dB, then clipped. clip: as it
    is, clipped at -1 dB. Errors: ValueError for another strategy.
    """
    if strategy == "loudness" and wave.shape[-1] >= BLOCK * rate:
        if wave.pow(2).mean().sqrt() < QUIET:
            return wave
        gain = LOUDNESS - loudness(wave, rate)
        if not math.isfinite(gain):  # a level without a loudness, such as an offset
            return wave
    elif strategy in ("peak", "loudness"):
        gain = PEAK - _decibels(wave.abs().max())
    elif strategy == "rms":
        gain = RMS - _decibels(wave.mean(dim=0).pow(2).mean().sqrt())
    elif strategy == "clip":
        top = 10 ** (PEAK / 20)
        return wave.clamp(-top, top)
    else:
        raise ValueError(f"the strategy is {strategy!r}; it must be loudness, peak, rms or clip")
    return (wave * 10 ** (gain / 20)).clamp(-1, 1)


def _decibels(level: Tensor) -> float:
    return 20 * float(level.clamp(min=1e-8).log10())
