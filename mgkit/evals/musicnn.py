"""musicnn, a small network for music tagging (Pons and Serra, arXiv:1909.06654): tags and embeddings.

Axes: B patches, T frames of 16 ms, M = 96 mel bands, D features of a frame, N samples.

    mel [B, T, M] -> timbre (tall kernels), beat (long kernels) -> 3 layers over time -> max, mean -> 50 tags
                     `------------- D = 753 features of every frame -------------'

The package `musicnn` (PyPI, ISC) contains the weights as a TensorFlow 1 checkpoint. `read_checkpoint` reads
it without TensorFlow; `Musicnn` is the network in PyTorch, for the weights trained on MagnaTagATune.
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RATE, N_FFT, HOP, MELS = 16000, 512, 256, 96
PATCH = 187  # frames: three seconds, the length of a training example
TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano",
    "ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing",
    "vocals", "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal",
    "pop", "soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance",
    "male voice", "female vocal", "beats", "harp", "cello", "no voice", "weird", "country", "metal",
    "female voice", "choral",
)  # fmt: skip


# -- TensorFlow 1 checkpoint -------------------------------------------------------------------------------


# Field numbers of the messages BundleEntryProto, TensorShapeProto and TensorShapeProto.Dim.
DTYPE, SHAPE, OFFSET, LENGTH = 1, 2, 4, 5
DIM, SIZE = 2, 1


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """All float32 variables of the checkpoint in `folder` (.index and .data-00000-of-00001), by name.

    The index is a LevelDB table: blocks of entries with prefix-compressed keys, sorted by name.

    Raises: ValueError for a file in another format.
    """
    table, data = ((folder / name).read_bytes() for name in (".index", ".data-00000-of-00001"))
    if table[-8:] != struct.pack("<Q", 0xDB4775248B80FB57):
        raise ValueError(f"{folder / '.index'} is not the index of a TensorFlow checkpoint")
    footer = _varints(table[-48:-8])
    # Skips the handle of the metaindex block, which is empty.
    _pair(footer)
    variables = {}
    for _, handle in _entries(table, *_pair(footer)):
        for name, entry in _entries(table, *_pair(_varints(handle))):
            numbers, messages = _fields(entry)
            # The entry without a name is the header; type 1 is float32.
            if not name or numbers.get(DTYPE) != [1]:
                continue
            dims = _fields(messages[SHAPE][0])[1].get(DIM, []) if SHAPE in messages else []
            shape = [_fields(dim)[0].get(SIZE, [0])[0] for dim in dims]
            [offset], [size] = numbers.get(OFFSET, [0]), numbers[LENGTH]
            variables[name.decode()] = np.frombuffer(data[offset : offset + size], "<f4").reshape(shape)
    return variables


def _varints(data: bytes) -> Iterator[int]:
    """The integers of consecutive varints: seven bits a byte, lowest first, and a continuation bit."""
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def _pair(numbers: Iterator[int]) -> tuple[int, int]:
    return next(numbers), next(numbers)


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """(integer, position after it)."""
    end = start
    while data[end] > 127:
        end += 1
    return next(_varints(data[start : end + 1])), end + 1


def _entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each entry in an uncompressed block.

    Raises: ValueError for a compressed block.
    """
    if table[offset + size] != 0:
        raise ValueError("the index of the checkpoint is compressed; only uncompressed ones can be read")
    block = table[offset : offset + size]
    # The block ends with a list of restart positions and its length, 4 bytes each.
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    key, position = b"", 0
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _fields(message: bytes) -> tuple[dict[int, list[int]], dict[int, list[bytes]]]:
    """(integers, byte strings) of a protocol buffer, as lists by field number, without fixed-width fields."""
    numbers: dict[int, list[int]] = {}
    strings: dict[int, list[bytes]] = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 2:
            length, position = _varint(message, position)
            strings.setdefault(field, []).append(message[position : position + length])
            position += length
        elif wire_type == 0:
            value, position = _varint(message, position)
            numbers.setdefault(field, []).append(value)
        else:
            position += 4 if wire_type == 5 else 8
    return numbers, strings


# -- the network -------------------------------------------------------------------------------------------


class Musicnn:
    """The network `MTT_musicnn` of the package."""

    def __init__(self, variables: dict[str, np.ndarray]):
        self.v = {name: torch.from_numpy(value.copy()) for name, value in variables.items()}

    def _norm(self, x: Tensor, number: int) -> Tensor:
        """Batch normalization of axis 1."""
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        mean, var, gamma, beta = (
            self.v[f"{name}/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return F.batch_norm(x, mean, var, gamma, beta, eps=1e-3)

    def _conv(self, x: Tensor, number: int, padding: tuple[int, ...]) -> Tensor:
        """Convolution of [B, C, T, M], ReLU, batch normalization and the maximum over M: [B, C', T]."""
        name = f"conv2d_{number}" if number else "conv2d"
        kernel = self.v[f"{name}/kernel"].permute(3, 2, 0, 1)
        x = F.conv2d(F.pad(x, padding), kernel, self.v[f"{name}/bias"])
        return self._norm(F.relu(x), number + 1).amax(dim=3)

    @torch.no_grad()
    def __call__(self, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tag probabilities [B, 50], embedding [B, 200], mean features [B, 753]) of mel [B, T, M]."""
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
    """Log-mel patches [B, PATCH, MELS] of a wave [N], as in the package; an incomplete last one is dropped.

    Raises: ValueError for less than three seconds.
    """
    import librosa

    wave = librosa.resample(wave, orig_sr=rate, target_sr=RATE, res_type="soxr_hq")
    power = librosa.feature.melspectrogram(y=wave, sr=RATE, n_fft=N_FFT, hop_length=HOP, n_mels=MELS)
    mel = np.log10(10000 * power.T.astype(np.float16).astype(np.float32) + 1)
    count = len(mel) // PATCH
    if not count:
        raise ValueError(f"the clip lasts {len(wave) / RATE:.2f} s; musicnn needs at least three seconds")
    return torch.from_numpy(mel[: count * PATCH].reshape(count, PATCH, MELS))


@lru_cache(maxsize=1)
def musicnn() -> Musicnn:
    """The network with the weights of the installed package.

    Raises: RuntimeError with the command to run, if `musicnn` is not installed.
    """
    # Located, not imported: the package's own code requires TensorFlow.
    spec = find_spec("musicnn")
    if spec is None or spec.origin is None:
        raise RuntimeError("the timbre metrics need musicnn's weights: pip install --no-deps musicnn==0.1.0")
    return Musicnn(read_checkpoint(Path(spec.origin).parent / "MTT_musicnn"))
