"""Frame labels of a piece: key, beat, notes, drums and other attributes at each codec frame, and its chords.

Axes: T frames, F chroma frames.

    piece -> frame_labels -> int8 [len(CLASSES) + len(BINARY), T]
          -> chord_bits   -> int16 [F], one bit per pitch class

The composer knows every note, so these labels are exact. The frame labels are the targets of the auxiliary
head in `mgkit.train.auxiliary`; the chords condition the language model in some examples.
"""

import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from tqdm import tqdm

from mgkit.band.compose import compose
from mgkit.band.piece import Piece
from mgkit.band.styles import DENSITIES, LEADS, STYLES

FRAME_RATE = 50  # frames per second
CHROMA_RATE = 32000 / 4096  # chroma frames per second; the first one is centred on the first sample
TEMPO_STEP = 0.04  # width of a tempo class, natural logarithm of bpm / 60
LOWEST_PITCH = 36  # MIDI pitch of melody class 1; class 0 is silence
# For fewer clips than this, starting processes takes longer than composing them in one.
FEW_CLIPS = 2000

# General MIDI percussion keys by kind of drum; "light" is hi-hat, cymbals, shakers and the like.
DRUM_GROUPS = {
    "kick": (35, 36),
    "snare": (37, 38, 39, 40, 54),
    "light": (42, 44, 46, 49, 51, 53, 56, 70, 76, 81),
}

# Categorical labels: number of classes. `beat` is the number of the beat in the bar, `phase` the position in
# the beat, in sixteenths of it. Class 0 of `melody` and `bass` is silence; the other classes are MIDI pitches
# from LOWEST_PITCH (melody) and pitch classes (bass).
CLASSES = {
    "key": 24, "tempo": 26, "lead": len(LEADS), "style": len(STYLES), "meter": 2, "density": 3,
    "drums": 2, "beat": 4, "phase": 16, "melody": 62, "bass": 13,
}  # fmt: skip

# Binary labels: pitch classes of the harmony (chords, pad and bass), melody onsets, drum strokes by kind.
BINARY = (*(f"harmony {pitch_class}" for pitch_class in range(12)), "onset", *DRUM_GROUPS)


def frame_labels(piece: Piece, frames: int) -> np.ndarray:
    """Labels of the first `frames` frames, int8 [len(CLASSES) + len(BINARY), frames]: CLASSES first."""
    beats = (np.arange(frames) + 0.5) / FRAME_RATE * piece.tempo / 60
    tempo = round(math.log(piece.tempo / 60) / TEMPO_STEP)
    values = {
        "key": piece.key + 12 * (piece.mode == "minor"),
        "tempo": min(max(tempo, 0), CLASSES["tempo"] - 1),
        "lead": tuple(LEADS).index(piece.lead),
        "style": tuple(STYLES).index(piece.style),
        "meter": piece.meter - 3,
        "density": DENSITIES.index(piece.density),
        "drums": int(piece.drums),
        "beat": beats % piece.meter,
        "phase": beats % 1 * CLASSES["phase"],
        "melody": 0,
        "bass": 0,
    }
    labels = np.zeros((len(CLASSES) + len(BINARY), frames), np.int8)
    row = {name: labels[i] for i, name in enumerate((*CLASSES, *BINARY))}
    for name in CLASSES:
        row[name][:] = np.asarray(values[name]).astype(np.int8)
    for track in piece.tracks:
        for start, duration, pitch, _ in track.notes:
            first = round(start * FRAME_RATE)
            sounding = slice(first, max(first + 1, round((start + duration) * FRAME_RATE)))
            onset = slice(first, first + 2)
            if track.role == "melody":
                row["melody"][sounding] = min(max(1 + pitch - LOWEST_PITCH, 1), CLASSES["melody"] - 1)
                row["onset"][onset] = 1
            elif track.role == "bass":
                row["bass"][sounding] = 1 + pitch % 12
            elif track.role == "drums":
                for kind, keys in DRUM_GROUPS.items():
                    if pitch in keys:
                        row[kind][onset] = 1
            if track.role in ("chords", "pad", "bass"):
                row[f"harmony {pitch % 12}"][sounding] = 1
    return labels


def chord_bits(piece: Piece, frames: int) -> np.ndarray:
    """The chord at the centre of each of `frames` chroma frames, int16 [frames]: bit 0 is C, bit 11 is B.

    Here a chord of B, G and D:

    >>> f"{chord_bits(compose(0, tune='ode to joy', key=0), 1)[0]:b}"
    '100010000100'
    """
    starts = [start for start, _ in piece.chords]
    bits = np.array([sum(1 << pitch_class for pitch_class in set(chord)) for _, chord in piece.chords])
    times = np.arange(frames) / CHROMA_RATE
    return bits[np.searchsorted(starts, times, side="right") - 1].astype(np.int16)


def dataset_labels(
    rows: Sequence[Mapping[str, object]], seconds: float, frames: int, chroma_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a training set: `frame_labels`, int8 [clips, len(CLASSES) + len(BINARY), frames], and
    `chord_bits`, int16 [clips, chroma_frames].

    `rows` are the lines of pieces.jsonl; each piece is composed again from its seed, on all cores.

    Raises: ValueError for clips from elsewhere, and if a seed now composes a different piece.
    """
    if any("seed" not in row for row in rows):
        raise ValueError(
            "these clips have no frame labels, because mgkit.band did not compose them: "
            "turn the auxiliary loss off with --auxiliary 0"
        )
    labels = np.empty((len(rows), len(CLASSES) + len(BINARY), frames), np.int8)
    chords = np.empty((len(rows), chroma_frames), np.int16)
    label = functools.partial(_row_labels, seconds=seconds, frames=frames, chroma_frames=chroma_frames)
    workers = 1 if len(rows) < FEW_CLIPS else os.cpu_count() or 1

    def fill(computed: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        for i, each in enumerate(tqdm(computed, desc="frame labels", total=len(rows), unit="clip")):
            labels[i], chords[i] = each
        return labels, chords

    if workers == 1:
        return fill(map(label, rows))
    attributes = [{name: value for name, value in row.items() if name != "captions"} for row in rows]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return fill(pool.map(label, attributes, chunksize=32))


def _row_labels(
    row: Mapping[str, object], seconds: float, frames: int, chroma_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frame labels and chords of one line of pieces.jsonl."""
    seed = row["seed"]
    assert isinstance(seed, int)
    piece = compose(seed, seconds=seconds)
    if any(row[name] != value for name, value in piece.attributes().items()):
        raise ValueError(
            f"seed {seed} now composes a different piece than the one in this dataset: "
            "render the clips again with `python -m mgkit train data`"
        )
    return frame_labels(piece, frames), chord_bits(piece, chroma_frames)
