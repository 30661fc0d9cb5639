"""Public-domain tunes: `TUNES`, by title.

Melodies are notated as pitch, octave (4 if omitted) and length in beats (1 if omitted): `E` is E4 for one
beat, `C5:.5` is C5 for half a beat, `F#` and `Bb` have accidentals, `r` is a rest. `parse` checks the length
of each bar. There is one chord per bar, or two as in `C.G`. Tunes start on their first full bar, without the
upbeat.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


@dataclass(frozen=True)
class Tune:
    title: str
    credit: str  # composer or origin, and year of first publication or writing
    tonic: str  # of the key as notated here
    mode: str
    meter: int  # beats per bar
    melody: str
    chords: str


def pitch_class(name: str) -> int:
    """Pitch class of a note name, in semitones above C: `F#` is 6, `Bb` is 10.

    >>> pitch_class("Bb")
    10
    """
    return (LETTERS[name[0]] + name.count("#") - name.count("b")) % 12


def parse(tune: Tune) -> list[tuple[float, float, int]]:
    """The melody as (start in beats, length in beats, MIDI pitch).

    Raises: ValueError with the bar, if a note cannot be read or a bar has the wrong length.

    >>> parse(TUNES["ode to joy"])[:2]
    [(0.0, 1.0, 64), (1.0, 1.0, 64)]
    """
    notes, start = [], 0.0
    for number, bar in enumerate(tune.melody.split("|")):
        for token in bar.split():
            match = re.fullmatch(r"(r|[A-G][#b]?)(\d?)(?::([\d.]+))?", token)
            if match is None:
                raise ValueError(
                    f"{tune.title}, bar {number + 1}: {token!r} is not a note; write C, F#5 or r:.5"
                )
            name, octave, length = match.groups()
            duration = float(length or 1)
            if name != "r":
                pitch = 12 * (int(octave or 4) + 1) + LETTERS[name[0]] + name.count("#") - name.count("b")
                notes.append((start, duration, pitch))
            start += duration
        if start != (number + 1) * tune.meter:
            raise ValueError(
                f"{tune.title}, bar {number + 1}: ends at beat {start}, not {(number + 1) * tune.meter}"
            )
    return notes


def bars(tune: Tune) -> list[list[str]]:
    """Chord symbols of each bar: `"C C.G"` gives [["C"], ["C", "G"]]."""
    return [bar.split(".") for bar in tune.chords.split()]


_ALL = (
    Tune("ode to joy", "Ludwig van Beethoven, 1824", "C", "major", 4,
         "E E F G | G F E D | C C D E | E:1.5 D:.5 D:2 | E E F G | G F E D | C C D E | D:1.5 C:.5 C:2 |"
         "D D E C | D E:.5 F:.5 E C | D E:.5 F:.5 E D | C D G3:2 | E E F G | G F E D | C C D E |"
         "D:1.5 C:.5 C:2",
         "C G C G C G C G.C G G.C G Am.G C G C G.C"),
    Tune("frere jacques", "French, 18th century", "C", "major", 4,
         "C D E C | C D E C | E F G:2 | E F G:2 | G:.5 A:.5 G:.5 F:.5 E C | G:.5 A:.5 G:.5 F:.5 E C |"
         "C G3 C:2 | C G3 C:2",
         "C C C C C C G.C G.C"),
    Tune("twinkle twinkle", "French (Ah vous dirai-je, maman), 1761", "C", "major", 4,
         "C C G G | A A G:2 | F F E E | D D C:2 | G G F F | E E D:2 | G G F F | E E D:2 |"
         "C C G G | A A G:2 | F F E E | D D C:2",
         "C F.C F.C G.C C.F C.G C.F C.G C F.C F.C G.C"),
    Tune("amazing grace", "American (New Britain), 1829", "C", "major", 3,
         "C:2 E:.5 C:.5 | E:2 D | C:2 A3 | G3:2 G3 | C:2 E:.5 C:.5 | E:2 D | G:3 | G:2 E |"
         "G:2 E:.5 C:.5 | E:2 D | C:2 A3 | G3:2 G3 | C:2 E:.5 C:.5 | E:2 D | C:3 | C:3",
         "C C F C C Am G G C C F C C G C C"),
    Tune("auld lang syne", "Scottish, 1799", "C", "major", 4,
         "C:1.5 C:.5 C E | D:1.5 C:.5 D E | C:1.5 C:.5 E G | A:3 A | G:1.5 E:.5 E C | D:1.5 C:.5 D E |"
         "C:1.5 A3:.5 A3 G3 | C:3 A | G:1.5 E:.5 E C | D:1.5 C:.5 D A | G:1.5 E:.5 E G | A:3 A |"
         "G:1.5 E:.5 E C | D:1.5 C:.5 D E | C:1.5 A3:.5 A3 G3 | C:4",
         "C G C F C G F.G C C G C F C G F.G C"),
    Tune("scarborough fair", "English, before 1850", "A", "minor", 3,
         "A:2 A | E5:2 E5 | B:1.5 C5:.5 B | A:3 | r E5 G5 | A5:2 G5 | E5 F#5 D5 | E5:3 | r:2 A5 | A5:2 A5 |"
         "G5:2 E5 | E5 D5 C5 | B G:2 | A:2 E5 | D5:2 C5 | B A G | A:3 | A:3",
         "Am Am G Am Am C D Am Am Am C C G Am Am G Am Am"),
    Tune("greensleeves", "English, 1580", "A", "minor", 3,
         "C5:2 D5 | E5:1.5 F5:.5 E5 | D5:2 B | G:1.5 A:.5 B | C5:2 A | A:1.5 G#:.5 A | B:2 G# | E:2 A |"
         "C5:2 D5 | E5:1.5 F5:.5 E5 | D5:2 B | G:1.5 A:.5 B | C5:1.5 B:.5 A | G#:1.5 F#:.5 G# | A:3 | A:3",
         "Am Am G G Am Am E E Am Am G G Am E Am Am"),
    Tune("fur elise", "Ludwig van Beethoven, 1810", "A", "minor", 3,
         "E5:.5 D#5:.5 E5:.5 B:.5 D5:.5 C5:.5 | A:1.5 C:.5 E:.5 A:.5 | B:1.5 E:.5 G#:.5 B:.5 |"
         "C5:1.5 E:.5 E5:.5 D#5:.5 | E5:.5 D#5:.5 E5:.5 B:.5 D5:.5 C5:.5 | A:1.5 C:.5 E:.5 A:.5 |"
         "B:1.5 E:.5 C5:.5 B:.5 | A:3",
         "Am Am E Am Am Am E Am"),
    Tune("minuet in g", "Christian Petzold, 1725", "G", "major", 3,
         "D5 G:.5 A:.5 B:.5 C5:.5 | D5 G G | E5 C5:.5 D5:.5 E5:.5 F#5:.5 | G5 G G |"
         "C5 D5:.5 C5:.5 B:.5 A:.5 | B C5:.5 B:.5 A:.5 G:.5 | F# G:.5 A:.5 B:.5 G:.5 | A:3 |"
         "D5 G:.5 A:.5 B:.5 C5:.5 | D5 G G | E5 C5:.5 D5:.5 E5:.5 F#5:.5 | G5 G G |"
         "C5 D5:.5 C5:.5 B:.5 A:.5 | B C5:.5 B:.5 A:.5 G:.5 | A B:.5 A:.5 G:.5 F#:.5 | G:3",
         "G G C G C G D D G G C G C G D G"),
    Tune("brahms lullaby", "Johannes Brahms, 1868", "C", "major", 3,
         "G:2 E:.5 E:.5 | G:2 E:.5 G:.5 | C5 B A | A G D:.5 E:.5 | F D D:.5 E:.5 | F:2 D:.5 F:.5 |"
         "B:.5 A:.5 G B | C5:2 C:.5 C:.5 | C5:2 A:.5 F:.5 | G:2 E:.5 C:.5 | F G A | G:2 C:.5 C:.5 |"
         "C5:2 A:.5 F:.5 | G:2 E:.5 C:.5 | F E D | C:3",
         "C C F C G G G C F C F C F C G C"),
    Tune("korobeiniki", "Russian, 1861", "A", "minor", 4,
         "E5 B:.5 C5:.5 D5 C5:.5 B:.5 | A A:.5 C5:.5 E5 D5:.5 C5:.5 | B:1.5 C5:.5 D5 E5 | C5 A A:2 |"
         "r:.5 D5 F5:.5 A5 G5:.5 F5:.5 | E5:1.5 C5:.5 E5 D5:.5 C5:.5 | B B:.5 C5:.5 D5 E5 | C5 A A:2",
         "E Am E Am Dm C E Am"),
    Tune("oh susanna", "Stephen Foster, 1848", "C", "major", 4,
         "E G G A | G E C:1.5 D:.5 | E E D C | D:3 C:.5 D:.5 | E G G A | G E C:1.5 D:.5 | E E D D | C:4 |"
         "F:2 F:2 | A A:2 A | G G E C | D:3 C:.5 D:.5 | E G G A | G E C:1.5 D:.5 | E E D D | C:4",
         "C C C G C C G C F F C G C C G C"),
    Tune("yankee doodle", "American, 1750s", "C", "major", 4,
         "C C D E | C E D:2 | C C D E | C:2 B3:2 | C C D E | F E D C | B3 G3 A3 B3 | C:2 C:2",
         "C C.G C C.G C F G C"),
    Tune("when the saints", "American spiritual, before 1900", "C", "major", 4,
         "G:4 | r C E F | G:4 | r C E F | G:2 E:2 | C:2 E:2 | D:3 E | E D C:2 | C E:2 G | G F:3 | r E F G |"
         "E:2 C:2 | D:2 D:2 | C:4",
         "C C C C C C G C C F C C G C"),
    Tune("jingle bells", "James Lord Pierpont, 1857", "C", "major", 4,
         "E E E:2 | E E E:2 | E G C:1.5 D:.5 | E:4 | F F F:1.5 F:.5 | F E E E:.5 E:.5 | E D D E | D:2 G:2 |"
         "E E E:2 | E E E:2 | E G C:1.5 D:.5 | E:4 | F F F:1.5 F:.5 | F E E E:.5 E:.5 | G G F D | C:4",
         "C C C C F C G G C C C C F C G C"),
    Tune("mary had a little lamb", "Lowell Mason, 1831", "C", "major", 4,
         "E D C D | E E E:2 | D D D:2 | E G G:2 | E D C D | E E E E | D D E D | C:4",
         "C C G C C C G C"),
    Tune("london bridge", "English, 1744", "C", "major", 4,
         "G:1.5 A:.5 G F | E F G:2 | D E F:2 | E F G:2 | G:1.5 A:.5 G F | E F G:2 | D:2 G:2 | E C:3",
         "C C G C C C G C"),
    Tune("silent night", "Franz Xaver Gruber, 1818", "C", "major", 3,
         "G:1.5 A:.5 G | E:3 | G:1.5 A:.5 G | E:3 | D5:2 D5 | B:3 | C5:2 C5 | G:3 | A:2 A | C5:1.5 B:.5 A |"
         "G:1.5 A:.5 G | E:3",
         "C C C C G G C C F F C C"),
    Tune("canon in d", "Johann Pachelbel, about 1690", "C", "major", 4,
         "E5:2 D5:2 | C5:2 B:2 | A:2 G:2 | A:2 B:2 | C5:2 B:2 | A:2 G:2 | F:2 E:2 | F:2 D:2",
         "C.G Am.Em F.C F.G C.G Am.Em F.C F.G"),
    Tune("swan lake", "Pyotr Ilyich Tchaikovsky, 1877", "A", "minor", 4,
         "E5:2 A:.5 B:.5 C5:.5 D5:.5 | E5:1.5 C5:.5 E5:1.5 C5:.5 | E5:1.5 A:.5 C5:.5 A:.5 F:.5 C5:.5 |"
         "A D5 C5 B",
         "Am Am F Am.E"),
    Tune("mountain king", "Edvard Grieg, 1875", "A", "minor", 4,
         "A:.5 B:.5 C5:.5 D5:.5 E5:.5 C5:.5 E5 | D#5:.5 B:.5 D#5 D5:.5 Bb:.5 D5 |"
         "A:.5 B:.5 C5:.5 D5:.5 E5:.5 C5:.5 E5:.5 A5:.5 | G5:.5 E5:.5 C5:.5 E5:.5 G5:2",
         "Am B.Bb Am C"),
    Tune("little serenade", "Wolfgang Amadeus Mozart (Eine kleine Nachtmusik), 1787", "G", "major", 4,
         "G5:1.5 D5:.5 G5:1.5 D5:.5 | G5:.5 D5:.5 G5:.5 B5:.5 D6:2 | C6:1.5 A5:.5 C6:1.5 A5:.5 |"
         "C6:.5 A5:.5 F#5:.5 A5:.5 D5:2",
         "G G D7 D7"),
    Tune("drunken sailor", "sea shanty, before 1840", "D", "minor", 4,
         "A A:.5 A:.5 A A:.5 A:.5 | A D F A | G G:.5 G:.5 G G:.5 G:.5 | G C E G |"
         "A A:.5 A:.5 A A:.5 A:.5 | A B C5 D5 | C5 A G E | D:2 D:2",
         "Dm Dm C C Dm Dm C Dm"),
)  # fmt: skip
TUNES = {tune.title: tune for tune in _ALL}
