"""A piece of music as notes: its attributes and one track per instrument."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

# (start in seconds, duration in seconds, MIDI pitch, velocity 1..127)
Note = tuple[float, float, int, int]
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
    """Attributes and notes of one piece."""

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

    def attributes(self) -> dict[str, Attribute]:
        """All fields except the tracks, ready for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "tracks"}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """A piece without tracks, from `attributes()` or a line of pieces.jsonl: enough to caption it."""
        names = cls.__dataclass_fields__.keys() - {"tracks"}
        return cls(**{name: attributes[name] for name in names}, tracks=())
