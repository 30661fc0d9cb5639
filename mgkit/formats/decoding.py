"""Decoding audio files to waves without trusting their headers. Axes: C channels, N samples.

    WAV, FLAC, OGG, MP3, AIFF, ... -> libsndfile --+-> blocks, until the content ends -> wave [C, N]
    m4a, AAC, WebM, WMA            -> PyAV       --'

A header is only a claim: it may state less than the file holds, or more than the memory does.
"""

import io
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from mgkit.files import printable
from mgkit.formats import mp3

LIMIT = 1 << 29  # samples of all channels in a file, 2 GB: 100 minutes of stereo at 44.1 kHz
BLOCK = 1 << 18  # samples of all channels per read

# Files for PyAV, by their first bytes: offset, bytes, name.
CONTAINERS = (
    (4, b"ftyp", "m4a (MP4)"),
    (0, b"\x1a\x45\xdf\xa3", "WebM"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
)


class SequentialFile(soundfile.SoundFile):
    """A file read from start to end: seeking after each block would trust the stated length."""

    def seekable(self) -> bool:
        return False


def decode(source: BinaryIO, name: str) -> tuple[Tensor, int]:
    """Wave [C, N] and sample rate of an open file; `name` is for error messages.

    Raises: ValueError if it is not audio, is damaged, has no samples, or more than LIMIT.
    """
    head = source.read(16)
    source.seek(0)
    container = next((kind for at, magic, kind in CONTAINERS if head[at:].startswith(magic)), None)
    blocks = _containers_blocks(source, name, container) if container else _blocks(source, name)
    parts, rate, size = [], 0, 0
    try:
        for rate, block in blocks:
            size += block.size
            if size > LIMIT:
                raise ValueError(
                    f"{name!r} is longer than {LIMIT / len(block) / rate / 60:.3g} minutes, the limit for "
                    f"{len(block)} channels at {rate} Hz: cut it into shorter files"
                )
            parts.append(torch.from_numpy(block))
        if not size:
            raise ValueError(f"{name!r} contains no samples")
        return torch.cat(parts, dim=1), rate
    except MemoryError:
        raise ValueError(f"{name!r} does not fit into the memory: cut it into shorter files") from None


def _blocks(source: BinaryIO, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """Sample rate and samples [C, n], block by block, by libsndfile."""
    opened = False
    try:
        with SequentialFile(_corrected(source, name)) as file:
            opened, count = True, max(1, BLOCK // file.channels)
            while len(block := file.read(count, dtype="float32", always_2d=True)):
                yield file.samplerate, np.ascontiguousarray(block.T)
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
        if opened:
            fault, advice = f"is cut off or damaged ({reason})", "download or convert it again"
        else:
            fault, advice = "is not audio that can be read (WAV, FLAC, OGG or MP3)", reason
        raise ValueError(f"{name!r} {fault}: {advice}") from None


def _corrected(source: BinaryIO, name: str) -> BinaryIO:
    """The file itself, or one with a corrected length if libsndfile would stop at the stated one."""
    head = source.read(4)
    source.seek(0)
    if head == b"OggS" and _is_chained(source.read()):
        raise ValueError(
            f"{name!r} contains several recordings one after the other, and decoders stop after the first: "
            "split it, or join them with  ffmpeg -i FILE joined.wav"
        )
    source.seek(0)
    if head == b"fLaC":
        content = bytearray(source.read())
        # 36 bits for the number of samples, of which 0 stands for unknown
        content[21:22] = bytes(byte & 0xF0 for byte in content[21:22])
        content[22:26] = bytes(len(content[22:26]))
        return io.BytesIO(content)
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return io.BytesIO(mp3.with_true_length(source.read()))
    return source


def _is_chained(content: bytes) -> bool:
    """Whether another logical stream begins after the first pages of an Ogg file (RFC 3533, section 4)."""
    at, begun = 0, False
    while content[at : at + 4] == b"OggS" and len(content) >= at + 27:
        first = bool(content[at + 5] & 2)
        if first and begun:
            return True
        begun = begun or not first
        segments = content[at + 26]
        at += 27 + segments + sum(content[at + 27 : at + 27 + segments])
    return False


def _containers_blocks(source: BinaryIO, name: str, container: str) -> Iterator[tuple[int, np.ndarray]]:
    """Sample rate and samples [C, n], block by block, by FFmpeg."""
    try:
        import av
    except ImportError:
        file = shlex.quote(printable(name))
        wav = shlex.quote(printable(Path(name).stem + ".wav"))
        raise ValueError(
            f"{name!r} is {container} audio: install PyAV (pip install av), or convert it with  "
            f"ffmpeg -i {file} {wav}"
        ) from None
    try:
        with av.open(source, mode="r") as opened:
            if not opened.streams.audio:
                raise ValueError(f"{name!r} contains no audio, only {len(opened.streams)} other streams")
            stream = opened.streams.audio[0]
            planar = av.AudioResampler("fltp", stream.layout, stream.rate)
            for frame in opened.decode(stream):
                for part in planar.resample(frame):
                    yield part.sample_rate, part.to_ndarray()
            for part in planar.resample(None):
                yield part.sample_rate, part.to_ndarray()
    except av.FFmpegError as error:
        raise ValueError(
            f"{name!r} is {container} audio that cannot be decoded ({error.strerror}): download or convert "
            "it again"
        ) from None
