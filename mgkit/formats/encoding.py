"""Encoding waves as the bytes of audio files: formats, their sample rates, and the manifest in the comment.

Axes: C channels, N samples.
"""

import io
import json
from numbers import Real

import numpy as np
import soundfile
from torch import Tensor

from mgkit.brief import brief

CHUNK = 1 << 14  # samples per write, because libsndfile's Vorbis encoder puts a whole write on the stack

# file extension: soundfile's format and subtype
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def parse_rate(rate: float, extension: str = "") -> float:
    """`rate` itself, in Hz.

    Raises: ValueError unless it is from 1 kHz to 1 MHz and, with an `extension`, supported by that format.
    """
    if not isinstance(rate, Real) or not 1e3 <= rate <= 1e6:
        raise ValueError(f"the sample rate is {brief(rate)}; it must be a number of Hz, such as 44100")
    if not extension:
        return rate
    # FLAC: the rates in the header of a frame. OGG: above 200 kHz, libsndfile frees memory twice.
    supported = {
        ".wav": (True, "any"),
        ".flac": (
            rate <= 65535 or rate % 10 == 0 and rate <= 655350,
            "up to 65535 Hz, or tens up to 655350 Hz",
        ),
        ".ogg": (rate <= 200000, "up to 200000 Hz"),
        ".mp3": (rate in MP3_RATES, ", ".join(map(str, MP3_RATES))),
    }
    fits, rates = supported[extension]
    if not fits or rate != int(rate):
        raise ValueError(
            f"the sample rate is {rate:.10g} Hz; {extension} supports whole numbers of Hz, {rates}: use "
            ".wav, or audio.resample the wave"
        )
    return rate


def encode(
    wave: Tensor, rate: int, extension: str, manifest: dict | None = None, compression: float | None = None
) -> bytes:
    """Bytes of an audio file with the samples of `wave` [C, N], which are within full scale.

    `compression` of MP3 and OGG is from 0 (the highest bit rate, in MP3 a constant one) to below 1 (lowest).
    Encoding to memory keeps a full disk from going unnoticed inside libsndfile.

    Raises: ValueError for a sample rate not supported by the format.
    """
    rate = int(parse_rate(rate, extension))
    buffer, data, (format, subtype) = io.BytesIO(), wave.detach().cpu().numpy().T, FORMATS[extension]
    if subtype == "PCM_16":
        # libsndfile rounds down in WAV files, which shifts the mean by half a step
        data = np.rint(data.astype(np.float32) * 32768).clip(-32768, 32767).astype(np.int16)
    comment = json.dumps(manifest) if manifest else ""
    mode = "CONSTANT" if format == "MP3" and compression is not None else None
    options = {"format": format, "compression_level": compression, "bitrate_mode": mode}
    with soundfile.SoundFile(buffer, "w", rate, data.shape[1], subtype, **options) as file:
        file.software = "mgkit"
        if manifest and manifest.get("licence"):
            file.license = manifest["licence"]
        if comment and format != "WAV":
            file.comment = comment
        for start in range(0, len(data), CHUNK):
            file.write(data[start : start + CHUNK])
    content = buffer.getvalue()
    return _with_riff_comment(content, comment) if comment and format == "WAV" else content


def _with_riff_comment(wav: bytes, comment: str) -> bytes:
    """A WAV file with `comment` in a chunk at its end; libsndfile corrupts files with comments over 50 kB."""
    text = comment.encode()
    text += b"\0" * (len(text) % 2)
    info = b"INFOICMT" + len(text).to_bytes(4, "little") + text
    body = wav[8:] + b"\0" * (len(wav) % 2) + b"LIST" + len(info).to_bytes(4, "little") + info
    return b"RIFF" + len(body).to_bytes(4, "little") + body
