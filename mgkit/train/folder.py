"""A folder of captioned recordings, read as waves and encoded as a model's tokens.

    rain.wav  rain.txt    a caption beside each file, or
    captions.csv          one table of captions with the columns file and caption, or
    metadata.jsonl        one object per line: {"file": "rain.wav", "caption": "rain on a tin roof"}

Letters: C channels, K codebooks, T frames, N samples, F chroma frames.
"""

import csv
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mgkit import audio, melody
from mgkit.codec import Codec
from mgkit.musicgen import MusicGen
from mgkit.train.tokens import digest

TABLES = ("captions.csv", "metadata.jsonl")
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
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in audio.FORMATS)
    if not files:
        raise ValueError(f"{folder} has no audio files: put {', '.join(audio.FORMATS)} files into it")
    table = _read_table(folder)
    recordings = []
    for file in files:
        beside, name = file.with_suffix(".txt"), file.relative_to(folder).as_posix()
        caption = (_read_text(beside).strip() if beside.is_file() else "") or table.get(name, "")
        recordings.append(Recording(file, " ".join(caption.split())))
    uncaptioned = [rec.file.relative_to(folder).as_posix() for rec in recordings if not rec.caption]
    if uncaptioned:
        example = Path(uncaptioned[0]).with_suffix(".txt")
        raise ValueError(
            f"{len(uncaptioned)} of {len(recordings)} files in {folder} have no caption: "
            f"{_abbreviate(uncaptioned)}; describe the sound in {example}, or list all in captions.csv "
            "(file,caption)"
        )
    missing = [name for name in table if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"the captions in {folder} name files that do not exist: {_abbreviate(missing)}")
    return recordings


def _read_table(folder: Path) -> dict[str, str]:
    """Captions by file name from the first of TABLES in the folder."""
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        return {}
    text = _read_text(path)
    try:
        if path.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        # `file_name` and `text` are the column names of datasets on the Hugging Face hub.
        return {
            str(row.get("file") or row["file_name"]): str(row.get("caption") or row["text"]) for row in rows
        }
    except (KeyError, AttributeError, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} needs a file and a caption in every line ({type(error).__name__}: {error})"
        ) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it in that encoding") from None


def _abbreviate(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
    if cache.is_file():
        saved = torch.load(cache, weights_only=True)
        if saved["key"] == key:
            return [Example(*row) for row in saved["examples"]]
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
    rows = [(example.caption, example.codes, example.melody) for example in examples]
    cache.parent.mkdir(parents=True, exist_ok=True)
    audio.replace_file(cache, lambda path: torch.save({"key": key, "examples": rows}, path))
    return examples


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
