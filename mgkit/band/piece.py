"""A piece of music as notes: its attributes and one track per instrument."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

# (start in seconds, duration in seconds, MIDI pitch, velocity 1..127)
Note = tuple[float, float, int, int]
# Pitch classes of a chord, the root first.
Chord = tuple[int, ...]
Attribute = str | int | bool | None


@dataclass(frozen=True)
class Track:
    """The notes of one instrument."""

    role: str  # melody, chords, bass, pad or drums
    program: int  # General MIDI program, from 0; for drums the number of the kit
    notes: tuple[Note, ...]

    @property
    def is_melody(self) -> bool:
        return self.role == "melody"

    @property
    def percussion(self) -> bool:
        return self.role == "drums"


@dataclass(frozen=True)
class Piece:
    """Attributes, notes and harmony of one piece."""

    seed: int
    style: str
    lead: str
    key: int  # pitch class of the tonic, C = 0
    mode: str  # major or minor
    tempo: int  # beats per minute
    meter: int  # beats per bar, 3 or 4
    mood: str
    density: str  # sparse, medium or dense
    drums: bool
    tune: str | None  # title of a public-domain tune; None for a composed melody
    tracks: tuple[Track, ...]
    chords: tuple[tuple[float, Chord], ...] = ()  # (start in seconds, chord), to the end of the last bar

    def attributes(self) -> dict[str, Attribute]:
        """All fields except tracks and chords, ready for JSON."""
        names = [name for name in self.__dataclass_fields__ if name not in ("tracks", "chords")]
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """A piece without notes, from `attributes()` or a line of pieces.jsonl: enough to caption it."""
        names = cls.__dataclass_fields__.keys() - {"tracks", "chords"}
        return cls(**{name: attributes[name] for name in names}, tracks=())
