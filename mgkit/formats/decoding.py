"""Decoding audio files to waves without trusting their headers. Axes: C channels, N samples.

    WAV, FLAC, OGG, MP3, AIFF, ... -> libsndfile --+-> blocks, until the content ends -> wave [C, N]
    m4a, AAC, WebM, WMA            -> PyAV       --'

A header is only a claim: it may state less than the file holds, or more than the memory does.
"""

import io
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from mgkit.files import printable
from mgkit.formats import mp3, ogg, wav

# File extensions that are read, as far as libsndfile and PyAV know their content.
READABLE = (
    *(".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".oga", ".opus"),
    *(".w64", ".rf64", ".m4a", ".mp4", ".aac", ".webm", ".wma"),
)
LIMIT = 1 << 29  # samples of all channels in a file, 2 GB: 100 minutes of stereo at 44.1 kHz
BLOCK = 1 << 18  # samples of all channels per read
UNKNOWN = 0x7FFFFFFF - 4096  # sizes from here on stand for an unknown one, in files written to a pipe
CUT = "is cut off: its header states more than the file holds, or its last part is missing"

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

    A file that is cut off, or that states less than it holds, is read to its end, and one line says so.

    Raises: ValueError if it is not audio, is damaged, has no samples, or more than LIMIT.
    """
    head = source.read(16)
    source.seek(0)
    container = next((kind for at, magic, kind in CONTAINERS if head[at:].startswith(magic)), None)
    faults: list[str] = []
    blocks = (
        _containers_blocks(source, name, container, faults) if container else _blocks(source, name, faults)
    )
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
            raise ValueError(f"{name!r} {faults[0] if faults else 'contains no samples'}")
        wave = torch.cat(parts, dim=1)
    except MemoryError:
        raise ValueError(f"{name!r} does not fit into the memory: cut it into shorter files") from None
    if faults:
        file, seconds = printable(name), wave.shape[1] / rate
        print(f"{file!r} {faults[0]}; the {seconds:.3g} s that are there were read", file=sys.stderr)
    return wave, rate


def _blocks(source: BinaryIO, name: str, faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Sample rate and samples [C, n], block by block, by libsndfile; adds what is wrong to `faults`."""
    shape: tuple[int, int] | None = None
    try:
        for part in _recordings(source, faults):
            with SequentialFile(part) as file:
                if shape not in (None, (file.samplerate, file.channels)):
                    raise ValueError(
                        f"{name!r} contains several recordings with different sample rates or channels: "
                        "split it, or join them with  ffmpeg -i FILE joined.wav"
                    )
                shape = file.samplerate, file.channels
                if _is_cut(file):
                    faults.append(CUT)
                count = max(1, BLOCK // file.channels)
                while len(block := file.read(count, dtype="float32", always_2d=True)):
                    yield file.samplerate, np.ascontiguousarray(block.T)
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
        if shape is not None:
            fault, advice = f"is cut off or damaged ({reason})", "download or convert it again"
        else:
            fault, advice = "is not audio that can be read (WAV, FLAC, OGG or MP3)", reason
        raise ValueError(f"{name!r} {fault}: {advice}") from None


def _recordings(source: BinaryIO, faults: list[str]) -> list[BinaryIO]:
    """The recordings in a file, with a corrected length if libsndfile would stop at the stated one."""
    head = source.read(4)
    source.seek(0)
    if head == b"OggS":
        content = source.read()
        parts = ogg.recordings(content) or [content]
        if not all(map(ogg.is_complete, parts)):
            faults.append(CUT)
        return [io.BytesIO(part) for part in parts]
    if head == b"RIFF" and (length := wav.true_length(source)) is not None:
        start, stated, true = length
        source.seek(0)
        if stated < true:
            faults.append("goes on after the end that its header states")
            return [wav.with_length(source, start, true)]
        return [source]
    if head == b"fLaC":
        flac = bytearray(source.read())
        # 36 bits for the number of samples, of which 0 stands for unknown
        flac[21:22] = bytes(byte & 0xF0 for byte in flac[21:22])
        flac[22:26] = bytes(len(flac[22:26]))
        return [io.BytesIO(flac)]
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        content = source.read()
        if mp3.is_cut(content):
            faults.append(CUT)
        return [io.BytesIO(mp3.with_true_length(content))]
    return [source]


def _is_cut(file: soundfile.SoundFile) -> bool:
    """Whether libsndfile's log notes a chunk that is longer than the file, or a cut one."""
    sizes = re.findall(r": (\d+) \(should be (\d+)\)", file.extra_info)
    cut = any(int(should) < int(stated) < UNKNOWN for stated, should in sizes)
    return cut or "truncated file" in file.extra_info


def _containers_blocks(
    source: BinaryIO, name: str, container: str, faults: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Sample rate and samples [C, n], block by block, by FFmpeg; adds what is wrong to `faults`."""
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
            seconds = 0.0
            for frame in chain(opened.decode(stream), [None]):
                for part in planar.resample(frame):
                    seconds += part.samples / part.sample_rate
                    yield part.sample_rate, part.to_ndarray()
            # In microseconds; AAC without a container has no header, and FFmpeg guesses.
            stated = 0 if container == "AAC" else (opened.duration or 0) / 1e6
            if stated > 1.01 * seconds + 0.5:
                faults.append(CUT)
    except av.FFmpegError as error:
        raise ValueError(
            f"{name!r} is {container} audio that cannot be decoded ({error.strerror}): download or convert "
            "it again"
        ) from None
