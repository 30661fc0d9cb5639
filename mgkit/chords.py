"""Chord progressions, in the notation of Harte et al. (ISMIR 2005), as sets of pitch classes in time.

"A:min"           root A, quality min                  A C E
"C:maj7/3"        with the third in the bass           C E G B
"D:(1,3,5,b7)"    spelled as degrees                   D F♯ A C
"G:sus4(b7)"      a quality with a degree added        G C D F
"N"               no chord
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import TypeAlias

from mgkit.brief import brief

Progression: TypeAlias = str | Sequence[tuple[float, str]]
"""Chord names of equal length, "C G A:min F", or with times in seconds, [(0, "C"), (2, "A:min")]."""

NO_CHORD = "N"
DAY = 86400  # seconds; the longest progression
# Semitones above the root.
NATURALS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
DEGREES = {"1": 0, "2": 2, "3": 4, "4": 5, "5": 7, "6": 9, "7": 11, "9": 14, "11": 17, "13": 21}
# Degrees of each quality.
QUALITIES = {
    "maj": "1 3 5",
    "min": "1 b3 5",
    "dim": "1 b3 b5",
    "aug": "1 3 #5",
    "sus2": "1 2 5",
    "sus4": "1 4 5",
    "maj6": "1 3 5 6",
    "min6": "1 b3 5 6",
    "maj7": "1 3 5 7",
    "min7": "1 b3 5 b7",
    "7": "1 3 5 b7",
    "dim7": "1 b3 b5 bb7",
    "hdim7": "1 b3 b5 b7",
    "minmaj7": "1 b3 5 7",
    "maj9": "1 3 5 7 9",
    "min9": "1 b3 5 b7 9",
    "9": "1 3 5 b7 9",
    "1": "1",
    "5": "1 5",
}
NAME = re.compile(
    r"(?P<root>[A-G](?:b*|#*))"
    r"(?::(?P<quality>[a-z]*\d*)(?:\((?P<degrees>[^()]*)\))?)?"
    r"(?:/(?P<bass>[^/]*))?"
)
DEGREE = re.compile(r"(?P<omit>\*?)(?P<shift>b*|#*)(?P<number>\d+)")


def parse_progression(
    progression: Progression, bpm: float, beats: float, seconds: float | None, shortest: float
) -> tuple[list[tuple[float, set[int]]], float]:
    """The start in seconds and the pitch classes of each chord, and the length of the progression in seconds.

    Chords without times last `beats` beats at `bpm` beats a minute; with times, the last one ends at
    `seconds`. "N", no chord, has pitch class 0.

    Raises: ValueError for an invalid chord, with its position, invalid times, or a chord that lasts less than
    `shortest` seconds.
    """
    for name, value in (("bpm", bpm), ("beats", beats), ("seconds", DAY if seconds is None else seconds)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= DAY:
            raise ValueError(f"{name} is {brief(value)}; it must be a number above 0, at most {DAY}")
    if isinstance(progression, str):
        names = progression.split()
        starts, end = [i * beats * 60 / bpm for i in range(len(names))], len(names) * beats * 60 / bpm
    else:
        starts, names = _parse_times(progression)
        if seconds is None:
            raise ValueError("the chords have times, and no end: give it as seconds, such as seconds=8")
        end = float(seconds)
    if not names:
        raise ValueError("there are no chords; give names such as 'C G A:min F'")
    chords = [_parse_chord(name, f"chord {i} of {len(names)}") for i, name in enumerate(names, 1)]
    durations = [later - start for start, later in pairwise([*starts, end])]
    if starts[0] != 0 or not all(duration >= shortest for duration in durations) or not end <= DAY:
        raise ValueError(
            f"the chords start at {brief(starts)} s and end at {end:g} s; times must rise from 0 to at most "
            f"a day, and a chord must last at least {shortest:g} s, a frame of chroma"
        )
    return list(zip(starts, chords, strict=True)), end


def _parse_times(entries: object) -> tuple[list[float], list[str]]:
    """The starts and names of a list of times and chords."""
    if not isinstance(entries, list | tuple) or not all(
        isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], Real)
        for entry in entries
    ):
        raise ValueError(
            f"the chords are {brief(entries)}; give a text such as 'C G A:min F', or times and names such as "
            "[(0, 'C'), (2, 'A:min')]"
        )
    return [float(start) for start, _ in entries], [name for _, name in entries]


def _parse_chord(name: object, position: str) -> set[int]:
    if not isinstance(name, str):
        raise ValueError(f"{position} is {brief(name)}; it must be a name such as 'A:min'")
    try:
        return pitch_classes(name) or {0}
    except ValueError as error:
        raise ValueError(f"{position}: {error}") from None


def pitch_classes(name: str) -> set[int]:
    """The pitch classes, 0 (C) to 11 (B), of a chord, the bass included; none for "N".

    Raises: ValueError for a name that is not in Harte's notation, or an unknown quality or degree.

    >>> sorted(pitch_classes("A:min")), sorted(pitch_classes("Bb:7/5")), pitch_classes("N")
    ([0, 4, 9], [2, 5, 8, 10], set())
    """
    if name == NO_CHORD:
        return set()
    parts = NAME.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"{brief(name)} is not a chord name: write a root, a colon and a quality, such as C, F#:7, "
            f"Bb:maj7, A:min or A:min/b3, or {NO_CHORD} for no chord{_suggestion(name)}"
        )
    quality, degrees, bass = parts["quality"], parts["degrees"], parts["bass"]
    if quality and quality not in QUALITIES:
        raise ValueError(
            f"{brief(name)} has the unknown quality {brief(quality)}; choose one of {', '.join(QUALITIES)}, "
            "or spell the chord as degrees, such as C:(1,3,5)"
        )
    if quality == "" and degrees is None:
        raise ValueError(f"{brief(name)} ends with a colon; add a quality such as min, or leave it out")
    root = NATURALS[name[0]] + parts["root"].count("#") - parts["root"].count("b")
    # A chord without a quality is major, unless it is spelled as degrees above its root.
    base = "1" if quality == "" else QUALITIES[quality or "maj"]
    notes = {_semitones(degree, name)[1] for degree in base.split()}
    for degree in degrees.split(",") if degrees is not None else []:
        omitted, semitones = _semitones(degree, name)
        notes = notes - {semitones} if omitted else notes | {semitones}
    if bass is not None:
        notes.add(_semitones(bass, name)[1])
    return {(root + semitones) % 12 for semitones in notes}


def _semitones(degree: str, name: str) -> tuple[bool, int]:
    """Whether the degree is marked as omitted, and its semitones above the root, modulo 12."""
    parts = DEGREE.fullmatch(degree.strip())
    if parts is None or parts["number"] not in DEGREES:
        raise ValueError(
            f"{brief(name)} has the unknown degree {brief(degree)}; write one of {', '.join(DEGREES)}, "
            "lowered by b, raised by #, or omitted with *"
        )
    semitones = DEGREES[parts["number"]] + parts["shift"].count("#") - parts["shift"].count("b")
    return bool(parts["omit"]), semitones % 12


def _suggestion(name: str) -> str:
    """A chord name that was probably meant, such as A:min for Am."""
    parts = re.fullmatch(r"([A-G][b#]?)(m|maj|min|dim|aug|sus[24]|m7|maj7|min7|7|9|6)", name)
    if parts is None:
        return ""
    quality = {"m": "min", "m7": "min7", "6": "maj6"}.get(parts[2], parts[2])
    return f"; here probably {parts[1]}:{quality}"
