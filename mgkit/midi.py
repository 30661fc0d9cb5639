"""Melodies from files: the notes of a MIDI file as chroma, anything else as audio.

Axes: C channels, N samples, F chroma frames.

    tune.mid -> notes in seconds -> multi-hot chroma [F, 12]
"""

import os
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from mgkit import audio
from mgkit.brief import brief
from mgkit.melody import HOP

ENDINGS = (".mid", ".midi")
DRUMS = 9  # the channel of drums in General MIDI, counted from 0
LARGEST = 2**24  # bytes
LONGEST = 3600.0  # seconds


def read_melody(path: str | os.PathLike, rate: int) -> tuple[Tensor, int]:
    """The melody in a file, for a model at `rate` Hz: chroma [F, 12] of MIDI, else a wave [C, N]; its rate.

    Raises: as `read_chroma` and `audio.read`.
    """
    if Path(path).suffix.lower() in ENDINGS:
        return read_chroma(path, rate), rate
    return audio.read(path)


def read_chroma(path: str | os.PathLike, rate: int = 32000) -> Tensor:
    """Multi-hot chroma [F, 12] of a MIDI file: the pitch classes of all notes but drums, by mido.

    A frame lasts HOP / `rate` seconds; each note sounds in at least one. A frame without notes is pitch class
    0, as silence is. To follow one voice alone, save it as a file of its own.

    Raises: ImportError without mido; FileNotFoundError; ValueError for another format, no notes, or more than
    an hour.
    """
    notes = _notes(Path(path))
    if not notes:
        raise ValueError(f"{path} has no notes apart from drums; choose another MIDI file")
    frame = HOP / rate
    chroma = torch.zeros(max(1, round(max(end for _, end, _ in notes) / frame)), 12)
    for start, end, pitch in notes:
        first = min(round(start / frame), len(chroma) - 1)
        chroma[first : max(first + 1, round(end / frame)), pitch % 12] = 1
    chroma[chroma.sum(dim=1) == 0, 0] = 1
    return chroma


def _notes(path: Path) -> list[tuple[float, float, int]]:
    """Start and end in seconds, and MIDI pitch, of all notes but drums."""
    try:
        import mido
    except ImportError:
        raise ImportError(f"{path} is a MIDI file, which needs the package mido: pip install mido") from None
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST >> 20} MB; choose another MIDI file")
    time, notes = 0.0, []
    sounding: dict[tuple[int, int], list[float]] = defaultdict(list)
    try:
        for message in mido.MidiFile(path, clip=True):
            time += message.time
            if time > LONGEST:
                raise ValueError("it lasts more than an hour")
            if message.type not in ("note_on", "note_off") or message.channel == DRUMS:
                continue
            key = (message.channel, message.note)
            if message.type == "note_on" and message.velocity > 0:
                sounding[key].append(time)
            elif sounding[key]:
                notes.append((sounding[key].pop(0), time, message.note))
    # mido reports a damaged file as any of these
    except (EOFError, OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        reason = brief(str(error), 100) if str(error) else "it ends too early"
        raise ValueError(f"{path} could not be read as a MIDI file ({reason}); export it again") from None
    notes += [(start, time, pitch) for (_, pitch), starts in sounding.items() for start in starts]
    return notes
