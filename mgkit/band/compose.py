"""Composing: a seed to a `Piece`.

seed -> attributes (drawn, unless fixed) -> chords per bar -> melody, chords, bass, pad, drums -> Piece
"""

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict, Unpack

from mgkit.band.captions import FIRST_TEST_SEED, HELD_OUT_PAIRS, HELD_OUT_TUNES, tempo_word
from mgkit.band.parts import harmonize, invent_melody, play_bass, play_chords, play_drums, play_tune, swing
from mgkit.band.piece import Attribute, Piece, Track
from mgkit.band.styles import DENSITIES, LEADS, MOODS, SCALES, STYLES, WALTZ_BASS, WALTZ_CHORDS
from mgkit.band.tunes import TUNES, bars

VALUES: Mapping[str, tuple[Attribute, ...]] = {
    "style": tuple(STYLES), "lead": tuple(LEADS), "key": tuple(range(12)), "mode": tuple(SCALES),
    "tempo": tuple(range(40, 221)), "meter": (3, 4), "mood": tuple(MOODS), "density": DENSITIES,
    "drums": (True, False), "tune": (None, *TUNES),
}  # fmt: skip

# A mood also moves the melody (semitones) and the velocity of every note.
MOOD_TRANSPOSITION = {"happy": 2, "tense": 1, "sad": -3, "mysterious": -2}
MOOD_VELOCITY = {"happy": 8, "tense": 12, "hopeful": 2, "calm": -8, "sad": -6}


class Fixed(TypedDict, total=False):
    """Attributes of a piece that the caller may fix."""

    style: str
    lead: str
    key: int
    mode: str
    tempo: int
    meter: int
    mood: str
    density: str
    drums: bool
    tune: str | None


def compose(seed: int, *, seconds: float = 10.0, **fixed: Unpack[Fixed]) -> Piece:
    """A piece that fills `seconds`: deterministic in the seed, with the attributes in `fixed` as given.

    Seeds below `FIRST_TEST_SEED` never draw a held-out tune or pair, but one in `fixed` is used. A tune
    implies its mode and meter; a mood implies its mode and a range of tempos.

    Raises: ValueError for an unknown attribute or value, and for attributes that contradict each other.

    >>> compose(0, lead="cello", mood="sad").mode
    'minor'
    """
    rng = random.Random(seed)
    piece = _draw_attributes(rng, seed, fixed)
    style, lead = STYLES[piece.style], LEADS[piece.lead]
    tune = TUNES[piece.tune] if piece.tune else None
    beat = 60 / piece.tempo
    n_bars = math.ceil(seconds / (beat * piece.meter))
    # A tune may start at the beginning of any of its four-bar phrases.
    first_bar = 4 * rng.randrange(len(bars(tune)) // 4) if tune else 0
    harmony = harmonize(rng, style, piece, tune, first_bar, n_bars)

    centre = lead.centre + MOOD_TRANSPOSITION.get(piece.mood, 0)
    if tune:
        melody = list(play_tune(tune, first_bar, piece.key, centre, n_bars))
    else:
        melody = list(invent_melody(rng, style, piece, harmony, centre))

    level, waltz = DENSITIES.index(piece.density), piece.meter == 3
    chord_pattern = WALTZ_CHORDS[level] if waltz else style.chords[level]
    bass_pattern = WALTZ_BASS[level] if waltz else style.bass[level]
    # The accompaniment stays out of the melody's range.
    middle = min(57, centre - 11) if centre >= 60 else 67
    chord_program = rng.choice([program for program in style.chord_programs if program != lead.program])
    parts = [
        ("melody", lead.program, melody),
        ("chords", chord_program, list(play_chords(chord_pattern, style, harmony, piece.meter, middle))),
        ("bass", style.bass_program, list(play_bass(bass_pattern, style, harmony, piece.meter))),
    ]
    if level and style.pad_program != lead.program and rng.random() < 0.3 * level:
        parts.append(("pad", style.pad_program, list(play_chords("c", style, harmony, piece.meter, middle))))
    if piece.drums:
        parts.append(("drums", style.kit, list(play_drums(rng, style, piece.meter, level, n_bars))))

    loudness = MOOD_VELOCITY.get(piece.mood, 0)
    tracks = []
    for role, program, notes in parts:
        # Humanized timing and velocity; drums are tighter than the rest.
        jitter = 0.004 if role != "drums" else 0.002
        played = []
        for start, length, pitch, velocity in notes:
            begin = max(0.0, beat * swing(start, style.swing) + rng.gauss(0, jitter))
            end = beat * swing(start + length, style.swing) - 0.01
            velocity = round(min(122, max(30, velocity + loudness + rng.gauss(0, 4))))
            if begin < seconds - 0.05:
                played.append((round(begin, 5), round(max(0.06, end - begin), 5), pitch, velocity))
        tracks.append(Track(role, program, tuple(sorted(played))))
    bar = beat * piece.meter
    chords = (
        (round((i + j / len(names)) * bar, 5), chord)
        for i, names in enumerate(harmony)
        for j, chord in enumerate(names)
    )
    return replace(piece, tracks=tuple(tracks), chords=tuple(chords))


# -- attributes --------------------------------------------------------------------------------------------


def _draw_attributes(rng: random.Random, seed: int, fixed: Fixed) -> Piece:
    """A piece without tracks: the fixed attributes, and random ones for the rest."""
    _validate(fixed)
    held_out = seed >= FIRST_TEST_SEED
    mood = fixed.get("mood")
    mood_mode, pace = MOODS[mood] if mood else (None, None)
    fixed_mode = fixed.get("mode", mood_mode)

    # Every default below is drawn even if its attribute is fixed: fixing one leaves the others unchanged.
    tunes = [
        title
        for title, tune in TUNES.items()
        if (held_out or title not in HELD_OUT_TUNES)
        and fixed_mode in (None, tune.mode)
        and fixed.get("meter", tune.meter) == tune.meter
    ]
    title = None
    if rng.random() < 0.15 or "tune" in fixed:
        title = fixed.get("tune", rng.choice(tunes or [None]))
    style = fixed.get("style", rng.choice(list(STYLES)))
    leads = [lead for lead in LEADS if held_out or (style, lead) not in HELD_OUT_PAIRS]
    lead = fixed.get("lead", rng.choice(leads))
    key = fixed.get("key", rng.choice(range(12)))
    drawn_mode = rng.choice(tuple(SCALES))
    mode = fixed_mode or (TUNES[title].mode if title else drawn_mode)
    low, high = STYLES[style].tempo
    tempos = [tempo for tempo in range(60, 161) if pace in (None, tempo_word(tempo))]
    tempo = fixed.get("tempo", rng.choice([tempo for tempo in tempos if low <= tempo <= high] or tempos))
    drawn_meter = 3 if rng.random() < STYLES[style].waltz else 4
    meter = fixed.get("meter", TUNES[title].meter if title else drawn_meter)
    drums = fixed.get("drums", rng.random() < STYLES[style].drummed)
    density = fixed.get("density", rng.choice(("sparse", "medium", "medium", "dense")))
    resulting_mood = next(name for name, value in MOODS.items() if value == (mode, tempo_word(tempo)))

    if mood not in (None, resulting_mood):
        raise ValueError(
            f"mood {mood!r} is {' and '.join(MOODS[mood])}, but {mode!r} at {tempo} bpm is "
            f"{resulting_mood!r}; fix the mood, or the mode and tempo, but not both"
        )
    if title and (mode, meter) != (TUNES[title].mode, TUNES[title].meter):
        raise ValueError(
            f"{title!r} is in {TUNES[title].mode} and {TUNES[title].meter}/4, not in {mode} and {meter}/4; "
            "leave out mode and meter if you fix a tune"
        )
    return Piece(
        seed=seed,
        style=style,
        lead=lead,
        key=key,
        mode=mode,
        tempo=tempo,
        meter=meter,
        mood=resulting_mood,
        density=density,
        drums=drums,
        tune=title,
        tracks=(),
    )


def _validate(fixed: Fixed) -> None:
    for name, value in fixed.items():
        if name not in VALUES:
            raise ValueError(f"a piece has no attribute {name!r}; known attributes are {', '.join(VALUES)}")
        if value not in VALUES[name]:
            known = "40 to 220" if name == "tempo" else ", ".join(map(str, VALUES[name]))
            raise ValueError(f"{name}={value!r} is not a known value; choose from {known}")
