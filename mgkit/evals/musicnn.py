"""musicnn (Pons and Serra, arXiv:1909.06654): a small network that tags music, here a judge of how music sounds.

Letters: B patches, T frames of 16 ms, M = 96 mel bands, D features of a frame, N samples.

    mel [B, T, M] -> timbre (tall kernels), beat (long kernels) -> 3 layers over time -> largest and mean of T -> 50 tags
                     `------------- D = 753 features of every frame -------------'

The package `musicnn` (PyPI, ISC) holds the weights as a checkpoint of TensorFlow 1. `read_checkpoint` reads it without
TensorFlow; `Musicnn` is the network in torch, for the model that was trained on MagnaTagATune.
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RATE, N_FFT, HOP, MELS = 16000, 512, 256, 96
PATCH = 187  # frames: the three seconds that it learned from
TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano",
    "ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing",
    "vocals", "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop",
    "soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice",
    "female vocal", "beats", "harp", "cello", "no voice", "weird", "country", "metal", "female voice", "choral",
)  # fmt: skip


# -- a checkpoint of TensorFlow 1 ----------------------------------------------------------------------------------


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """All float32 variables of the nameless checkpoint in `folder` (.index and .data-00000-of-00001), by name.

    The index is a LevelDB table: blocks of entries, each key given by what differs from the one before. Errors:
    ValueError for a file that is none.
    """
    table, data = ((folder / name).read_bytes() for name in (".index", ".data-00000-of-00001"))
    if table[-8:] != struct.pack("<Q", 0xDB4775248B80FB57):
        raise ValueError(f"{folder / '.index'} is not the index of a TensorFlow checkpoint")
    footer = _numbers(table[-48:-8])
    next(footer), next(footer)  # the block of meta data, which holds none
    found = {}
    for _, handle in _entries(table, *_pair(footer)):
        for name, entry in _entries(table, *_pair(_numbers(handle))):
            about = dict(_fields(entry))
            if name and about.get(1) == 1:  # float32; the nameless entry is the header
                sizes = [dict(_fields(dim)).get(1, 0) for key, dim in _fields(about.get(2, b"")) if key == 2]
                at = about.get(4, 0)
                found[name.decode()] = np.frombuffer(data[at : at + about[5]], "<f4").reshape(sizes)
    return found


def _numbers(data: bytes) -> Iterator[int]:
    """The numbers of a run of varints: seven bits a byte, lowest first, the eighth says that more follow."""
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def _pair(numbers: Iterator[int]) -> tuple[int, int]:
    return next(numbers), next(numbers)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
    end = at
    while data[end] > 127:
        end += 1
    return next(_numbers(data[at : end + 1])), end + 1


def _entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block that is not compressed."""
    if table[offset + size] != 0:
        raise ValueError("the index of the checkpoint is compressed, which is not understood here")
    block = table[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]  # places to start reading at follow
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, int or bytes) of the fields of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 2:
            length, at = _varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        elif tag & 7 == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
        else:
            at += 4 if tag & 7 == 5 else 8


# -- the network ---------------------------------------------------------------------------------------------------


class Musicnn:
    """The network of the package's MTT_musicnn."""

    def __init__(self, variables: dict[str, np.ndarray]):
        self.v = {name: torch.from_numpy(value.copy()) for name, value in variables.items()}

    def _norm(self, x: Tensor, number: int) -> Tensor:
        """Batch norm of axis 1."""
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        mean, var, gamma, beta = (
            self.v[f"{name}/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return F.batch_norm(x, mean, var, gamma, beta, eps=1e-3)

    def _conv(self, x: Tensor, number: int, padding: tuple[int, ...]) -> Tensor:
        """Convolution of [B, C, T, M], rectified, normed, and the largest of M: [B, C', T]."""
        name = f"conv2d_{number}" if number else "conv2d"
        kernel = self.v[f"{name}/kernel"].permute(3, 2, 0, 1)
        x = F.conv2d(F.pad(x, padding), kernel, self.v[f"{name}/bias"])
        return self._norm(F.relu(x), number + 1).amax(dim=3)

    @torch.no_grad()
    def __call__(self, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tags [B, 50] within 0..1, embedding [B, 200], mean features [B, 753]) of mel [B, T, M]."""
        x = self._norm(mel[:, None], 0)
        timbre = [self._conv(x, number, (0, 0, 3, 3)) for number in (0, 1)]
        beat = [self._conv(x, 2 + i, (0, 0, (k - 1) // 2, k // 2)) for i, k in enumerate((128, 64, 32))]
        front = torch.cat(timbre + beat, dim=1)
        layers = [front, self._conv(front.mT[:, None], 5, (0, 0, 3, 3))]
        for number in (6, 7):
            layers.append(self._conv(layers[-1].mT[:, None], number, (0, 0, 3, 3)) + layers[-1])
        features = torch.cat(layers, dim=1)
        pooled = torch.stack([features.amax(dim=2), features.mean(dim=2)], dim=2).flatten(1)
        dense = F.relu(self._norm(pooled, 9) @ self.v["dense/kernel"] + self.v["dense/bias"])
        embedding = self._norm(dense, 10)
        tags = torch.sigmoid(embedding @ self.v["dense_1/kernel"] + self.v["dense_1/bias"])
        return tags, embedding, pooled[:, 1::2]


def patches(wave: np.ndarray, rate: int) -> Tensor:
    """Mel patches [B, PATCH, MELS] of a wave [N], as the package makes them; what is left at the end is not heard.

    Errors: ValueError for less than three seconds.
    """
    import librosa

    wave = librosa.resample(wave, orig_sr=rate, target_sr=RATE, res_type="soxr_hq")
    power = librosa.feature.melspectrogram(y=wave, sr=RATE, n_fft=N_FFT, hop_length=HOP, n_mels=MELS)
    mel = np.log10(10000 * power.T.astype(np.float16).astype(np.float32) + 1)
    count = len(mel) // PATCH
    if not count:
        raise ValueError(f"musicnn hears three seconds at a time, and there are {len(wave) / RATE:.2f}")
    return torch.from_numpy(mel[: count * PATCH].reshape(count, PATCH, MELS))


@lru_cache(maxsize=1)
def musicnn() -> Musicnn:
    """The network with the weights of the installed package; RuntimeError, with what to install, where it is absent."""
    spec = find_spec("musicnn")  # finds, and does not import: its code wants TensorFlow
    if spec is None or spec.origin is None:
        raise RuntimeError("the judges need musicnn's weights: pip install --no-deps musicnn==0.1.0")
    return Musicnn(read_checkpoint(Path(spec.origin).parent / "MTT_musicnn"))
