"""The band: composes, renders and captions the music that the small model learns from.

    seed -> compose -> Piece (who plays which note when) -> render -> mix, melody  [N] float32
                             `-> captions -> texts

`python -m mgkit.band.compose --out runs/band --clips 5000` writes a training set (layout: see `write_dataset`).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mgkit.band.captions import FIRST_TEST_SEED, HELD_OUT_PAIRS, HELD_OUT_TUNES, captions, tempo_word
from mgkit.band.piece import Note, Piece, Track
from mgkit.band.tunes import TUNES, Tune, bars, parse, pitch_class

__all__ = ["Piece", "Track", "captions", "compose", "find_soundfont", "main", "render", "write_dataset"]

RATE = 32000  # Hz
CAPTIONS_PER_CLIP = 6

# -- instruments and styles ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lead:
    program: int
    centre: int  # the MIDI pitch that melodies stay around


LEADS = {
    "piano": Lead(0, 73), "music box": Lead(10, 82), "vibraphone": Lead(11, 73), "marimba": Lead(12, 70),
    "organ": Lead(19, 73), "accordion": Lead(21, 72), "guitar": Lead(24, 66), "electric guitar": Lead(29, 66),
    "violin": Lead(40, 76), "cello": Lead(42, 53), "trumpet": Lead(56, 71), "flute": Lead(73, 80),
    "clarinet": Lead(71, 69), "choir": Lead(52, 69), "sitar": Lead(104, 64), "synth": Lead(81, 73),
}  # fmt: skip
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
DENSITIES = ("sparse", "medium", "dense")
MOODS = {  # a mood is a mode at a tempo
    "calm": ("major", "slow"), "hopeful": ("major", "moderate"), "happy": ("major", "fast"),
    "sad": ("minor", "slow"), "mysterious": ("minor", "moderate"), "tense": ("minor", "fast"),
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a style plays. A pattern has one sign for each sixteenth of a bar of four, waltz patterns of three.

    Chords: `C` and `c` strike the chord, loud and soft; a digit plays one of its voices, counted from below.
    Bass: `r` root, `3`, `5`, `o` octave, `a` a step below the root that comes next.
    Drums: `X`, `x`, `o` from loud to soft.
    """

    tempo: tuple[int, int]
    waltz: float  # how often in three
    drummed: float  # how often with drums
    swing: float  # 0 plays eighths even, 1 as triplets
    gate: float  # how much of its time a chord or bass note sounds
    room: float  # seconds of reverberation
    chord_programs: tuple[int, ...]
    bass_program: int
    pad_program: int
    kit: int
    progressions: Mapping[str, tuple[str, ...]]
    chords: tuple[str, str, str]  # by density
    bass: tuple[str, str, str]
    beat: dict[int, str]  # percussion key: pattern
    five_notes: bool = False  # melodies keep to the pentatonic scale


WALTZ_CHORDS = ("....c...c...", "....C...c...", "0.1.2.3.2.1.")
WALTZ_BASS = ("r...........", "r...........", "r.......5...")
WALTZ_BEAT = {36: "X...........", 38: "....o...o...", 42: "x...x.x.x..."}
# fmt: off
POP = {"major": ("I IV V I", "I vi IV V", "I IV I V", "I V I IV"),
       "minor": ("i VI iv V", "i iv V i", "i VII VI V", "i iv i V")}
CADENCES = {"major": ("I IV V I", "I vi ii V", "I V I IV I IV V I", "I I IV V I vi V I"),
            "minor": ("i iv V i", "i VI iio V", "i V i iv i iv V i", "i i VI V i iv V i")}
TURNS = {"major": ("IM7 vi7 ii7 V7", "I6 ii7 V7 I6", "I6 IV7 I6 V7", "I6 I6 ii7 V7"),
         "minor": ("i iv7 V7 i", "i VIM7 iio7 V7", "i iv7 i V7", "i i iio7 V7")}
# fmt: on

STYLES = {
    "classical": Style(
        (66, 150), 0.4, 0.05, 0, 0.95, 1.3, (0, 46, 6), 43, 48, 0, CADENCES,
        ("c.......c.......", "0.2.1.2.0.2.1.2.", "0212021202120212"),
        ("r...............", "r.......5.......", "r...5...r...5..."),
        {36: "x.......x.......", 38: "....o.......o.o.", 81: "o......."}),
    "folk": Style(
        (76, 144), 0.35, 0.3, 0.15, 0.9, 0.6, (25, 24, 46), 32, 21, 0, POP,
        ("....c.......c...", "0...C.c.1...C.c.", "0.C.c.C.0.C.c.Cc"),
        ("r.......5.......", "r.......5.......", "r...r...5...5..."),
        {54: "....x.......x...", 36: "x.......x.......", 70: "x.o.x.o.x.o.x.o."}, five_notes=True),
    "rock": Style(
        (92, 160), 0.05, 0.92, 0, 0.9, 0.5, (27, 26, 18), 33, 18, 16,
        {"major": ("I IV I V", "I V vi IV", "I IV V I"), "minor": ("i i VI V", "i VII VI V", "i iv i V")},
        ("C.......c.......", "C.c.C.c.C.c.C.c.", "C.c.c.C.c.c.C.cc"),
        ("r.......r.......", "r.r.r.r.r.r.r.r.", "r.r.r.r.r.r.5.a."),
        {36: "X.....x.X.......", 38: "....X.......X...", 42: "x.o.x.o.x.o.x.o."}, five_notes=True),
    "jazz": Style(
        (76, 160), 0.12, 0.75, 1, 0.8, 0.7, (0, 26, 4), 32, 48, 40, TURNS,
        ("....c.......c...", "C.....c.....C...", "C..c..C...c.C.c."),
        ("r.......5.......", "r...3...5...a...", "r...3...5...a.a."),
        {51: "X...x.o.X...x.o.", 44: "....x.......x...", 36: "o...o...o...o...", 38: "......o.......o."}),
    "lullaby": Style(
        (60, 92), 0.5, 0.05, 0, 1, 1.2, (46, 0, 24), 32, 48, 0, POP,
        ("0...1...2...1...", "0.1.2.1.0.1.2.1.", "0.1.2.3.2.1.2.1."),
        ("r...............", "r...............", "r.......5......."),
        {76: "o.......o.......", 70: "o...o...o...o..."}),
    "electronic": Style(
        (100, 152), 0, 0.9, 0, 0.55, 0.6, (81, 80, 5), 38, 89, 24,
        {"major": ("I V vi IV", "I I IV V", "I IV I V"), "minor": ("i VI iv V", "i i VI V", "i iv i V")},
        ("C...c...C...c...", "0.1.2.1.0.1.2.1.", "0121012101210121"),
        ("r.......r.......", "r...r...r...r...", "r.r.r.r.r.r.r.o."),
        {36: "X...X...X...X...", 39: "....x.......x...", 42: "x.o.x.o.x.o.x.oo", 46: "..x...x...x...x."},
        five_notes=True),
    "latin": Style(
        (84, 144), 0, 0.85, 0, 0.7, 0.6, (24, 0, 25), 32, 48, 0, TURNS,
        ("C...c...C...c...", "C...c.c.C...c.c.", "C.c.c.C.C.c.c.C."),
        ("r.......5.......", "r.....5.5.....r.", "r..r5...5..5r..."),
        {36: "X.....o.X.....o.", 37: "....x.o.....x...", 70: "X.oxX.oxX.oxX.ox", 56: "x...x...x...x..."}),
    "march": Style(
        (92, 138), 0, 0.8, 0, 0.5, 0.9, (61, 0, 68), 58, 61, 0, CADENCES,
        ("....c.......c...", "..C...c...C...c.", "..C.c.C...C.c.Cc"),
        ("r.......5.......", "r...5...r...5...", "r...5...r...5.a."),
        {36: "X...x...X...x...", 38: "X.x.X.xxX.x.Xxxx", 49: "o.......o......."}),
    "ambient": Style(
        (60, 90), 0.25, 0.1, 0, 1, 2.2, (88, 11, 46), 39, 89, 24,
        {"major": ("IM7 IVM7", "I V IV I", "I vi7 IVM7 V"), "minor": ("i iv", "i VIM7 iv7 V7", "i i VI V")},
        ("c.......c.......", "0...2...1...3...", "0.2.1.3.2.1.3.2."),
        ("r...............", "r...............", "r.......r......."),
        {36: "x.......o.......", 70: "o...o...o...o..."}, five_notes=True),
    "reggae": Style(
        (64, 108), 0, 0.9, 0.25, 0.35, 0.6, (27, 16, 0), 33, 16, 8,
        {"major": ("I IV I V", "I V I IV", "I IV V I"), "minor": ("i iv i V", "i i VI V", "i iv V i")},
        ("....C.......C...", "....C.c.....C.c.", "..c.C.c...c.C.c."),
        ("r.......5.......", "r..r..3.5...r...", "r..r..3.5..5..ra"),
        {36: "........X.......", 37: "........X.....o.", 42: "x.o.x.o.x.o.x.o."}),
}  # fmt: skip

RHYTHMS: dict[tuple[int, str], tuple[tuple[float, ...], ...]] = {  # beats of the notes of a bar
    (4, "sparse"): ((4,), (2, 2), (3, 1), (2, 1, 1), (1, 1, 2)),
    (4, "medium"): ((1, 1, 1, 1), (1, 1, 2), (1.5, 0.5, 1, 1), (1, 0.5, 0.5, 2), (1, 0.5, 0.5, 1, 1),
                    (0.5, 0.5, 1, 2)),
    (4, "dense"): ((0.5,) * 8, (0.5, 0.5, 1, 0.5, 0.5, 1), (1, 0.5, 0.5, 0.5, 0.5, 1),
                   (0.75, 0.25, 0.5, 0.5, 0.5, 0.5, 1), (0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 1)),
    (3, "sparse"): ((3,), (2, 1), (1, 2)),
    (3, "medium"): ((1, 1, 1), (2, 0.5, 0.5), (1.5, 0.5, 1), (1, 0.5, 0.5, 1)),
    (3, "dense"): ((0.5,) * 6, (1, 0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5, 1), (0.75, 0.25, 0.5, 0.5, 1)),
}  # fmt: skip
SYNCOPATED: tuple[tuple[float, ...], ...] = (
    (0.5, 1, 0.5, 0.5, 1, 0.5),
    (1.5, 1, 0.5, 1),
    (0.5, 1, 1.5, 1),
    (1, 0.5, 1, 0.5, 1),
)
FORMS = ("ABACABAD", "AABCAABD", "ABABACAD", "AAABAACD")  # bars of a melody by motif; C half closes, D closes


# -- composing -----------------------------------------------------------------------------------------------


def compose(seed: int, *, seconds: float = 10.0, **fixed: str | int | bool | None) -> Piece:
    """A piece that fills `seconds`, the same for the same seed; `fixed` sets what matters to you.

    Draws nothing held out while the seed is below `FIRST_TEST_SEED`, but plays what is fixed. A tune brings
    its own mode and meter, a mood its mode and a range of tempos. ValueError for names and values that the
    band does not know and for attributes that contradict each other.

    >>> compose(0, lead="cello", mood="sad").mode
    'minor'
    """
    rng = random.Random(seed)
    chosen = _attributes(rng, seed, fixed)
    style, lead = STYLES[chosen["style"]], LEADS[chosen["lead"]]
    tune = TUNES[chosen["tune"]] if chosen["tune"] else None
    beat = 60 / chosen["tempo"]
    n_bars = math.ceil(seconds / (beat * chosen["meter"]))
    first = 4 * rng.randrange(len(bars(tune)) // 4) if tune else 0  # the bar that a tune is entered at
    harmony = _harmony(rng, style, chosen, tune, first, n_bars)
    level = DENSITIES.index(chosen["density"])
    three = chosen["meter"] == 3

    centre = lead.centre + {"happy": 2, "tense": 1, "sad": -3, "mysterious": -2}.get(chosen["mood"], 0)
    if tune:
        melody = list(_play_tune(tune, first, chosen["key"], centre, n_bars))
    else:
        melody = list(_invent(rng, style, chosen, harmony, centre))
    chord_pattern = WALTZ_CHORDS[level] if three else style.chords[level]
    bass_pattern = WALTZ_BASS[level] if three else style.bass[level]
    middle = min(57, centre - 11) if centre >= 60 else 67  # the accompaniment keeps out of the melody's way
    programs = [program for program in style.chord_programs if program != lead.program]
    parts = [
        ("melody", lead.program, melody),
        (
            "chords",
            rng.choice(programs),
            list(_strum(chord_pattern, style, harmony, chosen["meter"], middle)),
        ),
        ("bass", style.bass_program, list(_walk(bass_pattern, style, harmony, chosen["meter"]))),
    ]
    if level and style.pad_program != lead.program and rng.random() < 0.3 * level:
        parts.append(("pad", style.pad_program, list(_strum("c", style, harmony, chosen["meter"], middle))))
    if chosen["drums"]:
        parts.append(("drums", style.kit, list(_drum(rng, style, chosen["meter"], level, n_bars))))

    energy = {"happy": 8, "tense": 12, "hopeful": 2, "calm": -8, "sad": -6}.get(chosen["mood"], 0)
    tracks = []
    for role, program, notes in parts:
        played = []
        for start, duration, pitch, velocity in notes:
            begin = beat * _swung(start, style.swing) + rng.gauss(0, 0.004 if role != "drums" else 0.002)
            begin = max(0.0, begin)
            end = beat * _swung(start + duration, style.swing) - 0.01
            loud = round(min(122, max(30, velocity + energy + rng.gauss(0, 4))))
            if begin < seconds - 0.05:
                played.append((round(begin, 5), round(max(0.06, end - begin), 5), pitch, loud))
        tracks.append(Track(role, program, tuple(sorted(played))))
    return Piece(seed=seed, **chosen, tracks=tuple(tracks))


def _attributes(rng: random.Random, seed: int, fixed: dict[str, Any]) -> dict[str, Any]:
    """All attributes but seed and tracks: what `fixed` gives, and draws for the rest."""
    known = {"style": tuple(STYLES), "lead": tuple(LEADS), "key": tuple(range(12)), "mode": tuple(SCALES),
             "tempo": tuple(range(40, 221)), "meter": (3, 4), "mood": tuple(MOODS), "density": DENSITIES,
             "drums": (True, False), "tune": (None, *TUNES)}  # fmt: skip
    for name, value in fixed.items():
        if name not in known:
            raise ValueError(f"a piece has no attribute {name!r}; known are {', '.join(known)}")
        if value not in known[name]:
            some = "40 to 220" if name == "tempo" else ", ".join(map(str, known[name]))
            raise ValueError(f"{name}={value!r} is not known to the band; choose from {some}")
    test = seed >= FIRST_TEST_SEED

    def draw(name: str, options: list) -> Any:
        choice = rng.choice(options)
        return fixed.get(name, choice)

    mood = fixed.get("mood")
    mode, pace = MOODS[mood] if mood else (None, None)
    mode = fixed.get("mode", mode)
    tunes = [title for title, tune in TUNES.items()
             if (test or title not in HELD_OUT_TUNES) and mode in (None, tune.mode)
             and fixed.get("meter", tune.meter) == tune.meter]  # fmt: skip
    tune = draw("tune", tunes or [None]) if rng.random() < 0.15 or "tune" in fixed else None
    style = draw("style", list(STYLES))
    leads = [lead for lead in LEADS if test or (style, lead) not in HELD_OUT_PAIRS]
    lead = draw("lead", leads)
    key = draw("key", list(range(12)))
    drawn_mode = rng.choice(tuple(SCALES))
    mode = mode or (TUNES[tune].mode if tune else drawn_mode)
    low, high = STYLES[style].tempo
    tempos = [t for t in range(60, 161) if pace in (None, tempo_word(t))]
    tempo = draw("tempo", [t for t in tempos if low <= t <= high] or tempos)
    waltz = 3 if rng.random() < STYLES[style].waltz else 4
    meter = fixed.get("meter", TUNES[tune].meter if tune else waltz)
    drummed = rng.random() < STYLES[style].drummed
    chosen = {
        "style": style, "lead": lead, "key": key, "mode": mode, "tempo": tempo, "meter": meter,
        "mood": next(name for name, value in MOODS.items() if value == (mode, tempo_word(tempo))),
        "density": draw("density", ["sparse", "medium", "medium", "dense"]),
        "drums": fixed.get("drums", drummed), "tune": tune,
    }  # fmt: skip
    if mood not in (None, chosen["mood"]):
        raise ValueError(
            f"mood {mood!r} is {' and '.join(MOODS[mood])}; {mode!r} at {tempo} bpm is {chosen['mood']!r}"
        )
    if tune and (mode, meter) != (TUNES[tune].mode, TUNES[tune].meter):
        raise ValueError(
            f"{tune!r} is in {TUNES[tune].mode} and {TUNES[tune].meter}/4, not in {mode} and {meter}/4"
        )
    return chosen


Chord = tuple[int, ...]  # pitch classes, the root first


def _chord(numeral: str, key: int, mode: str) -> Chord:
    """`vi7` in C major is (9, 0, 4, 7). Upper case is major, `o` diminished; `6`, `7` and `M7` add a note."""
    name = numeral.rstrip("oM67")
    degree = ("i", "ii", "iii", "iv", "v", "vi", "vii").index(name.lower())
    root = SCALES[mode][degree]
    third, fifth = (4 if name.isupper() else 3), (6 if "o" in numeral else 7)
    seventh = (11,) if "M7" in numeral else (10,) if "7" in numeral else (9,) if "6" in numeral else ()
    return tuple((key + root + step) % 12 for step in (0, third, fifth, *seventh))


def _named_chord(name: str, shift: int) -> Chord:
    """`Am` moved up by `shift` semitones."""
    root = pitch_class(name.rstrip("m7")) + shift
    steps = (0, 3 if "m" in name else 4, 7, *((10,) if "7" in name else ()))
    return tuple((root + step) % 12 for step in steps)


def _harmony(
    rng: random.Random, style: Style, chosen: dict[str, Any], tune: Tune | None, first: int, n_bars: int
) -> list[list[Chord]]:
    """The chords of each bar, one or two of equal length: slow bars of four change twice."""
    if tune:
        shift = chosen["key"] - pitch_class(tune.tonic)
        named = bars(tune)
        return [
            [_named_chord(name, shift) for name in named[(first + bar) % len(named)]] for bar in range(n_bars)
        ]
    chords = [
        _chord(name, chosen["key"], chosen["mode"])
        for name in rng.choice(style.progressions[chosen["mode"]]).split()
    ]
    each = 2 if chosen["tempo"] < 88 and chosen["meter"] == 4 and len(chords) > 2 else 1
    return [[chords[(bar * each + part) % len(chords)] for part in range(each)] for bar in range(n_bars)]


def _chord_at(harmony: list[list[Chord]], beat: float, meter: int) -> Chord:
    bar = harmony[min(int(beat // meter), len(harmony) - 1)]
    return bar[int(beat % meter * len(bar) / meter)]


def _play_tune(tune: Tune, first: int, key: int, centre: int, n_bars: int) -> Iterator[Note]:
    """The tune from bar `first`, in the piece's key and the octave nearest to the centre; it repeats."""
    notes = parse(tune)
    mean = sum(pitch * duration for _, duration, pitch in notes) / sum(duration for _, duration, _ in notes)
    shift = (key - pitch_class(tune.tonic)) % 12
    shift += 12 * round((centre - mean - shift) / 12)
    length, begin = len(bars(tune)) * tune.meter, first * tune.meter
    for lap in range(2 + n_bars * tune.meter // length):
        for start, duration, pitch in notes:
            at = lap * length + start - begin
            if 0 <= at < n_bars * tune.meter:
                yield at, duration, pitch + shift, 86 + 8 * (start % tune.meter == 0)


def _invent(
    rng: random.Random, style: Style, chosen: dict[str, Any], harmony: list[list[Chord]], centre: int
) -> Iterator[Note]:
    """A melody of motifs: bars of one letter share rhythm and shape, moved to the chord of the moment."""
    meter, key, mode = chosen["meter"], chosen["key"], chosen["mode"]
    rhythms = list(RHYTHMS[meter, chosen["density"]])
    if style is STYLES["latin"] or style is STYLES["reggae"] or style is STYLES["jazz"]:
        rhythms += SYNCOPATED if meter == 4 and chosen["density"] != "sparse" else ()
    scale: tuple[int, ...] = SCALES[mode]
    if style.five_notes:
        scale = (0, 2, 4, 7, 9) if mode == "major" else (0, 3, 5, 7, 10)
    motifs: dict[str, tuple[tuple[float, ...], list[int]]] = {}
    for letter in "ABCD":
        rhythm = rng.choice(rhythms)
        steps = [rng.choices((-2, -1, 0, 1, 2, 3), (2, 5, 1, 5, 2, 1))[0] for _ in rhythm]
        motifs[letter] = (rhythm, steps)
    form = rng.choice(FORMS)
    pitch = centre
    for bar, chords in enumerate(harmony):
        letter = form[bar % len(form)]
        rhythm, steps = motifs[letter]
        arch = 6 * math.sin(math.pi * (bar % 4 + 0.5) / 4)  # a phrase swells and falls back
        beat = 0.0
        for index, (duration, step) in enumerate(zip(rhythm, steps, strict=True)):
            chord = chords[int(beat * len(chords) / meter)]
            pcs = {(key + degree) % 12 for degree in scale} | set(chord)
            if (key + 11) % 12 in chord and mode == "minor":
                pcs.discard((key + 10) % 12)  # the leading note takes the seventh's place
            ladder = [p for p in range(centre - 10, centre + 11) if p % 12 in pcs]
            at = min(range(len(ladder)), key=lambda i: abs(ladder[i] - pitch))
            if index == 0 and bar % 2 == 0:
                pitch += round((centre - pitch) / 2)  # each pair of bars starts back towards the middle
                at = min(range(len(ladder)), key=lambda i: abs(ladder[i] - pitch))
            elif not 0 <= at + step < len(ladder):
                step = -step
            pitch = ladder[min(max(at + step, 0), len(ladder) - 1)] if index or bar % 2 else ladder[at]
            if beat == int(beat) and (beat % 2 == 0 or duration >= 1):
                pull = {
                    key: 1.3,
                    (key + 7) % 12: 0.6,
                }  # strong beats lean on the tonic and the fifth of the key
                chord_tones = [p for p in ladder if p % 12 in chord]
                pitch = min(chord_tones, key=lambda p: abs(p - pitch - 0.1 * step) - pull.get(p % 12, 0))
            closing = letter == "D" and index == len(rhythm) - 1
            if (closing or (index == 0 and bar % 4 == 0)) and key in chord:
                pitch = min((p for p in ladder if p % 12 == key), key=lambda p: abs(p - pitch))
            rest = 0.75 if letter in "CD" and index == len(rhythm) - 1 and duration >= 1 else 1
            yield (
                bar * meter + beat,
                duration * rest,
                pitch,
                round(84 + arch + 8 * (beat == 0) + 3 * (beat % 2 == 0)),
            )
            beat += duration


def _hits(pattern: str, harmony: list[list[Chord]], meter: int) -> Iterator[tuple[float, float, str, Chord]]:
    """(beat, length in beats, sign, chord) of a pattern over all bars; what is held follows the chords."""
    signs = [(step, sign) for step, sign in enumerate(pattern[: 4 * meter]) if sign != "."]
    ends = [step for step, _ in signs[1:]] + [4 * meter]
    for bar, chords in enumerate(harmony):
        half = meter / len(chords)
        for (step, sign), end in zip(signs, ends, strict=True):
            cuts = [step / 4, *([half] if step / 4 < half < end / 4 else []), end / 4]
            for begin, until in pairwise(cuts):
                yield bar * meter + begin, until - begin, sign, chords[int(begin / half)]


def _strum(pattern: str, style: Style, harmony: list[list[Chord]], meter: int, middle: int) -> Iterator[Note]:
    """Chords in close position, each voiced so that the voices move as little as they can."""
    voicing = tuple(middle + step for step in (-5, 0, 5))
    for beat, length, sign, chord in _hits(pattern, harmony, meter):
        voicing = _voiced(chord, voicing, middle)
        struck = voicing
        if sign not in "Cc":
            octave, voice = divmod(int(sign), len(voicing))
            struck = (voicing[voice] + 12 * octave,)
        accent = (80 if sign != "c" else 68) + 8 * (beat % meter == 0) + 4 * (beat % 1 == 0)
        for pitch in struck:
            yield beat, length * style.gate, pitch, accent


def _voiced(chord: Chord, before: tuple[int, ...], middle: int) -> tuple[int, ...]:
    """The inversion nearest to the voicing before, around the MIDI pitch `middle`."""
    voicings = []
    for turn in range(len(chord)):
        order = chord[turn:] + chord[:turn]
        for octave in (-1, 0, 1):
            pitches = [12 * (middle // 12 + octave) + order[0]]
            for pc in order[1:]:
                pitches.append(pitches[-1] + (pc - pitches[-1]) % 12)
            voicings.append(tuple(pitches))

    def cost(pitches: tuple[int, ...]) -> float:
        moved = sum(min(abs(p - q) for q in before) for p in pitches)
        return moved + 0.7 * abs(sum(pitches) / len(pitches) - middle)

    return min(voicings, key=cost)


def _walk(pattern: str, style: Style, harmony: list[list[Chord]], meter: int) -> Iterator[Note]:
    """The bass line: roots between E1 and E flat 3, fifths and steps towards what comes next."""
    for beat, length, sign, chord in _hits(pattern, harmony, meter):
        half = meter / len(harmony[int(beat // meter)])
        root = 36 + (chord[0] - 4) % 12 + 4 - 12 * ((chord[0] - 4) % 12 > 7)
        after = _chord_at(harmony, beat + length, meter)[0]
        approach = root + ((after - root + 5) % 12 - 5) - 1 if after != chord[0] else root + 7
        if sign == "5" and half < meter and beat % half == 0:
            sign = "r"  # a new chord starts on its root
        third, fifth = ((pc - chord[0]) % 12 for pc in chord[1:3])
        pitch = {"r": root, "3": root + third, "5": root + fifth, "o": root + 12, "a": approach}[sign]
        yield beat, length * style.gate, pitch, 84 + 8 * (beat % meter == 0) + 4 * (beat % 1 == 0)


def _drum(rng: random.Random, style: Style, meter: int, level: int, n_bars: int) -> Iterator[Note]:
    """The beat of the style; fourth bars end in a fill, phrases open on a cymbal."""
    for bar in range(n_bars):
        fill = bar % 4 == 3 and rng.random() < 0.7
        for key, pattern in (style.beat if meter == 4 else WALTZ_BEAT).items():
            for step, sign in enumerate(pattern):
                if fill and step >= 4 * meter - 4:
                    continue
                if sign == "." and level == 2 and key in (42, 70) and step % 2 == 0:
                    sign = "o"
                if sign == "o" and level == 0 and step % 4:
                    continue
                if sign != ".":
                    velocity = {"X": 104, "x": 86, "o": 62}[sign] + 6 * (step == 0)
                    yield bar * meter + step / 4, 0.2, key, velocity
        if fill:
            for number, key in enumerate((38, 38, 48, 45) if level else (38, 45)):
                yield bar * meter + meter - 1 + number / (4 if level else 2), 0.2, key, 80 + 5 * number
        if bar % 8 == 0 and level and style.drummed > 0.7:
            yield bar * meter, 1, 49, 84


def _swung(beat: float, amount: float) -> float:
    """Where a beat falls when its second half is late: at 1 the off-beat eighth sits on the last triplet."""
    whole, part = divmod(beat, 1)
    off = 0.5 + amount / 6
    return whole + (part * off / 0.5 if part <= 0.5 else off + (part - 0.5) * (1 - off) / 0.5)


# -- rendering -----------------------------------------------------------------------------------------------

LEVELS = {"melody": 0.0, "chords": -11.5, "bass": -9.0, "pad": -19.0, "drums": -7.0}  # dB against the melody
LOUDNESS = -16.0  # dBFS, root mean square of the mix
PEAK = 0.97


def find_soundfont(name: str = "fluidr3mono") -> Path:
    """The soundfont file 'fluidr3mono' (plays all training audio) or 'musescore' (for measuring only).

    FileNotFoundError with the package to install where it is absent.
    """
    fonts = {"fluidr3mono": ("FluidR3Mono_GM.sf3", "fluidr3mono-gm-soundfont"),
             "musescore": ("MuseScore_General_Lite.sf3", "musescore-general-soundfont-small")}  # fmt: skip
    if name not in fonts:
        raise ValueError(f"soundfont {name!r} is not known; choose from {', '.join(fonts)}")
    file, package = fonts[name]
    path = Path("/usr/share/sounds/sf3") / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is absent; install it with: sudo apt-get install {package}")
    return path


@functools.lru_cache(maxsize=2)
def _synth(path: Path, rate: int) -> tuple[Any, int]:
    """(synthesizer, soundfont) kept for the life of the process: loading takes longer than playing."""
    try:
        import tinysoundfont
    except ImportError as error:
        raise ImportError(
            "the band plays through tinysoundfont; pip install --no-deps tinysoundfont==0.3.7"
        ) from error
    synth = tinysoundfont.Synth(gain=-6.0, samplerate=rate)
    return synth, synth.sfload(str(path))


def _play(track: Track, samples: int, rate: int, path: Path) -> np.ndarray:
    """One track alone, dry, as the soundfont has it. float32 [samples]."""
    synth, font = _synth(path, rate)
    synth.soundfonts[font].reset()
    synth.generate_simple(rate // 10)  # what was sounding before fades within 10 ms: let it, unheard
    synth.program_select(0, font, 128 if track.percussion else 0, track.program, track.percussion)
    events = []
    for start, duration, pitch, velocity in track.notes:
        events.append((round(start * rate), 1, pitch, velocity))
        events.append((round((start + duration) * rate), 0, pitch, 0))
    stereo = np.zeros((samples, 2), np.float32)
    now = 0
    for at, on, pitch, velocity in sorted(events):  # a note ends before one of the same pitch begins
        at = min(at, samples)
        if at > now:
            synth.generate_simple(at - now, stereo[now:at].data.cast("B"))
            now = at
        if now == samples:
            break
        if on:
            synth.noteon(0, pitch, velocity)
        else:
            synth.noteoff(0, pitch)
    if now < samples:
        synth.generate_simple(samples - now, stereo[now:].data.cast("B"))
    return stereo.mean(axis=1)


def _level(wave: np.ndarray, rate: int) -> float:
    """Root mean square of the parts that sound: frames of 50 ms within 20 dB of the loudest."""
    frame = rate // 20
    power = np.square(wave[: len(wave) // frame * frame].reshape(-1, frame), dtype=np.float64).mean(axis=1)
    return math.sqrt(power[power >= power.max() * 0.01].mean()) + 1e-9


@functools.lru_cache(maxsize=16)
def _room(seconds: float, rate: int, size: int) -> np.ndarray:
    """Spectrum of a room: noise that decays by 60 dB in `seconds` after 12 ms, darker as it goes."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(1).standard_normal(len(time)) * np.exp(-6.9 * time / seconds)
    noise = np.convolve(noise, np.full(5, 0.2), mode="same")  # air swallows the highs
    noise[: round(0.012 * rate)] = 0
    return np.fft.rfft(noise / np.sqrt(np.square(noise).sum()), size)


def render(
    piece: Piece, *, seconds: float = 10.0, rate: int = RATE, soundfont: str | Path = "fluidr3mono"
) -> tuple[np.ndarray, np.ndarray]:
    """(mix, melody), float32 [seconds * rate] each, mono: the piece in a light room; its melody alone, dry.

    The mix has an RMS of about -16 dBFS and peaks below 0.98; the melody is scaled as it is in the mix.
    `soundfont` is a name that `find_soundfont` knows, or a file. FileNotFoundError or ImportError say what to
    install.
    """
    path = soundfont if isinstance(soundfont, Path) else find_soundfont(soundfont)
    samples = round(seconds * rate)
    style = STYLES[piece.style]
    melody, mix = np.zeros(samples, np.float32), np.zeros(samples, np.float32)
    for track in piece.tracks:
        if not track.notes:
            continue
        stem = _play(track, samples, rate, path)
        stem *= 0.1 * 10 ** (LEVELS[track.role] / 20) / _level(stem, rate)
        mix += stem
        if track.is_melody:
            melody = stem
    size = 1 << (samples + round(style.room * rate)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(mix, size) * _room(style.room, rate, size), size)[:samples]
    mix = mix + np.float32(0.12 + 0.06 * style.room) * wet.astype(np.float32)
    gain = 10 ** (LOUDNESS / 20) / (math.sqrt(np.square(mix, dtype=np.float64).mean()) + 1e-9)
    gain = min(gain, 1.6 / (np.abs(mix).max() + 1e-9))
    mix, melody = mix * np.float32(gain), melody * np.float32(gain)
    return _limited(mix), _limited(melody)


def _limited(wave: np.ndarray) -> np.ndarray:
    """What passes 0.7 is bent to stay below PEAK, so that single hits do not keep a whole piece quiet."""
    knee = 0.7
    over = np.maximum(np.abs(wave) - knee, 0)
    return (
        np.sign(wave) * (np.minimum(np.abs(wave), knee) + (PEAK - knee) * np.tanh(over / (PEAK - knee)))
    ).astype(np.float32)


# -- datasets ------------------------------------------------------------------------------------------------


def _clip(seed: int, seconds: float, soundfont: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """(mix, melody, description) of one clip, the waves as int16."""
    piece = compose(seed, seconds=seconds)
    mix, melody = (np.round(32767 * wave) for wave in render(piece, seconds=seconds, soundfont=soundfont))
    about = piece.attributes() | {"captions": captions(piece, seed, CAPTIONS_PER_CLIP)}
    return mix.astype(np.int16), melody.astype(np.int16), about


def write_dataset(
    folder: str | Path,
    clips: int,
    *,
    first_seed: int = 0,
    seconds: float = 10.0,
    workers: int | None = None,
    soundfont: str = "fluidr3mono",
) -> None:
    """Renders `clips` pieces with seeds from `first_seed` into `folder`; does nothing where that is there.

    mix.i16, melody.i16   int16 [clips, samples], raw, 32 kHz mono
    pieces.jsonl          one object a clip: attributes, seed, six captions
    dataset.json          clips, samples, rate, seconds, first_seed, soundfont; written last
    """
    from mgkit import audio  # not at the top: the rendering workers need no torch

    folder = Path(folder)
    plan = {"clips": clips, "samples": round(seconds * RATE), "rate": RATE, "seconds": seconds,
            "first_seed": first_seed, "soundfont": soundfont}  # fmt: skip
    done = folder / "dataset.json"
    if done.is_file() and json.loads(done.read_text()) == plan:
        return
    _synth(find_soundfont(soundfont), RATE)  # what is absent is said here, not by a worker
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    make = functools.partial(_clip, seconds=seconds, soundfont=soundfont)
    seeds = range(first_seed, first_seed + clips)
    with (
        open(folder / "mix.i16", "wb") as mixes,
        open(folder / "melody.i16", "wb") as melodies,
        open(folder / "pieces.jsonl", "w") as pieces,
        ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool,
    ):
        for mix, melody, about in tqdm(
            pool.map(make, seeds, chunksize=4), total=clips, desc=folder.name, unit="clip"
        ):
            mixes.write(mix.tobytes())
            melodies.write(melody.tobytes())
            pieces.write(json.dumps(about) + "\n")
    audio.replace_file(done, lambda draft: draft.write_text(json.dumps(plan, indent=1) + "\n"))


def main(argv: list[str] | None = None) -> None:
    """The command line of `write_dataset`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit.band.compose", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=None, help="processes; all cores where absent")
    parser.add_argument("--soundfont", default="fluidr3mono", help="or musescore, for measuring")
    given = parser.parse_args(argv)
    write_dataset(
        given.out,
        given.clips,
        first_seed=given.first_seed,
        seconds=given.seconds,
        workers=given.workers,
        soundfont=given.soundfont,
    )


if __name__ == "__main__":
    main()
