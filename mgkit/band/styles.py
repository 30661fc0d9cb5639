"""Instruments, scales, moods and styles: the data tables of `compose` and `render`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Lead:
    """An instrument for the melody."""

    program: int  # General MIDI, from 0
    centre: int  # MIDI pitch at the middle of its melodies


LEADS = {
    "piano": Lead(0, 73), "music box": Lead(10, 82), "vibraphone": Lead(11, 73), "marimba": Lead(12, 70),
    "organ": Lead(19, 73), "accordion": Lead(21, 72), "guitar": Lead(24, 66), "electric guitar": Lead(29, 66),
    "violin": Lead(40, 76), "cello": Lead(42, 53), "trumpet": Lead(56, 71), "flute": Lead(73, 80),
    "clarinet": Lead(71, 69), "choir": Lead(52, 69), "sitar": Lead(104, 64), "synth": Lead(81, 73),
}  # fmt: skip
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
DENSITIES = ("sparse", "medium", "dense")

# A mood is a mode and a tempo range (`captions.tempo_word`).
MOODS = {
    "calm": ("major", "slow"), "hopeful": ("major", "moderate"), "happy": ("major", "fast"),
    "sad": ("minor", "slow"), "mysterious": ("minor", "moderate"), "tense": ("minor", "fast"),
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """Accompaniment of one style: instruments, chord progressions and rhythm patterns.

    A pattern has one character per sixteenth note of a 4/4 bar; waltz patterns have twelve.

    Chords: `C` and `c` play the whole chord, loud and soft; a digit plays one voice, counted from the lowest.
    Bass: `r` root, `3` third, `5` fifth, `o` octave, `a` approach note, a semitone below the next root.
    Drums: `X`, `x`, `o` from loud to soft.
    """

    tempo: tuple[int, int]  # lowest and highest, in beats per minute
    waltz: float  # probability of 3/4
    drummed: float  # probability of drums
    swing: float  # 0 plays eighth notes evenly, 1 as triplets
    gate: float  # sounding fraction of a chord or bass note's length
    room: float  # reverberation time in seconds
    chord_programs: tuple[int, ...]
    bass_program: int
    pad_program: int
    kit: int
    progressions: Mapping[str, tuple[str, ...]]  # by mode
    chords: tuple[str, str, str]  # patterns by density
    bass: tuple[str, str, str]  # patterns by density
    beat: dict[int, str]  # General MIDI percussion key: pattern
    five_notes: bool = False  # pentatonic melodies


# Accompaniment of every style in 3/4.
WALTZ_CHORDS = ("....c...c...", "....C...c...", "0.1.2.3.2.1.")
WALTZ_BASS = ("r...........", "r...........", "r.......5...")
WALTZ_BEAT = {36: "X...........", 38: "....o...o...", 42: "x...x.x.x..."}

# fmt: off
# Chord progressions in Roman numerals, one chord per bar (two in slow 4/4 bars).
POP = {"major": ("I IV V I", "I vi IV V", "I IV I V", "I V I IV"),
       "minor": ("i VI iv V", "i iv V i", "i VII VI V", "i iv i V")}
CADENCES = {"major": ("I IV V I", "I vi ii V", "I V I IV I IV V I", "I I IV V I vi V I"),
            "minor": ("i iv V i", "i VI iio V", "i V i iv i iv V i", "i i VI V i iv V i")}
TURNS = {"major": ("IM7 vi7 ii7 V7", "I6 ii7 V7 I6", "I6 IV7 I6 V7", "I6 I6 ii7 V7"),
         "minor": ("i iv7 V7 i", "i VIM7 iio7 V7", "i iv7 i V7", "i i iio7 V7")}
# fmt: on

STYLES = {
    "classical": Style(
        tempo=(66, 150), waltz=0.4, drummed=0.05, swing=0, gate=0.95, room=1.3,
        chord_programs=(0, 46, 6), bass_program=43, pad_program=48, kit=0, progressions=CADENCES,
        chords=("c.......c.......", "0.2.1.2.0.2.1.2.", "0212021202120212"),
        bass=("r...............", "r.......5.......", "r...5...r...5..."),
        beat={36: "x.......x.......", 38: "....o.......o.o.", 81: "o......."}),
    "folk": Style(
        tempo=(76, 144), waltz=0.35, drummed=0.3, swing=0.15, gate=0.9, room=0.6,
        chord_programs=(25, 24, 46), bass_program=32, pad_program=21, kit=0, progressions=POP,
        chords=("....c.......c...", "0...C.c.1...C.c.", "0.C.c.C.0.C.c.Cc"),
        bass=("r.......5.......", "r.......5.......", "r...r...5...5..."),
        beat={54: "....x.......x...", 36: "x.......x.......", 70: "x.o.x.o.x.o.x.o."}, five_notes=True),
    "rock": Style(
        tempo=(92, 160), waltz=0.05, drummed=0.92, swing=0, gate=0.9, room=0.5,
        chord_programs=(27, 26, 18), bass_program=33, pad_program=18, kit=16,
        progressions={"major": ("I IV I V", "I V vi IV", "I IV V I"),
                      "minor": ("i i VI V", "i VII VI V", "i iv i V")},
        chords=("C.......c.......", "C.c.C.c.C.c.C.c.", "C.c.c.C.c.c.C.cc"),
        bass=("r.......r.......", "r.r.r.r.r.r.r.r.", "r.r.r.r.r.r.5.a."),
        beat={36: "X.....x.X.......", 38: "....X.......X...", 42: "x.o.x.o.x.o.x.o."}, five_notes=True),
    "jazz": Style(
        tempo=(76, 160), waltz=0.12, drummed=0.75, swing=1, gate=0.8, room=0.7,
        chord_programs=(0, 26, 4), bass_program=32, pad_program=48, kit=40, progressions=TURNS,
        chords=("....c.......c...", "C.....c.....C...", "C..c..C...c.C.c."),
        bass=("r.......5.......", "r...3...5...a...", "r...3...5...a.a."),
        beat={51: "X...x.o.X...x.o.", 44: "....x.......x...", 36: "o...o...o...o...",
              38: "......o.......o."}),
    "lullaby": Style(
        tempo=(60, 92), waltz=0.5, drummed=0.05, swing=0, gate=1, room=1.2,
        chord_programs=(46, 0, 24), bass_program=32, pad_program=48, kit=0, progressions=POP,
        chords=("0...1...2...1...", "0.1.2.1.0.1.2.1.", "0.1.2.3.2.1.2.1."),
        bass=("r...............", "r...............", "r.......5......."),
        beat={76: "o.......o.......", 70: "o...o...o...o..."}),
    "electronic": Style(
        tempo=(100, 152), waltz=0, drummed=0.9, swing=0, gate=0.55, room=0.6,
        chord_programs=(81, 80, 5), bass_program=38, pad_program=89, kit=24,
        progressions={"major": ("I V vi IV", "I I IV V", "I IV I V"),
                      "minor": ("i VI iv V", "i i VI V", "i iv i V")},
        chords=("C...c...C...c...", "0.1.2.1.0.1.2.1.", "0121012101210121"),
        bass=("r.......r.......", "r...r...r...r...", "r.r.r.r.r.r.r.o."),
        beat={36: "X...X...X...X...", 39: "....x.......x...", 42: "x.o.x.o.x.o.x.oo", 46: "..x...x...x...x."},
        five_notes=True),
    "latin": Style(
        tempo=(84, 144), waltz=0, drummed=0.85, swing=0, gate=0.7, room=0.6,
        chord_programs=(24, 0, 25), bass_program=32, pad_program=48, kit=0, progressions=TURNS,
        chords=("C...c...C...c...", "C...c.c.C...c.c.", "C.c.c.C.C.c.c.C."),
        bass=("r.......5.......", "r.....5.5.....r.", "r..r5...5..5r..."),
        beat={36: "X.....o.X.....o.", 37: "....x.o.....x...", 70: "X.oxX.oxX.oxX.ox",
              56: "x...x...x...x..."}),
    "march": Style(
        tempo=(92, 138), waltz=0, drummed=0.8, swing=0, gate=0.5, room=0.9,
        chord_programs=(61, 0, 68), bass_program=58, pad_program=61, kit=0, progressions=CADENCES,
        chords=("....c.......c...", "..C...c...C...c.", "..C.c.C...C.c.Cc"),
        bass=("r.......5.......", "r...5...r...5...", "r...5...r...5.a."),
        beat={36: "X...x...X...x...", 38: "X.x.X.xxX.x.Xxxx", 49: "o.......o......."}),
    "ambient": Style(
        tempo=(60, 90), waltz=0.25, drummed=0.1, swing=0, gate=1, room=2.2,
        chord_programs=(88, 11, 46), bass_program=39, pad_program=89, kit=24,
        progressions={"major": ("IM7 IVM7", "I V IV I", "I vi7 IVM7 V"),
                      "minor": ("i iv", "i VIM7 iv7 V7", "i i VI V")},
        chords=("c.......c.......", "0...2...1...3...", "0.2.1.3.2.1.3.2."),
        bass=("r...............", "r...............", "r.......r......."),
        beat={36: "x.......o.......", 70: "o...o...o...o..."}, five_notes=True),
    "reggae": Style(
        tempo=(64, 108), waltz=0, drummed=0.9, swing=0.25, gate=0.35, room=0.6,
        chord_programs=(27, 16, 0), bass_program=33, pad_program=16, kit=8,
        progressions={"major": ("I IV I V", "I V I IV", "I IV V I"),
                      "minor": ("i iv i V", "i i VI V", "i iv V i")},
        chords=("....C.......C...", "....C.c.....C.c.", "..c.C.c...c.C.c."),
        bass=("r.......5.......", "r..r..3.5...r...", "r..r..3.5..5..ra"),
        beat={36: "........X.......", 37: "........X.....o.", 42: "x.o.x.o.x.o.x.o."}),
}  # fmt: skip

# Note lengths of one bar of melody, in beats, by meter and density.
RHYTHMS: dict[tuple[int, str], tuple[tuple[float, ...], ...]] = {
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
# Bars of a melody by motif: C ends on a half cadence, D on a full one.
FORMS = ("ABACABAD", "AABCAABD", "ABABACAD", "AAABAACD")
