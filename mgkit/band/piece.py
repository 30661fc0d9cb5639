"""A piece of music: who plays which note when, and its attributes."""

from dataclasses import dataclass

Note = tuple[float, float, int, int]  # start in s, duration in s, MIDI pitch, velocity 1..127


@dataclass(frozen=True)
class Track:
    role: str  # melody, chords, bass, pad or drums
    program: int  # General MIDI, from 0; for drums the number of the kit
    notes: tuple[Note, ...]

    @property
    def is_melody(self) -> bool:
        return self.role == "melody"

    @property
    def percussion(self) -> bool:
        return self.role == "drums"


@dataclass(frozen=True)
class Piece:
    seed: int
    style: str
    lead: str
    key: int  # pitch class of the tonic, C = 0
    mode: str  # major or minor
    tempo: int  # beats a minute
    meter: int  # beats a bar, 3 or 4
    mood: str
    density: str  # sparse, medium or dense
    drums: bool
    tune: str | None  # title of a public-domain tune, None for a melody of the band's own
    tracks: tuple[Track, ...]

    def attributes(self) -> dict[str, str | int | bool | None]:
        """Everything but the notes, for a line of JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "tracks"}
