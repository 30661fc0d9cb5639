"""Pieces with labels, as tokens of a model: composed by the band, or a folder of one's own recordings.

Axes: K codebooks, T frames, C channels, N samples.

    seeds  -> compose, render -> wave [C, N] -> codec -> tokens [K, T], labels of the piece and its frames
    folder -> labels.csv      -> wave [C, N] -> codec -> tokens [K, T], labels of the piece
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mgkit import audio
from mgkit.band.captions import FIRST_VALID_SEED
from mgkit.band.compose import compose
from mgkit.band.piece import Piece
from mgkit.band.synth import render
from mgkit.musicgen import MusicGen
from mgkit.train import folder
from mgkit.train.captions import abbreviate, read_text

BAND_PIECES, BAND_SECONDS = 240, 10.0
# The bounds between classes of tempo, which are about 15 % wide, in beats per minute.
TEMPO_BOUNDS = (70, 80, 92, 106, 122, 140)
NOTES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
TABLE = "labels.csv"

Labels = str | Sequence[str | None]
"""A label of a whole piece, or one for each of its T frames; None where there is none."""


@dataclass(frozen=True)
class LabelledPiece:
    """The tokens [K, T] of a piece, and its labels by attribute."""

    codes: Tensor
    labels: Mapping[str, Labels]


# -- the band ----------------------------------------------------------------------------------------------


def band_pieces(
    model: MusicGen,
    count: int = BAND_PIECES,
    seconds: float = BAND_SECONDS,
    first_seed: int = FIRST_VALID_SEED,
) -> list[LabelledPiece]:
    """`count` pieces composed by the band, rendered and encoded by the model's codec, with exact labels.

    The default seeds are not in the training data. Labels of a piece: key, tonic, mode, tempo, meter, lead,
    style, drums. Labels of frames: chord (Harte's names), pitch (of the melody), beat (of the bar).

    Raises: FileNotFoundError or ImportError with the package to install for rendering.
    """
    seconds = min(seconds, model.max_duration)
    pieces = []
    for seed in tqdm(range(first_seed, first_seed + count), desc="render and encode", unit="piece"):
        piece = compose(seed, seconds=seconds)
        wave = torch.from_numpy(render(piece, seconds=seconds, rate=model.sample_rate)[0])[None]
        codes = _encode(model, wave)
        pieces.append(LabelledPiece(codes, band_labels(piece, codes.shape[-1], model.frame_rate)))
    return pieces


def band_labels(piece: Piece, frames: int, rate: float) -> dict[str, Labels]:
    """Labels of a composed piece with `frames` frames, `rate` of them per second.

    >>> labels = band_labels(compose(3, key=2, mode="minor", tempo=100), frames=100, rate=50)
    >>> labels["key"], labels["tempo"], labels["beat"][0]
    ('D minor', '92 to 105 bpm', '1')
    """
    seconds = (np.arange(frames) + 0.5) / rate
    starts = np.array([start for start, _ in piece.chords])
    names = [chord_name(chord) for _, chord in piece.chords]
    pitch: list[str | None] = [None] * frames
    [melody] = [track for track in piece.tracks if track.is_melody]
    for start, duration, note, _ in melody.notes:
        for frame in range(round(start * rate), min(frames, round((start + duration) * rate))):
            pitch[frame] = f"{NOTES[note % 12]}{note // 12 - 1}"
    return {
        "key": f"{NOTES[piece.key]} {piece.mode}",
        "tonic": NOTES[piece.key],
        "mode": piece.mode,
        "tempo": tempo_class(piece.tempo),
        "meter": f"{piece.meter}/4",
        "lead": piece.lead,
        "style": piece.style,
        "drums": "drums" if piece.drums else "no drums",
        "chord": [names[i] for i in np.searchsorted(starts, seconds, side="right") - 1],
        "pitch": pitch,
        "beat": [str(1 + int(beat)) for beat in seconds * piece.tempo / 60 % piece.meter],
    }


def chord_name(chord: Sequence[int]) -> str:
    """Root and triad of pitch classes, the root first, in Harte's notation; a seventh is left out.

    >>> chord_name((9, 0, 4, 7)), chord_name((7, 11, 2)), chord_name((11, 2, 5))
    ('A:min', 'G:maj', 'B:dim')
    """
    third, fifth = ((tone - chord[0]) % 12 for tone in chord[1:3])
    return f"{NOTES[chord[0]]}:{'maj' if third == 4 else 'dim' if fifth == 6 else 'min'}"


def tempo_class(tempo: float) -> str:
    """The class of a tempo between TEMPO_BOUNDS.

    >>> tempo_class(69), tempo_class(70), tempo_class(150)
    ('below 70 bpm', '70 to 79 bpm', 'from 140 bpm')
    """
    above = [bound for bound in TEMPO_BOUNDS if tempo >= bound]
    if len(above) == len(TEMPO_BOUNDS):
        return f"from {above[-1]} bpm"
    upper = TEMPO_BOUNDS[len(above)]
    return f"{above[-1]} to {upper - 1} bpm" if above else f"below {upper} bpm"


# -- a folder ----------------------------------------------------------------------------------------------


def folder_pieces(model: MusicGen, path: str | Path) -> list[LabelledPiece]:
    """Recordings of one's own, encoded, with the labels in the folder's labels.csv.

    Its first line names the columns: `file`, and any attributes; an empty cell is no label. Of a recording
    longer than the model's window, the first window counts.

    Raises: FileNotFoundError without the folder, the table or a file in it; ValueError for a malformed table,
    and as `folder.read` for a recording.
    """
    path = Path(path)
    rows = _read_labels(path / TABLE)
    if missing := [name for name in rows if not (path / name).is_file()]:
        raise FileNotFoundError(
            f"{path / TABLE} names files that do not exist: {abbreviate(missing)}; remove these "
            "lines, or add the files"
        )
    pieces = []
    for name, labels in tqdm(rows.items(), desc="encode", unit="file"):
        wave, _ = folder.read(folder.Recording(path / name, ""), model.sample_rate, model.audio_channels)
        codes = _encode(model, wave[:, : round(model.max_duration * model.sample_rate)])
        pieces.append(LabelledPiece(codes, labels))
    return pieces


def _read_labels(path: Path) -> dict[str, dict[str, str]]:
    """Labels by file and attribute. Raises: FileNotFoundError, or ValueError with the line."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}: list the recordings there, with the columns file and one for "
            "each attribute, such as file,key,genre"
        )
    header, *lines = list(csv.reader(read_text(path).splitlines())) or [[]]
    names = [name.strip().lower() for name in header]
    if "file" not in names or len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"{path} must begin with the names of its columns, file and one for each attribute, such as "
            f"file,key,genre; its first line is {','.join(header)[:60]!r}"
        )
    rows = {}
    for number, cells in enumerate(lines, 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"{path} has {len(names)} columns, but {len(cells)} cells in line {number}; put quotes "
                "around a cell that contains a comma"
            )
        row = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
        rows[row["file"]] = {name: cell for name, cell in row.items() if cell and name != "file"}
    return rows


def _encode(model: MusicGen, wave: Tensor) -> Tensor:
    """Codes [K, T] of a wave [C, N] of any number of channels."""
    wave = audio.to_channels(wave, model.audio_channels).to(model.lm.device)
    return folder.encode(model.codec, wave)
