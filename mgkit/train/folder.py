"""A folder of anyone's own sounds with captions, as waves and then as a model's tokens.

    rain.wav  rain.txt    a caption beside each file, or
    captions.csv          all captions in one table with the columns file and caption, or
    metadata.jsonl        one object a line: {"file": "rain.wav", "caption": "rain on a tin roof"}

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
SHORTEST = 1.0  # seconds; from less there is nothing to learn that lasts
STRETCH = 60  # seconds that the codec hears at once: a whole hour would not fit the memory


@dataclass(frozen=True)
class Sound:
    """A file and what it is called."""

    file: Path
    caption: str


@dataclass(frozen=True)
class Heard:
    """A sound as the model hears it: `codes` [K, T] int16, `melody` [F] int8 the loudest pitch class of each chroma frame."""

    caption: str
    codes: Tensor
    melody: Tensor


def find(folder: str | Path) -> list[Sound]:
    """The sounds of `folder` and of the folders in it, by name.

    Errors: FileNotFoundError for no folder; ValueError where it holds no sounds, where captions are missing (which, and
    where to write them), or where a table of captions cannot be read or names a file that is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in audio.FORMATS)
    if not files:
        raise ValueError(f"{folder} holds no sounds: put {', '.join(audio.FORMATS)} files into it")
    said = _table(folder)
    sounds = []
    for file in files:
        beside, name = file.with_suffix(".txt"), file.relative_to(folder).as_posix()
        caption = (_read_text(beside).strip() if beside.is_file() else "") or said.get(name, "")
        sounds.append(Sound(file, " ".join(caption.split())))
    silent = [sound.file.relative_to(folder).as_posix() for sound in sounds if not sound.caption]
    if silent:
        raise ValueError(
            f"{len(silent)} of {len(sounds)} files in {folder} have no caption: {_some(silent)}; write what is heard "
            f"into {Path(silent[0]).with_suffix('.txt')}, or a line for each into captions.csv (file,caption)"
        )
    lost = [name for name in said if not (folder / name).is_file()]
    if lost:
        raise ValueError(f"the captions of {folder} name files that are not there: {_some(lost)}")
    return sounds


def _table(folder: Path) -> dict[str, str]:
    """Captions by file name, of the first of TABLES that is there."""
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        return {}
    text = _read_text(path)
    try:
        if path.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        # `file_name` and `text` are what data sets on the Hugging Face hub call them
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
        raise ValueError(f"{path} is not UTF-8 text; save it as such") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def fingerprint(sounds: Sequence[Sound]) -> str:
    """Tells sets of sounds apart: by their captions and every byte of their files."""
    seen = hashlib.sha256()
    for sound in sounds:
        seen.update(hashlib.sha256(sound.file.read_bytes()).digest())
        seen.update(sound.caption.encode())
    return seen.hexdigest()[:16]


def read(sound: Sound, rate: int, channels: int) -> tuple[Tensor, int]:
    """Wave [C, N] of the sound at `rate` and with so many `channels`, and the rate of its file.

    Errors: ValueError, with the file's name, for what is not audio, holds NaN, or lasts less than SHORTEST.
    """
    wave, own = audio.read(sound.file)
    wave = audio.check(wave, str(sound.file))
    if wave.shape[-1] < SHORTEST * own:
        raise ValueError(
            f"{sound.file} lasts {wave.shape[-1] / own:.2f} s; give at least {SHORTEST:g} s, or take it out of the folder"
        )
    return audio.to_channels(audio.resample(wave, own, rate), channels), own


def listen(model: MusicGen, sounds: Sequence[Sound], cache: str | Path) -> list[Heard]:
    """The sounds in the tokens of the model's own codec; read from the file `cache` where it holds just these.

    Says once what is resampled and what is shorter than the model's window: of that, what there is is learned from.
    Errors: those of `read`.
    """
    cache = Path(cache)
    plan = {"sounds": fingerprint(sounds), "codec": digest(model.codec), "channels": model.audio_channels}
    if cache.is_file():
        saved = torch.load(cache, weights_only=True)
        if saved["plan"] == plan:
            return [Heard(*row) for row in saved["heard"]]
    rates, short, heard = set(), 0, []
    for sound in tqdm(sounds, desc="tokens", unit="file"):
        wave, rate = read(sound, model.sample_rate, model.audio_channels)
        rates |= {rate} - {model.sample_rate}
        short += wave.shape[-1] < model.max_duration * model.sample_rate
        pitch = melody.chroma(wave, model.sample_rate).argmax(dim=0).to(torch.int8)
        heard.append(Heard(sound.caption, encode(model.codec, wave.to(model.lm.device)), pitch))
    if rates:
        hertz = ", ".join(f"{rate}" for rate in sorted(rates))
        print(f"resampled to the model's {model.sample_rate} Hz: what is at {hertz} Hz", file=sys.stderr)
    if short:
        print(
            f"{short} of {len(sounds)} files are shorter than the model's window of {model.max_duration:g} s: it learns "
            "from what there is, and nothing of what follows",
            file=sys.stderr,
        )
    rows = [(one.caption, one.codes, one.melody) for one in heard]
    cache.parent.mkdir(parents=True, exist_ok=True)
    audio.replace_file(cache, lambda path: torch.save({"plan": plan, "heard": rows}, path))
    return heard


@torch.no_grad()
def encode(codec: Codec, wave: Tensor) -> Tensor:
    """Codes [K * C, T] int16 of `wave` [C, N], STRETCH seconds at a time."""
    whole = STRETCH * codec.config.frame_rate * codec.config.hop
    return torch.cat(
        [codec.encode(part[None])[0].short().cpu() for part in wave.split(whole, dim=-1)], dim=-1
    )


def strides(codec: Codec) -> tuple[int, int]:
    """Frames of codes and of chroma that take equally long: 32 and 5 at 32 kHz.

    >>> from mgkit.codec import CodecConfig
    >>> strides(Codec(CodecConfig(filters=1)))
    (32, 5)
    """
    both = math.lcm(codec.config.hop, melody.HOP)
    return both // codec.config.hop, both // melody.HOP
