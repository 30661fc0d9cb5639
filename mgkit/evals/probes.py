"""Linear probes: what the residual stream of the language model encodes about music, layer by layer.

Axes: K codebooks, T frames, L layers, P pieces, A moments in time, D width, V values, n samples.

    tokens [K, T] -> language model, null condition -> residual stream [L, n, D]
                  -> a linear probe of each layer   -> accuracy, beside the control task and chance
                                                    -> direction [D] of a value, for `edits.Add`

A probe that succeeds shows that an attribute can be read from a layer by a linear map, not that the model
uses it: for that, add a direction and listen (`mgkit.edits`). The control task (Hewitt and Liang,
arXiv:1909.03368) is the same probe on labels shuffled among the pieces; it must be at chance.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mgkit.brief import brief
from mgkit.delay import delay, delays
from mgkit.evals.estimates import Estimate, mean, proportion
from mgkit.evals.labelled import LabelledPiece, Labels, band_pieces, folder_pieces
from mgkit.musicgen import MusicGen

__all__ = [
    "Activations",
    "LabelledPiece",
    "LayerScore",
    "Probe",
    "band_pieces",
    "folder_pieces",
    "probe",
    "read",
]

FOLDS = 5
FEWEST = 5  # pieces with a value; a rarer value is left out
STEP = 0.5  # seconds between the moments at which labels of frames are probed


# -- activations -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activations:
    """The residual stream of `pieces` at the input of `layers`; layer L of L is the output of the last one.

    `mean` [L, P, D] is its mean over time, `moments` [L, P, A, D] the stream right after the `frames` [A]
    have been read, nan beyond the end of a piece. `probe` reads attributes of a whole piece from `mean`, or
    from the moments if they were `chosen`.
    """

    pieces: Sequence[LabelledPiece]
    layers: tuple[int, ...]
    mean: np.ndarray
    moments: np.ndarray
    frames: np.ndarray
    frame_rate: int
    chosen: bool

    def at(self, second: float) -> "Activations":
        """The activations of one moment, the nearest to `second`, for all attributes alike."""
        nearest = np.abs(self.frames + 1 - second * self.frame_rate).argmin()
        only = slice(nearest, nearest + 1)
        return replace(self, moments=self.moments[:, :, only], frames=self.frames[only], chosen=True)

    def probe(self, attribute: str, seed: int = 0) -> "Probe":
        """Probes of an attribute in every layer, and the control task; `seed` draws folds and shuffles.

        Cross-validation in FOLDS folds keeps each piece whole. The probe is linear discriminant analysis with
        Ledoit-Wolf shrinkage (scikit-learn), which has no setting to tune.

        Raises: ValueError for an unknown attribute, or too few pieces or values.
        """
        rng = np.random.default_rng(seed)
        labels = [piece.labels.get(attribute) for piece in self.pieces]
        if not any(label is not None for label in labels):
            known = sorted({name for piece in self.pieces for name in piece.labels})
            raise ValueError(f"no piece has the label {brief(attribute)}; the labels are {', '.join(known)}")
        of_frames = any(label is not None and not isinstance(label, str) for label in labels)
        if of_frames or self.chosen:
            stream, frames = self.moments, self.frames
        else:
            stream, frames = self.mean[:, :, None], self.frames[:1]
        table = _label_table(labels, frames)
        shuffled = table[rng.permutation(len(table))]
        counts = Counter(value for row in table for value in set(row) - {""})
        values = tuple(sorted(value for value, pieces in counts.items() if pieces >= FEWEST))
        labelled = int(np.isin(table, values).any(axis=1).sum())
        if len(values) < 2:
            raise ValueError(
                f"{attribute} has {len(values)} values with at least {FEWEST} pieces each, of "
                f"{len(counts)} in {len(self.pieces)} pieces; a probe needs two: label more pieces"
            )
        folds = np.empty(len(table), int)
        folds[rng.permutation(len(table))] = np.arange(len(table)) % FOLDS
        scores, means = [], []
        for layer, x in zip(self.layers, stream, strict=True):
            accuracy, chance = _cross_validate(x, table, values, folds)
            control, _ = _cross_validate(x, shuffled, values, folds)
            scores.append(LayerScore(layer, accuracy, control))
            means.append([_mean(x[table == value]) for value in values])
        samples = int((np.isin(table, values) & ~np.isnan(stream[0, :, :, 0])).sum())
        return Probe(attribute, values, tuple(scores), chance, labelled, samples, np.array(means))


class LayerScore(NamedTuple):
    """Cross-validated accuracy of a probe of one layer, and of the control task, with 95 % intervals."""

    layer: int
    accuracy: Estimate
    control: Estimate


@dataclass(frozen=True)
class Probe:
    """Probes of one attribute by layer. `chance` is the accuracy of always answering the most frequent value.

    `means` [L, V, D] are the means of the stream over the samples of each of `values`. An interval accounts
    for the choice of test pieces, but not for the choice of training pieces. With several moments per piece,
    accuracy is averaged within each piece first.
    """

    attribute: str
    values: tuple[str, ...]
    scores: tuple[LayerScore, ...]
    chance: float
    pieces: int
    samples: int
    means: np.ndarray

    @property
    def best(self) -> LayerScore:
        """The layer of the highest accuracy."""
        return max(self.scores, key=lambda score: score.accuracy.value)

    def direction(self, value: str, layer: int, other: str | None = None) -> Tensor:
        """Direction [D] towards a value: its mean minus the mean of the `other` value, or of all others.

        For `edits.Add(layer, direction, strength)`: strength 1 moves the stream by the distance between the
        means. The difference in means steers better than the normal of a classifier's boundary, which also
        points away from correlated noise (Marks and Tegmark, arXiv:2310.06824).

        Raises: ValueError for a value or layer that was not probed.
        """
        for name in (value, *([] if other is None else [other])):
            if name not in self.values:
                raise ValueError(
                    f"{brief(name)} is not a value of {self.attribute}; choose one of "
                    f"{', '.join(self.values)}"
                )
        layers = [score.layer for score in self.scores]
        if layer not in layers:
            raise ValueError(
                f"layer {brief(layer)} was not probed; the layers are {', '.join(map(str, layers))}"
            )
        means = self.means[layers.index(layer)]
        others = [i for i, name in enumerate(self.values) if (name == other if other else name != value)]
        towards = means[self.values.index(value)] - means[others].mean(axis=0)
        return torch.from_numpy(towards.astype(np.float32))

    def __str__(self) -> str:
        """A table: layer, accuracy and control with their intervals."""
        lines = [
            f"{self.attribute}: {len(self.values)} values, {self.pieces} pieces, {self.samples} samples, "
            f"chance {self.chance:.0%}",
            "layer  accuracy          control",
        ]
        for layer, *estimates in self.scores:
            cells = (f"{value:4.0%} ({low:.0%} to {high:.0%})" for value, low, high in estimates)
            lines.append(f"{layer:5}  " + "  ".join(f"{cell:16}" for cell in cells).rstrip())
        return "\n".join(lines)


def probe(
    model: MusicGen,
    pieces: Sequence[LabelledPiece],
    attribute: str,
    *,
    layers: Sequence[int] | None = None,
    at: Sequence[float] | None = None,
) -> Probe:
    """Probes of an attribute in `layers` (default: all): accuracy, control task, chance, directions.

    `at` are moments in seconds. By default, attributes of a whole piece are read from the mean over time,
    labels of frames every half second. For several attributes, `read` the activations once.

    Raises: ValueError as `read` and `Activations.probe`.
    """
    return read(model, pieces, layers=layers, at=at).probe(attribute)


@torch.no_grad()
def read(
    model: MusicGen,
    pieces: Sequence[LabelledPiece],
    *,
    layers: Sequence[int] | None = None,
    at: Sequence[float] | None = None,
) -> Activations:
    """Activations of the language model that reads the tokens of `pieces` under the null condition.

    Raises: ValueError for too few pieces, a layer that the model does not have, a moment outside every piece,
    tokens of another shape, or pieces longer than the model's window.
    """
    config = model.lm.config
    chosen_layers = tuple(sorted(set(range(config.layers + 1) if layers is None else layers)))
    if not chosen_layers or chosen_layers[0] < 0 or chosen_layers[-1] > config.layers:
        raise ValueError(
            f"layers is {brief(layers)}; give numbers from 0, the input of the first layer, to "
            f"{config.layers}, the output of the last"
        )
    if len(pieces) < 2 * FOLDS:
        raise ValueError(f"a probe needs at least {2 * FOLDS} pieces, got {len(pieces)}")
    for piece in pieces:
        shape, longest = tuple(piece.codes.shape), model.model.window_frames
        if len(shape) != 2 or shape[0] != config.codebooks or not 0 < shape[1] <= longest:
            raise ValueError(
                f"a piece has tokens of shape {list(shape)}; expected [{config.codebooks}, T] with at most "
                f"{longest} frames, the model's window"
            )
    length = max(piece.codes.shape[1] for piece in pieces)
    moments = np.arange(STEP, length / model.frame_rate, STEP) if at is None else np.asarray(at, float)
    frames = np.round(moments * model.frame_rate).astype(int) - 1
    if not len(frames) or frames.min() < 0 or frames.max() >= length:
        raise ValueError(
            f"at is {brief(at)}; give moments in seconds, up to the length of the longest piece, "
            f"{length / model.frame_rate:g} s"
        )
    shifts = delays(config.codebooks, config.channels)
    # The step at which all codebooks of frame 0 have been read.
    first = 1 + max(shifts)
    condition = model.conditioner([torch.zeros(1, config.dim, device=model.lm.device, dtype=model.lm.dtype)])
    whole = np.empty((len(chosen_layers), len(pieces), config.dim), np.float32)
    parts = np.full((len(chosen_layers), len(pieces), len(frames), config.dim), np.nan, np.float32)
    for number, piece in enumerate(tqdm(pieces, desc="read activations", unit="piece")):
        steps = delay(piece.codes[None].long().to(model.lm.device), shifts, config.special)
        inside = frames < piece.codes.shape[1]
        streams = model.lm.residuals(steps, condition, layers=chosen_layers)
        for row, stream in enumerate(streams):
            music = stream[0, -steps.shape[-1] :].float().cpu().numpy()[first:]
            whole[row, number] = music.mean(axis=0)
            parts[row, number, inside] = music[frames[inside]]
    return Activations(pieces, chosen_layers, whole, parts, frames, model.frame_rate, at is not None)


# -- the probe ---------------------------------------------------------------------------------------------


def _label_table(labels: Sequence[Labels | None], frames: np.ndarray) -> np.ndarray:
    """Labels [P, A] of every piece at `frames`, "" where there is none."""
    rows = []
    for label in labels:
        if label is None or isinstance(label, str):
            rows.append([label or ""] * len(frames))
        else:
            rows.append([(label[frame] or "") if frame < len(label) else "" for frame in frames])
    return np.array(rows)


def _cross_validate(
    x: np.ndarray, table: np.ndarray, values: Sequence[str], folds: np.ndarray
) -> tuple[Estimate, float]:
    """(accuracy, share of the most frequent value) from x [P, A, D], labels [P, A] and folds [P]."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    usable = np.isin(table, values) & ~np.isnan(x[..., 0])
    hits = np.zeros(table.shape, bool)
    for fold in range(FOLDS):
        train, test = (usable & chosen[:, None] for chosen in (folds != fold, folds == fold))
        if test.any():
            # Of a rare value, the training pieces may hold a single sample.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
                hits[test] = model.fit(x[train], table[train]).predict(x[test]) == table[test]
    pieces = usable.any(axis=1)
    samples = usable.sum(axis=1)[pieces]
    accuracies = (hits.sum(axis=1)[pieces] / samples).tolist()
    accuracy = mean(accuracies) if samples.max() > 1 else proportion([share == 1 for share in accuracies])
    frequent = max(((usable & (table == value)).sum(axis=1)[pieces] / samples).mean() for value in values)
    return accuracy, float(frequent)


def _mean(rows: np.ndarray) -> np.ndarray:
    """Mean [D] of rows [n, D], without those that are nan."""
    return rows[~np.isnan(rows[:, 0])].mean(axis=0)
