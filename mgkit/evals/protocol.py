"""Evaluation protocol: held-out pieces and their prompts, conditions to compare, metrics of each clip.

held-out piece -> render ---------------------------> "renders", the ceiling
               -> render -> codec ------------------> "round trip"
               -> prompt -> model, guidance 3, 2, 1 -> "guidance 3", "guidance 2", "guidance 1"
               -> prompt in held-out synonyms ------> "held-out synonyms"
               -> prompt and melody ----------------> "melody, guidance 3", "melody, guidance 1"
               -> short prompt and audio prompt ----> "continuation, guidance 3", "continuation, guidance 1"
other pieces with the same attributes --------------> "reference set" of the distances
other pieces, second sound font, and their round trip -> "classifier set", training data of the classifiers
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from mgkit.band.captions import FIRST_TEST_SEED, MEASURING_FONT, synonyms
from mgkit.band.compose import compose
from mgkit.band.piece import Piece
from mgkit.evals import metrics
from mgkit.evals.metrics import Wave
from mgkit.train.codec import mel_distances, si_sdr

# First seeds of the pieces that no prompt describes.
REFERENCE_SEED, CLASSIFIER_SEED = FIRST_TEST_SEED + 200_000, FIRST_TEST_SEED + 100_000
KEY_NAMES = ("c", "c sharp", "d", "e flat", "e", "f", "f sharp", "g", "a flat", "a", "b flat", "b")

Wording = Literal["training", "held-out", "short"]
Measurement = dict[str, np.ndarray]
"""Metric values of one clip, by name."""


@dataclass(frozen=True)
class EvalCondition:
    """One way to produce a clip for each piece, and the metrics to compute on it."""

    metrics: tuple[str, ...]
    # None for renders; else the model generates
    guidance: float | None = None
    wording: Wording = "training"
    melody: bool = False
    # continues the first seconds of the render
    continuation: bool = False
    # a render after encoding and decoding
    round_trip: bool = False
    soundfont: str = "fluidr3mono"
    first_seed: int = FIRST_TEST_SEED
    clips_per_prompt: int = 1


CONDITIONS = {
    "renders": EvalCondition(("tempo", "key", "timbre", "chroma", "notes", "seam", "melody")),
    "round trip": EvalCondition(
        ("tempo", "key", "timbre", "chroma", "notes", "seam", "distance"), round_trip=True
    ),
    "reference set": EvalCondition(("timbre",), first_seed=REFERENCE_SEED),
    "classifier set": EvalCondition(
        ("tempo", "timbre", "chroma"),
        soundfont=MEASURING_FONT,
        first_seed=CLASSIFIER_SEED,
        clips_per_prompt=2,
    ),
    "classifier set, round trip": EvalCondition(
        ("tempo", "timbre", "chroma", "distance"),
        round_trip=True,
        soundfont=MEASURING_FONT,
        first_seed=CLASSIFIER_SEED,
        clips_per_prompt=2,
    ),
    "guidance 3": EvalCondition(("tempo", "key", "timbre", "chroma", "notes"), 3.0),
    "guidance 2": EvalCondition(("tempo", "key", "timbre"), 2.0),
    "guidance 1": EvalCondition(("tempo", "key", "timbre"), 1.0),
    "held-out synonyms": EvalCondition(("tempo", "key", "timbre"), 3.0, "held-out"),
    "melody, guidance 3": EvalCondition(("timbre", "chroma", "notes"), 3.0, melody=True),
    "melody, guidance 1": EvalCondition(("chroma", "notes"), 1.0, melody=True),
    "continuation, guidance 3": EvalCondition(("seam",), 3.0, "short", continuation=True),
    "continuation, guidance 1": EvalCondition(("seam",), 1.0, "short", continuation=True),
}


# -- pieces and prompts ------------------------------------------------------------------------------------


def compose_piece(condition: EvalCondition, index: int, seconds: float) -> Piece:
    """Piece number `index` of a condition; in the reference set, another piece with the same prompt."""
    fixed = {}
    if condition.first_seed == REFERENCE_SEED:
        prompted = compose(FIRST_TEST_SEED + index, seconds=seconds)
        fixed = {name: getattr(prompted, name) for name in ("style", "lead", "key", "mode", "tempo", "drums")}
    return compose(condition.first_seed + index, seconds=seconds, **fixed)


def prompt(piece: Piece, wording: Wording = "training") -> str:
    """A prompt with every evaluated attribute of a piece, in training or held-out synonyms.

    A "short" prompt, for continuations, omits tempo and key: they are to be taken from the audio prompt.
    """
    style, lead, drums = (
        synonyms(name, getattr(piece, name), wording == "held-out")[0] for name in ("style", "lead", "drums")
    )
    if wording == "short":
        return f"{style}, {lead}, {drums}"
    return f"{style}, {lead}, {piece.tempo} bpm, {KEY_NAMES[piece.key]} {piece.mode}, {drums}"


# -- metrics of a clip -------------------------------------------------------------------------------------


class Clip(NamedTuple):
    """A waveform [N] to evaluate, with the render of its piece."""

    wave: Wave
    rate: int
    render: Wave
    melody: Wave  # the melody track of the render
    seam: float  # end of the audio prompt in a continuation, in seconds


def measure_clip(clip: Clip, names: tuple[str, ...]) -> Measurement:
    """Values of the named METRICS on a clip."""
    return {key: value for name in names for key, value in METRICS[name](clip).items()}


def _tempo(clip: Clip) -> Measurement:
    return {"tempo": np.array(metrics.tempo(clip.wave, clip.rate), np.float32)}


def _key(clip: Clip) -> Measurement:
    return {"key": encode_key(metrics.key(clip.wave, clip.rate))}


def _timbre(clip: Clip) -> Measurement:
    features, embedding = metrics.timbre(clip.wave, clip.rate)
    levels = metrics.band_levels(clip.wave, clip.rate)
    return {
        "features": features.astype(np.float32),
        "embedding": embedding,
        "levels": levels.astype(np.float32),
    }


def _chroma(clip: Clip) -> Measurement:
    return {"chroma": metrics.chroma(clip.wave, clip.rate)}


def _notes(clip: Clip) -> Measurement:
    return {"notes": metrics.skyline(metrics.transcribe(clip.wave, clip.rate))}


def _melody(clip: Clip) -> Measurement:
    return {"melody": metrics.chroma(clip.melody, clip.rate)}


def _seam(clip: Clip) -> Measurement:
    """Tempo and key after the seam, and its smoothness."""
    rest = clip.wave[round(clip.seam * clip.rate) :]
    return {
        "seam_tempo": np.array(metrics.tempo(rest, clip.rate), np.float32),
        "seam_key": encode_key(metrics.key(rest, clip.rate)),
        "smooth": np.array(metrics.seam_is_smooth(clip.wave, clip.rate, clip.seam)),
    }


def _distance(clip: Clip) -> Measurement:
    """Mel distance in dB and SI-SDR in dB, against the render."""
    render, wave = torch.from_numpy(clip.render), torch.from_numpy(clip.wave)
    mel = mel_distances(render, wave, clip.rate)[0].numpy()
    return {"mel": mel, "si_sdr": si_sdr(render, wave).numpy()}


METRICS: dict[str, Callable[[Clip], Measurement]] = {
    "tempo": _tempo,
    "key": _key,
    "timbre": _timbre,
    "chroma": _chroma,
    "notes": _notes,
    "melody": _melody,
    "seam": _seam,
    "distance": _distance,
}


def encode_key(key: tuple[int, str]) -> np.ndarray:
    """Tonic and mode as numbers int8 [2], to be stored."""
    return np.array([key[0], metrics.MODES.index(key[1])], np.int8)


def decode_key(numbers: np.ndarray) -> tuple[int, str]:
    """Inverse of `encode_key`."""
    return int(numbers[0]), metrics.MODES[int(numbers[1])]
