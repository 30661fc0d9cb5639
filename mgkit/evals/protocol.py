"""Music of every kind that `measure` compares, made and heard part by part.

Letters: B pieces of a part, N samples, K codebooks, T frames.

    held-out pieces -> renders ------------------------------> judges   "renders"
                    -> renders -> codec -> back -------------> judges   "codec"
                    -> prompts -> model, guidance 3, 2, 1 ---> judges   "guided", "mild", "free"
                    -> prompts in words it never saw --------> judges   "unseen"
                    -> prompts and melodies -----------------> judges   "sung"
                    -> their first seconds ------------------> judges   "continued"
    other pieces that the same prompts describe -------------> judges   "takes": what any good answer sounds like
    pieces on another soundfont, and these after the codec --> judges   "lessons" that the classifiers learn from

What a part found stays in a file, whose name holds all that it depends on: a run that was cut off goes on, and a larger
one uses what a smaller one made.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from mgkit import MusicGen, audio, hub
from mgkit.band import captions, piece, styles, synth, tunes
from mgkit.band import compose as composer
from mgkit.band.captions import FIRST_TEST_SEED, MEASURING_FONT, synonyms
from mgkit.band.compose import compose
from mgkit.band.piece import Piece
from mgkit.band.synth import render
from mgkit.evals import basic_pitch, metrics, musicnn
from mgkit.evals.metrics import Wave
from mgkit.train.codec import mel_distances, si_sdr
from mgkit.train.tokens import digest

PART = 8  # pieces that are made and heard at once
GIVEN = 0.4  # of a piece, when the model goes on from its beginning
OTHER_TAKES, LESSONS = (
    FIRST_TEST_SEED + 200_000,
    FIRST_TEST_SEED + 100_000,
)  # first seeds of what is no prompt
KEY_NAMES = ("c", "c sharp", "d", "e flat", "e", "f", "f sharp", "g", "a flat", "a", "b flat", "b")

Finding = dict[str, Any]  # numpy arrays: of one piece, by the name of what was found


@dataclass(frozen=True)
class Way:
    """One way to get music for a piece, and what is listened for in it."""

    ears: tuple[str, ...]
    guidance: float | None = None  # None: rendered, not made by the model
    words: str = "seen"  # of the prompt: seen in training, held out, or few where a beginning tells the rest
    melody: bool = False
    goes_on: bool = False  # from the first seconds of the render
    codec: bool = False  # renders that have been through the codec
    soundfont: str = "fluidr3mono"
    first: int = FIRST_TEST_SEED  # seed of the first piece


WAYS = {
    "renders": Way(("tempo", "key", "sound", "chroma", "notes", "seam", "tune")),
    "codec": Way(("tempo", "key", "sound", "chroma", "notes", "seam", "distance"), codec=True),
    "takes": Way(("sound",), first=OTHER_TAKES),
    "lessons": Way(("tempo", "sound", "chroma"), soundfont=MEASURING_FONT, first=LESSONS),
    "lessons, codec": Way(("tempo", "sound", "chroma", "distance"), None, codec=True,
                          soundfont=MEASURING_FONT, first=LESSONS),
    "guided": Way(("tempo", "key", "sound", "chroma", "notes"), 3.0),
    "mild": Way(("tempo", "key", "sound"), 2.0),
    "free": Way(("tempo", "key", "sound"), 1.0),
    "unseen": Way(("tempo", "key", "sound"), 3.0, "held out"),
    "sung": Way(("sound", "chroma", "notes"), 3.0, melody=True),
    "sung, free": Way(("chroma", "notes"), 1.0, melody=True),
    "continued": Way(("seam",), 3.0, "few", goes_on=True),
    "continued, free": Way(("seam",), 1.0, "few", goes_on=True),
}  # fmt: skip


# -- what is asked for ---------------------------------------------------------------------------------------------


def piece_of(way: Way, number: int, seconds: float) -> Piece:
    """The piece of a way; of the other takes, one that the prompt of the piece with that number describes."""
    fixed = {}
    if way.first == OTHER_TAKES:
        asked = compose(FIRST_TEST_SEED + number, seconds=seconds)
        fixed = {name: getattr(asked, name) for name in ("style", "lead", "key", "mode", "tempo", "drums")}
    return compose(way.first + number, seconds=seconds, **fixed)


def prompt(piece: Piece, words: str = "seen") -> str:
    """A prompt that names everything that is judged, in words of the training captions or "held out" ones; with "few"
    only what a beginning does not tell of itself."""
    style, lead, drums = (
        synonyms(name, getattr(piece, name), words == "held out")[0] for name in ("style", "lead", "drums")
    )
    if words == "few":
        return f"{style}, {lead}, {drums}"
    return f"{style}, {lead}, {piece.tempo} bpm, {KEY_NAMES[piece.key]} {piece.mode}, {drums}"


# -- what is heard -------------------------------------------------------------------------------------------------


class Take(NamedTuple):
    """A wave [N] that is listened to, and the render of its piece."""

    wave: Wave
    rate: int
    mix: Wave
    tune: Wave  # the melody alone
    seam: float  # seconds of the beginning that was given where it goes on


def _key(wave: Wave, rate: int) -> np.ndarray:
    tonic, mode = metrics.key(wave, rate)
    return np.array([tonic, metrics.MODES.index(mode)], np.int8)


def _sound(take: Take) -> Finding:
    features, embedding = metrics.timbre(take.wave, take.rate)
    levels = metrics.levels(take.wave, take.rate)
    return {"features": features.astype(np.float32), "embedding": embedding, "levels": levels.astype(np.float32)}  # fmt: skip


def _seam(take: Take) -> Finding:
    """Key and tempo of what comes after the seam, and whether it is smooth."""
    rest = take.wave[round(take.seam * take.rate) :]
    return {"seam_tempo": np.float32(metrics.tempo(rest, take.rate)), "seam_key": _key(rest, take.rate),
            "smooth": np.bool_(metrics.seam(take.wave, take.rate, take.seam))}  # fmt: skip


def _distance(take: Take) -> Finding:
    mix, wave = torch.from_numpy(take.mix), torch.from_numpy(take.wave)
    return {"mel": mel_distances(mix, wave, take.rate)[0].numpy(), "si_sdr": si_sdr(mix, wave).numpy()}


EARS: dict[str, Callable[[Take], Finding]] = {
    "tempo": lambda take: {"tempo": np.float32(metrics.tempo(take.wave, take.rate))},
    "key": lambda take: {"key": _key(take.wave, take.rate)},
    "sound": _sound,
    "chroma": lambda take: {"chroma": metrics.chroma(take.wave, take.rate)},
    "notes": lambda take: {"notes": metrics.skyline(metrics.notes(take.wave, take.rate))},
    "seam": _seam,
    "tune": lambda take: {"tune": metrics.chroma(take.tune, take.rate)},
    "distance": _distance,
}


def listen(take: Take, ears: tuple[str, ...]) -> Finding:
    """What is found by listening with these ears."""
    return {name: value for ear in ears for name, value in EARS[ear](take).items()}


# -- making and hearing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A few pieces of a way, heard or to be heard."""

    folder: Path
    model: str  # name or folder
    way: str
    start: int
    size: int
    seconds: float

    @property
    def how(self) -> Way:
        return WAYS[self.way]

    @property
    def seam(self) -> float:
        """Seconds of a beginning that the model goes on from: whole frames of 20 ms."""
        return round(GIVEN * self.seconds * 50) / 50

    def pieces(self) -> list[Piece]:
        """What is asked for."""
        return [piece_of(self.how, self.start + i, self.seconds) for i in range(self.size)]

    def hear(self) -> None:
        """Makes sure that the file with what is heard is there."""
        if not self._heard.is_file():
            flat: dict[str, Any] = {
                f"{i} {ear}": value for i, one in enumerate(self._listen()) for ear, value in one.items()
            }
            audio.replace_file(self._heard, lambda path: np.savez_compressed(path, **flat))

    def findings(self) -> list[Finding]:
        """What is heard in each piece."""
        self.hear()
        found: list[Finding] = [{} for _ in range(self.size)]
        with np.load(self._heard) as file:
            for entry in file.files:
                number, _, ear = entry.partition(" ")
                found[int(number)][ear] = file[entry]
        return found

    def tokens(self, rendered: list[tuple[Wave, Wave]] | None = None) -> np.ndarray:
        """Codes int16 [B, K, T] that the model makes, piece i with seed i; from the file where it made them before."""
        if not self._made.is_file():
            made = self._make(self.rendered() if rendered is None else rendered)
            audio.replace_file(self._made, lambda path: np.save(path, made))
        return np.load(self._made)

    def rendered(self) -> list[tuple[Wave, Wave]]:
        """(mix, melody) [N] of each piece."""
        rate = load(self.model).sample_rate
        return [
            render(piece, seconds=self.seconds, rate=rate, soundfont=self.how.soundfont)
            for piece in self.pieces()
        ]

    @property
    def _weights(self) -> str | None:
        """Tells apart what of the model has a part in it."""
        if self.how.guidance is not None:
            return _weights(self.model)
        return digest(load(self.model).codec) if self.how.codec else None

    @property
    def _made(self) -> Path:
        return self.folder / f"{self._name}-{_digest(self._request())}.npy"

    @property
    def _heard(self) -> Path:
        judged = _source(metrics, musicnn, basic_pitch), self.how.ears
        return self.folder / f"{self._name}-{_digest((self._request(), judged))}.npz"

    @property
    def _name(self) -> str:
        return f"{self.way.replace(', ', '_')}-{self.start:04}"

    def _request(self) -> dict:
        """All that the music depends on."""
        return {"how": asdict(self.how) | {"ears": None}, "told": self._told(), "seconds": self.seconds,
                "start": self.start, "weights": self._weights, "band": _source(piece, styles, tunes, captions, composer, synth)}  # fmt: skip

    def _told(self) -> list[str]:
        return [prompt(piece, self.how.words) for piece in self.pieces()]

    def _listen(self) -> list[Finding]:
        model, rendered = load(self.model), self.rendered()
        mixes = np.stack([mix for mix, _ in rendered])
        heard = mixes
        if self.how.codec:
            heard = round_trip(model, mixes)
        if self.how.guidance is not None:
            codes = torch.from_numpy(self.tokens(rendered).astype(np.int64))
            heard = model.generate_audio(codes)[:, 0].numpy()
        takes = [
            Take(wave, model.sample_rate, mix, tune, self.seam)
            for wave, (mix, tune) in zip(heard, rendered, strict=True)
        ]
        return [listen(take, self.how.ears) for take in takes]

    def _make(self, rendered: list[tuple[Wave, Wave]]) -> np.ndarray:
        model, told = load(self.model), self._told()
        model.set_generation_params(duration=self.seconds, cfg_coef=self.how.guidance or 1.0)
        if self.how.melody:
            tunes = [torch.from_numpy(tune)[None] for _, tune in rendered]
            made = model.generate_with_chroma(
                told, tunes, model.sample_rate, return_tokens=True, seed=self.start
            )
        elif self.how.goes_on:
            given = [
                torch.from_numpy(mix[: round(self.seam * model.sample_rate)])[None] for mix, _ in rendered
            ]
            made = model.generate_continuation(
                given, model.sample_rate, told, return_tokens=True, seed=self.start
            )
        else:
            made = model.generate(told, return_tokens=True, seed=self.start)
        return made[1].to(torch.int16).numpy()


@torch.no_grad()
def round_trip(model: MusicGen, waves: np.ndarray) -> np.ndarray:
    """Waves [B, N] after the codec, as long as they were."""
    back = model.codec.decode(model.codec.encode(torch.from_numpy(waves)[:, None]))
    return back[:, 0, : waves.shape[1]].numpy()


@lru_cache(maxsize=1)
def load(name: str) -> MusicGen:
    """The model, once a process, on the CPU."""
    return MusicGen.get_pretrained(name, device="cpu")


@lru_cache
def _weights(name: str) -> str:
    """Tells models apart."""
    files = (p for p in sorted(hub.find(name).iterdir()) if p.suffix in (".safetensors", ".bin", ".json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


@lru_cache
def _source(*modules: ModuleType) -> str:
    """Tells versions of code apart."""
    return hashlib.sha256(b"".join(Path(str(m.__file__)).read_bytes() for m in modules)).hexdigest()[:16]


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
