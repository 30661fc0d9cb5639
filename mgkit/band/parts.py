"""Harmony and the parts that play it: melody, chords, bass, drums.

Notes are (start in beats, length in beats, MIDI pitch, velocity); `compose` turns beats into seconds.
"""

import math
import random
from collections.abc import Iterator
from itertools import pairwise

from mgkit.band.piece import Chord, Note, Piece
from mgkit.band.styles import FORMS, RHYTHMS, SCALES, SYNCOPATED, WALTZ_BEAT, Style
from mgkit.band.tunes import Tune, bars, parse, pitch_class

# -- harmony ------------------------------------------------------------------------------------------------


def _roman_chord(numeral: str, key: int, mode: str) -> Chord:
    """Pitch classes of a Roman numeral: `vi7` in C major is (9, 0, 4, 7).

    Upper case is major, `o` diminished; `6`, `7` and `M7` add a note.
    """
    name = numeral.rstrip("oM67")
    degree = ("i", "ii", "iii", "iv", "v", "vi", "vii").index(name.lower())
    root = SCALES[mode][degree]
    third, fifth = (4 if name.isupper() else 3), (6 if "o" in numeral else 7)
    seventh = (11,) if "M7" in numeral else (10,) if "7" in numeral else (9,) if "6" in numeral else ()
    return tuple((key + root + step) % 12 for step in (0, third, fifth, *seventh))


def _named_chord(name: str, shift: int) -> Chord:
    """Pitch classes of a chord symbol such as `Am`, transposed up by `shift` semitones."""
    root = pitch_class(name.rstrip("m7")) + shift
    steps = (0, 3 if "m" in name else 4, 7, *((10,) if "7" in name else ()))
    return tuple((root + step) % 12 for step in steps)


def harmonize(
    rng: random.Random, style: Style, piece: Piece, tune: Tune | None, first_bar: int, n_bars: int
) -> list[list[Chord]]:
    """Chords of each bar, one or two of equal length: slow 4/4 bars have two."""
    if tune:
        shift = piece.key - pitch_class(tune.tonic)
        symbols = bars(tune)
        return [
            [_named_chord(name, shift) for name in symbols[(first_bar + bar) % len(symbols)]]
            for bar in range(n_bars)
        ]
    progression = rng.choice(style.progressions[piece.mode]).split()
    chords = [_roman_chord(numeral, piece.key, piece.mode) for numeral in progression]
    per_bar = 2 if piece.tempo < 88 and piece.meter == 4 and len(chords) > 2 else 1
    return [[chords[(bar * per_bar + i) % len(chords)] for i in range(per_bar)] for bar in range(n_bars)]


def _chord_at(harmony: list[list[Chord]], beat: float, meter: int) -> Chord:
    bar = harmony[min(int(beat // meter), len(harmony) - 1)]
    return bar[int(beat % meter * len(bar) / meter)]


# -- parts -------------------------------------------------------------------------------------------------


def play_tune(tune: Tune, first_bar: int, key: int, centre: int, n_bars: int) -> Iterator[Note]:
    """The tune from `first_bar`, repeated, in the piece's key and the octave nearest to `centre`."""
    notes = parse(tune)
    mean = sum(pitch * length for _, length, pitch in notes) / sum(length for _, length, _ in notes)
    shift = (key - pitch_class(tune.tonic)) % 12
    shift += 12 * round((centre - mean - shift) / 12)
    tune_length, skipped = len(bars(tune)) * tune.meter, first_bar * tune.meter
    for lap in range(2 + n_bars * tune.meter // tune_length):
        for start, length, pitch in notes:
            beat = lap * tune_length + start - skipped
            if 0 <= beat < n_bars * tune.meter:
                yield beat, length, pitch + shift, 86 + 8 * (start % tune.meter == 0)


def invent_melody(
    rng: random.Random, style: Style, piece: Piece, harmony: list[list[Chord]], centre: int
) -> Iterator[Note]:
    """A melody of motifs: bars with the same letter share rhythm and contour, fitted to the current chord."""
    meter, key, mode = piece.meter, piece.key, piece.mode
    rhythms = list(RHYTHMS[meter, piece.density])
    if piece.style in ("latin", "reggae", "jazz") and meter == 4 and piece.density != "sparse":
        rhythms += SYNCOPATED
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
        # Velocity rises and falls over each four-bar phrase.
        arch = 6 * math.sin(math.pi * (bar % 4 + 0.5) / 4)
        beat = 0.0
        for index, (length, step) in enumerate(zip(rhythm, steps, strict=True)):
            last = index == len(rhythm) - 1
            chord = chords[int(beat * len(chords) / meter)]
            allowed = {(key + degree) % 12 for degree in scale} | set(chord)
            if (key + 11) % 12 in chord and mode == "minor":
                # The leading tone replaces the natural seventh.
                allowed.discard((key + 10) % 12)
            ladder = [p for p in range(centre - 10, centre + 11) if p % 12 in allowed]
            rung = _nearest(ladder, pitch)
            if index == 0 and bar % 2 == 0:
                # Each pair of bars starts back towards the centre.
                pitch += round((centre - pitch) / 2)
                rung = _nearest(ladder, pitch)
            elif not 0 <= rung + step < len(ladder):
                step = -step
            pitch = ladder[min(max(rung + step, 0), len(ladder) - 1)] if index or bar % 2 else ladder[rung]
            if beat == int(beat) and (beat % 2 == 0 or length >= 1):
                # Strong beats take a chord tone, preferably the tonic or the dominant of the key.
                pull = {key: 1.3, (key + 7) % 12: 0.6}
                chord_tones = [p for p in ladder if p % 12 in chord]
                pitch = min(chord_tones, key=lambda p: abs(p - pitch - 0.1 * step) - pull.get(p % 12, 0))
            if ((letter == "D" and last) or (index == 0 and bar % 4 == 0)) and key in chord:
                pitch = min((p for p in ladder if p % 12 == key), key=lambda p: abs(p - pitch))
            # A motif that ends a phrase leaves a breath after its last long note.
            gate = 0.75 if letter in "CD" and last and length >= 1 else 1
            velocity = round(84 + arch + 8 * (beat == 0) + 3 * (beat % 2 == 0))
            yield bar * meter + beat, length * gate, pitch, velocity
            beat += length


def _nearest(ladder: list[int], pitch: int) -> int:
    return min(range(len(ladder)), key=lambda i: abs(ladder[i] - pitch))


def _hits(pattern: str, harmony: list[list[Chord]], meter: int) -> Iterator[tuple[float, float, str, Chord]]:
    """(beat, length in beats, sign, chord) of each sign of a pattern in each bar, split at chord changes."""
    signs = [(step, sign) for step, sign in enumerate(pattern[: 4 * meter]) if sign != "."]
    ends = [step for step, _ in signs[1:]] + [4 * meter]
    for bar, chords in enumerate(harmony):
        half = meter / len(chords)
        for (step, sign), end in zip(signs, ends, strict=True):
            cuts = [step / 4, *([half] if step / 4 < half < end / 4 else []), end / 4]
            for begin, until in pairwise(cuts):
                yield bar * meter + begin, until - begin, sign, chords[int(begin / half)]


def play_chords(
    pattern: str, style: Style, harmony: list[list[Chord]], meter: int, middle: int
) -> Iterator[Note]:
    """Chords in close position, with as little voice movement as possible."""
    voicing = tuple(middle + step for step in (-5, 0, 5))
    for beat, length, sign, chord in _hits(pattern, harmony, meter):
        voicing = _voice(chord, voicing, middle)
        struck = voicing
        if sign not in "Cc":
            octave, voice = divmod(int(sign), len(voicing))
            struck = (voicing[voice] + 12 * octave,)
        velocity = (80 if sign != "c" else 68) + 8 * (beat % meter == 0) + 4 * (beat % 1 == 0)
        for pitch in struck:
            yield beat, length * style.gate, pitch, velocity


def _voice(chord: Chord, previous: tuple[int, ...], middle: int) -> tuple[int, ...]:
    """The inversion closest to the previous voicing and to the MIDI pitch `middle`."""
    voicings = []
    for turn in range(len(chord)):
        order = chord[turn:] + chord[:turn]
        for octave in (-1, 0, 1):
            pitches = [12 * (middle // 12 + octave) + order[0]]
            for pc in order[1:]:
                pitches.append(pitches[-1] + (pc - pitches[-1]) % 12)
            voicings.append(tuple(pitches))

    def cost(pitches: tuple[int, ...]) -> float:
        movement = sum(min(abs(p - q) for q in previous) for p in pitches)
        return movement + 0.7 * abs(sum(pitches) / len(pitches) - middle)

    return min(voicings, key=cost)


def play_bass(pattern: str, style: Style, harmony: list[list[Chord]], meter: int) -> Iterator[Note]:
    """The bass line: roots between C2 and B2, their thirds and fifths, and approach notes."""
    for beat, length, sign, chord in _hits(pattern, harmony, meter):
        half = meter / len(harmony[int(beat // meter)])
        root = 36 + chord[0]
        following = _chord_at(harmony, beat + length, meter)[0]
        approach = root + ((following - root + 5) % 12 - 5) - 1 if following != chord[0] else root + 7
        if sign == "5" and half < meter and beat % half == 0:
            # A new chord starts on its root.
            sign = "r"
        third, fifth = ((pc - chord[0]) % 12 for pc in chord[1:3])
        pitch = {"r": root, "3": root + third, "5": root + fifth, "o": root + 12, "a": approach}[sign]
        yield beat, length * style.gate, pitch, 84 + 8 * (beat % meter == 0) + 4 * (beat % 1 == 0)


def play_drums(rng: random.Random, style: Style, meter: int, level: int, n_bars: int) -> Iterator[Note]:
    """The style's beat; most fourth bars end in a fill, eight-bar sections open with a crash cymbal."""
    for bar in range(n_bars):
        fill = bar % 4 == 3 and rng.random() < 0.7
        for key, pattern in (style.beat if meter == 4 else WALTZ_BEAT).items():
            for step, sign in enumerate(pattern):
                if fill and step >= 4 * meter - 4:
                    continue
                # Dense pieces fill the gaps of hi-hat and shaker; sparse ones keep soft strokes to the beat.
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


def swing(beat: float, amount: float) -> float:
    """Time of a beat under swing; `amount` 1 moves the off-beat eighth to the last note of a triplet."""
    whole, part = divmod(beat, 1)
    off = 0.5 + amount / 6
    return whole + (part * off / 0.5 if part <= 0.5 else off + (part - 0.5) * (1 - off) / 0.5)
