"""The score beside the music: questions to a middle layer of the language model, which the score answers.

Letters: B batch, T frames, D width, Q columns of a score.

    piece -> score int8 [Q, T]: key, tempo, place in the bar, melody, bass, chord, what is struck, at every frame
    hidden states [B, T, D] of a layer -> `Reader` -> nats by which its answers miss the score

Codes are nearly all noise to a small model: they hardly say that a caption's "d minor" is to be found in the music, and
it looked at the caption no further than the first second. But the band knows every note that it played. Asked for them
at every frame, the layers below learn to carry what the text says, to count beats and to listen to the past; the
layers above find it ready. The questions are for training only: the model that is shipped has no part of them.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mgkit.band.compose import DENSITIES, LEADS, STYLES, Piece, compose
from mgkit.lm import LM

FRAME_RATE = 50  # a second
TEMPO_STEP = 0.04  # of one class of tempos to the next: half of what still counts as right
LOWEST = 36  # MIDI pitch of the melody's first class after silence
STRUCK = {"kick": (35, 36), "snare": (37, 38, 39, 40, 54), "light": (42, 44, 46, 49, 51, 53, 56, 70, 76, 81)}

CHOICES = {"key": 24, "tempo": 26, "lead": len(LEADS), "style": len(STYLES), "meter": 2, "density": 3, "drums": 2,
           "beat": 4, "phase": 16, "melody": 62, "bass": 13}  # fmt: skip
"""Questions with one answer of so many. Beat: which of the bar; phase: sixteenth of the beat; bass: pitch class."""
COUNT_MORE = {"beat": 2.0, "phase": 3.0}  # what is hardest to know, and what rhythm stands on
EVENTS = 12 + 1 + len(STRUCK)
"""Questions with yes or no: whether each pitch class is in the chord, whether a note of the melody begins, and what is
struck."""


def score(piece: Piece, frames: int) -> np.ndarray:
    """What sounds in each frame of a piece, int8 [CHOICES + EVENTS, frames]."""
    time = (np.arange(frames) + 0.5) / FRAME_RATE
    beats = time * piece.tempo / 60
    tempo = round(math.log(piece.tempo / 60) / TEMPO_STEP)
    known = {"key": piece.key + 12 * (piece.mode == "minor"), "tempo": min(max(tempo, 0), CHOICES["tempo"] - 1),
             "lead": tuple(LEADS).index(piece.lead), "style": tuple(STYLES).index(piece.style),
             "meter": piece.meter - 3, "density": DENSITIES.index(piece.density), "drums": int(piece.drums),
             "beat": beats % piece.meter, "phase": beats % 1 * CHOICES["phase"], "melody": 0, "bass": 0}  # fmt: skip
    choices = np.stack([np.broadcast_to(np.asarray(known[name]).astype(np.int8), frames) for name in CHOICES])
    melody, bass = (list(CHOICES).index(name) for name in ("melody", "bass"))
    events = np.zeros((EVENTS, frames), np.int8)
    for track in piece.tracks:
        for start, duration, pitch, _ in track.notes:
            first = round(start * FRAME_RATE)
            sounding = slice(first, max(first + 1, round((start + duration) * FRAME_RATE)))
            if track.role == "melody":
                choices[melody, sounding] = min(max(1 + pitch - LOWEST, 1), CHOICES["melody"] - 1)
                events[12, first : first + 2] = 1
            elif track.role == "bass":
                choices[bass, sounding] = 1 + pitch % 12
            elif track.role == "drums":
                for i, keys in enumerate(STRUCK.values()):
                    if pitch in keys:
                        events[13 + i, first : first + 2] = 1
            if track.role in ("chords", "pad", "bass"):
                events[pitch % 12, sounding] = 1
    return np.concatenate([choices, events])


def scores(pieces: Sequence[dict[str, Any]], seconds: float, frames: int) -> np.ndarray:
    """Scores int8 [pieces, CHOICES + EVENTS, frames] of a band's pieces, composed once more from their seeds.

    Errors: ValueError for pieces that are not the band's, and where it would play another one than it did.
    """
    if any("seed" not in piece for piece in pieces):
        raise ValueError("these clips have no score, since the band did not play them: learn with --score 0")
    found = np.empty((len(pieces), len(CHOICES) + EVENTS, frames), np.int8)
    for row, told in enumerate(tqdm(pieces, desc="scores", unit="piece")):
        piece = compose(told["seed"], seconds=seconds)
        if any(told[name] != value for name, value in piece.attributes().items()):
            raise ValueError(
                f"the band has changed since it played piece {told['seed']}: render the clips again"
            )
        found[row] = score(piece, frames)
    return found


class Reader(nn.Module):
    """Answers, for every frame, from what goes into the layer `number` of `lm`: left out, two thirds of the way up."""

    def __init__(self, lm: LM, number: int | None = None):
        super().__init__()
        number = 2 * lm.config.layers // 3 if number is None else number
        self.norm = nn.LayerNorm(lm.config.dim)
        self.answers = nn.Linear(lm.config.dim, sum(CHOICES.values()) + EVENTS)
        self._heard = threading.local()  # the halves of a batch have a thread each
        lm.layers[number].norm1.register_forward_pre_hook(self._listen)

    def _listen(self, module: nn.Module, given: tuple[Tensor]) -> None:
        self._heard.hidden = given[0]

    def heard(self, frames: int) -> Tensor:
        """What the layer was given [B, T, D] for the last `frames` of what `lm` was last called with by this thread."""
        return self._heard.hidden[:, -frames:]

    def said(self, hidden: Tensor) -> list[Tensor]:
        """Logits [B, T, n] of the answers to each of CHOICES, and of EVENTS, from the layer's states [B, T, D]."""
        return list(self.answers(self.norm(hidden)).float().split([*CHOICES.values(), EVENTS], dim=-1))

    def forward(self, hidden: Tensor, truth: Tensor) -> Tensor:
        """Nats [CHOICES + 1], a frame's mean, by which the layer's states [B, T, D] miss `truth` [B, Q, T], as much as they
        count; the last one for all EVENTS together.

        The step that predicts a frame is asked for it.
        """
        truth = truth.to(hidden.device)
        *choices, events = self.said(hidden)
        missed = [
            COUNT_MORE.get(name, 1.0) * F.cross_entropy(answer.flatten(0, 1), truth[:, i].flatten().long())
            for i, (name, answer) in enumerate(zip(CHOICES, choices, strict=True))
        ]
        struck = truth[:, len(CHOICES) :].transpose(1, 2).float()
        missed.append(F.binary_cross_entropy_with_logits(events, struck) * EVENTS)
        return torch.stack(missed)
