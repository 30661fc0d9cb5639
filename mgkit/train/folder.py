"""A folder of captioned recordings, read as waves and encoded as a model's tokens.

    rain.wav  rain.txt    a caption beside each file, or
    captions.csv          a table of captions; see `captions` for its other forms

Axes: C channels, K codebooks, T frames, N samples, F chroma frames.
"""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from mgkit import audio, melody
from mgkit.codec import Codec
from mgkit.musicgen import MusicGen
from mgkit.train import captions
from mgkit.train.tokens import digest

MIN_SECONDS = 1.0
# The codec encodes pieces of this length, in seconds: an hour at once would not fit into memory.
PIECE = 60


@dataclass(frozen=True)
class Recording:
    """An audio file and its caption."""

    file: Path
    caption: str


@dataclass(frozen=True)
class Example:
    """A recording as training data: `codes` [K, T] int16, `melody` [F] int8 (loudest pitch class per
    frame).
    """

    caption: str
    codes: Tensor
    melody: Tensor


def find(folder: str | Path) -> list[Recording]:
    """Recordings in `folder` and its subfolders, sorted by path.

    Raises: FileNotFoundError if there is no folder; ValueError if it has no audio files, if captions are
    missing (listing the files), or if a table of captions is malformed or names a missing file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    files = sorted(path for path in folder.rglob("*") if captions.visible(path, folder))
    sounds = {captions.name_in(file, folder): file for file in files if file.suffix.lower() in audio.READABLE}
    if not sounds:
        raise ValueError(f"{folder} has no audio files: put {', '.join(audio.READABLE)} files into it")
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in sounds}
    table = captions.read_tables(files, folder)
    beside = captions.read_texts(files, folder, set(stems.values()))
    found = {name: beside.get(stem) or table.get(name) for name, stem in stems.items()}
    uncaptioned = [name for name, caption in found.items() if not caption]
    if uncaptioned:
        example = PurePosixPath(uncaptioned[0]).with_suffix(".txt")
        raise ValueError(
            f"{len(uncaptioned)} of {len(found)} files in {folder} have no caption: "
            f"{captions.abbreviate(uncaptioned)}; describe the sound in {example}, or list all in "
            "captions.csv (file,caption)"
        )
    if missing := [name for name in table if name not in sounds]:
        others = {captions.name_in(file, folder) for file in files}
        if present := [name for name in missing if name in others]:
            raise ValueError(
                f"the captions in {folder} name files that are not {', '.join(audio.READABLE)}: "
                f"{captions.abbreviate(present)}; convert them"
            )
        raise ValueError(
            f"the captions in {folder} name files that do not exist: {captions.abbreviate(missing)}; "
            "remove these lines, or add the files"
        )
    return [Recording(sounds[name], caption) for name, caption in found.items() if caption]


def fingerprint(recordings: Sequence[Recording]) -> str:
    """Hash of all captions and files."""
    total = hashlib.sha256()
    for recording in recordings:
        total.update(hashlib.sha256(recording.file.read_bytes()).digest())
        total.update(recording.caption.encode())
    return total.hexdigest()[:16]


def read(recording: Recording, rate: int, channels: int) -> tuple[Tensor, int]:
    """Wave [C, N] with this rate and number of channels, and the rate of the file.

    Raises: ValueError, naming the file, if it is not audio, contains NaN, or is shorter than MIN_SECONDS.
    """
    wave, file_rate = audio.read(recording.file)
    wave = audio.as_wave(wave, str(recording.file))
    if wave.shape[-1] < MIN_SECONDS * file_rate:
        raise ValueError(
            f"{recording.file} lasts {wave.shape[-1] / file_rate:.2f} s; give at least {MIN_SECONDS:g} s, "
            "or remove it from the folder"
        )
    return audio.to_channels(audio.resample(wave, file_rate, rate), channels), file_rate


def tokenize(model: MusicGen, recordings: Sequence[Recording], cache: str | Path) -> list[Example]:
    """The recordings encoded with the model's codec, or loaded from the file `cache` if it is up to date.

    Prints one note each for resampled files and for files shorter than the model's window.

    Raises: as `read`.
    """
    cache = Path(cache)
    key = {
        "recordings": fingerprint(recordings),
        "codec": digest(model.codec),
        "channels": model.audio_channels,
    }
    if cached := _read_cache(cache, key):
        return cached
    other_rates, short, examples = set(), 0, []
    for recording in tqdm(recordings, desc="tokens", unit="file"):
        wave, file_rate = read(recording, model.sample_rate, model.audio_channels)
        if file_rate != model.sample_rate:
            other_rates.add(file_rate)
        short += wave.shape[-1] < model.max_duration * model.sample_rate
        codes = encode(model.codec, wave.to(model.lm.device))
        pitch_classes = melody.chroma(wave, model.sample_rate).argmax(dim=0).to(torch.int8)
        examples.append(Example(recording.caption, codes, pitch_classes))
    if other_rates:
        rates = ", ".join(map(str, sorted(other_rates)))
        print(f"resampled files at {rates} Hz to the model's {model.sample_rate} Hz", file=sys.stderr)
    if short:
        print(
            f"{short} of {len(recordings)} files are shorter than the model's window of "
            f"{model.max_duration:g} s: longer crops are padded, and padding is masked out of the loss",
            file=sys.stderr,
        )
    cache.parent.mkdir(parents=True, exist_ok=True)
    audio.replace_file(cache, lambda path: _write_cache(path, key, examples))
    return examples


def _write_cache(path: Path, key: dict[str, object], examples: Sequence[Example]) -> None:
    tensors = {f"{i}.codes": example.codes.contiguous() for i, example in enumerate(examples)}
    tensors |= {f"{i}.melody": example.melody for i, example in enumerate(examples)}
    texts = json.dumps([example.caption for example in examples])
    save_file(tensors, path, {"key": json.dumps(key), "captions": texts})


def _read_cache(path: Path, key: dict[str, object]) -> list[Example]:
    """The examples in a cache; none if it is missing, damaged, or was made for another `key`."""
    if not path.is_file():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if json.loads(metadata["key"]) != key:
                return []
            return [
                Example(caption, file.get_tensor(f"{i}.codes"), file.get_tensor(f"{i}.melody"))
                for i, caption in enumerate(json.loads(metadata["captions"]))
            ]
    except (SafetensorError, KeyError, ValueError):
        return []


@torch.no_grad()
def encode(codec: Codec, wave: Tensor) -> Tensor:
    """Codes [K * C, T] int16 of `wave` [C, N], encoded PIECE seconds at a time."""
    samples = PIECE * codec.config.frame_rate * codec.config.hop
    codes = [codec.encode(piece[None])[0].short().cpu() for piece in wave.split(samples, dim=-1)]
    return torch.cat(codes, dim=-1)


def strides(codec: Codec) -> tuple[int, int]:
    """Numbers of code frames and chroma frames with equal duration: 32 and 5 at 32 kHz.

    >>> from mgkit.codec import CodecConfig
    >>> strides(Codec(CodecConfig(filters=1)))
    (32, 5)
    """
    samples = math.lcm(codec.config.hop, melody.HOP)
    return samples // codec.config.hop, samples // melody.HOP
