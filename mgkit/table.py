"""A table of experiments: the rows of a CSV file, or the columns of a sweep, as jobs.

    prompt,cfg_coef,seed          Job(prompt="calm piano", settings={"cfg_coef": 1}, seed=0)
    calm piano,"[1, 3]",          Job(prompt="calm piano", settings={"cfg_coef": 3}, seed=1)
    fast jazz,3,7                 Job(prompt="fast jazz", settings={"cfg_coef": 3}, seed=7)

A cell may hold a list in JSON; a row with lists stands for all their combinations, the last column fastest.
"""

import csv
import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from mgkit import melody
from mgkit.brief import brief
from mgkit.request import parse_seeds
from mgkit.settings import Settings

TEXTS = ("prompt", "negative", "chords")
FILES = ("melody", "audio_prompt")
NUMBERS = ("bpm", "beats", "seed")
SETTINGS = tuple(setting.name for setting in fields(Settings))
COLUMNS = (*TEXTS, *FILES, *NUMBERS, *SETTINGS)
MOST = 1_000_000  # jobs of a table


@dataclass(frozen=True)
class Job:
    """One piece to generate."""

    seed: int
    prompt: str = ""
    negative: str = ""
    chords: str = ""  # names, which repeat; empty for none
    bpm: float = 120.0  # of the chords
    beats: float = 4.0  # of each chord
    melody: Path | None = None  # an audio or MIDI file
    audio_prompt: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()  # those that are not the default
    place: str = field(default="", compare=False)  # in the table, for error messages

    def __post_init__(self) -> None:
        given = [name for name in ("melody", "chords", "audio_prompt") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        for path in filter(None, (self.melody, self.audio_prompt)):
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {str(path)!r}")
        parse_seeds([self.seed], 1)
        Settings(**dict(self.settings))
        if self.chords:
            melody.chords(self.chords, self.bpm, self.beats)


def read_jobs(path: str | os.PathLike, defaults: Mapping[str, Any]) -> list[Job]:
    """The jobs of a CSV file with the columns of `COLUMNS`, in any order, none of them required.

    Files are relative to the folder of the table. An empty cell takes its value from `defaults`; an empty
    seed is the number of the job, counted from `defaults["seed"]` or 0. Columns are separated by commas, or
    by semicolons as some spreadsheets write them.

    Raises: FileNotFoundError for the table, or a file that it names; ValueError for another format, an
    unknown column or an invalid cell, with its line.
    """
    path = Path(path)
    jobs: list[Job] = []
    for line, row in _rows(path):
        place = f"line {line} of {path.name}"
        try:
            cells = {name: _cell(name, text) for name, text in row.items() if text.strip()}
            jobs += expand(cells, defaults, len(jobs), path.parent, place)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{place}: {error}") from None
    if not jobs:
        raise ValueError(
            f"{path} has no rows; write a line of columns, such as prompt,seed, and one for each piece"
        )
    return jobs


def expand(
    columns: Mapping[str, Sequence],
    defaults: Mapping[str, Any],
    first: int = 0,
    folder: Path = Path(),
    place: str = "",
) -> list[Job]:
    """The jobs of all combinations of the values in `columns`, the last column fastest.

    A missing seed is the number of the job, from `defaults["seed"]` or 0, and `first` more.

    Raises: ValueError for an unknown column, an invalid value, or too many jobs.
    """
    for name in columns:
        _parse_column(name)
    if first + prod(len(values) for values in columns.values()) > MOST:
        raise ValueError(f"a table stands for at most {MOST} pieces; split it")
    jobs = []
    for number, values in enumerate(product(*columns.values()), first):
        cells = (
            dict(defaults)
            | {"seed": defaults.get("seed", 0) + number}
            | dict(zip(columns, values, strict=True))
        )
        settings = tuple((name, _frozen(cells.pop(name))) for name in SETTINGS if name in cells)
        for name in (*TEXTS, *FILES):
            if not isinstance(cells.get(name, ""), str if name in TEXTS else str | Path):
                raise ValueError(f"{name} is {brief(cells[name])}; it must be a text")
        cells |= {name: folder / cells[name] for name in FILES if name in cells}
        jobs.append(Job(settings=settings, place=place, **cells))
    return jobs


def _frozen(value: Any) -> Any:
    """A value in which every list, such as a schedule, is a tuple: jobs are hashable."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _parse_column(name: str) -> None:
    if name not in COLUMNS:
        near = difflib.get_close_matches(name, COLUMNS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COLUMNS)}"
        raise ValueError(f"there is no column {brief(name)}; {hint}")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row with the number of its line; blank rows are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from None
    head = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(True), delimiter=";" if ";" in head and "," not in head else ",")
    try:
        names = [name.strip() for name in next(reader, [])]
        for name in names:
            _parse_column(name)
        if len(set(names)) < len(names):
            raise ValueError(f"{path} has two columns of one name: {', '.join(names)}")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(names):
                raise ValueError(
                    f"line {reader.line_num} of {path.name} has {len(row)} cells for {len(names)} columns; "
                    "put a text with commas, or a list, in double quotes"
                )
            yield reader.line_num, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num} of {path.name} could not be read as CSV ({error})"
        ) from None


def _cell(name: str, text: str) -> list:
    """The values of a cell: one, or those of a list."""
    text = text.strip()
    literal = name in TEXTS or name in FILES
    try:
        value = json.loads(text) if not literal or text.startswith("[") else text
    except (ValueError, RecursionError):
        if not literal and text.lower() in ("true", "false"):
            value = text.lower() == "true"
        elif literal:
            value = text
        else:
            raise ValueError(
                f"{name} is {brief(text)}; it must be a number, true, false, or a list as in [1, 3]"
            ) from None
    if not isinstance(value, list):
        return [value]
    if not value:
        raise ValueError(f"{name} is an empty list; give its values, or leave the cell empty")
    return value
