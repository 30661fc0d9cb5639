"""Metrics of a waveform and of pairs of waveforms, as pure functions.

Axes: N samples, F chroma frames, M notes, D features, B patches of three seconds.

    tempo, key, timbre, chroma, transcribe         properties estimated from one wave [N]
    tempo_matches, melody_similarity, note_f1, ... agreement of an estimate with a reference
    frechet_distance                               distance between two sets of embeddings

Every estimator makes errors. Scores are therefore reported beside a ceiling: the same metric on renders of
the requested pieces.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import torch

from mgkit import melody
from mgkit.evals.basic_pitch import transcribe
from mgkit.evals.musicnn import musicnn, patches
from mgkit.spectra import mel_power, stft

__all__ = [
    "Classifier",
    "band_levels",
    "chroma",
    "chroma_cosine",
    "frechet_distance",
    "key",
    "melody_similarity",
    "note_f1",
    "seam_is_smooth",
    "skyline",
    "tempo",
    "tempo_matches",
    "timbre",
    "transcribe",
]

Wave = np.ndarray  # [N] float32 within ±1
Label = TypeVar("Label", str, bool)

TEMPO_TOLERANCE = 0.08  # relative error
# Seconds. One chroma frame, the time resolution of the melody condition.
ONSET_TOLERANCE = 0.128
MODES = ("major", "minor")
# Probability of each scale degree (Temperley, Music and Probability, 2007: Kostka-Payne corpus).
KEY_PROFILES = {
    "major": (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400),
    "minor": (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330),
}
SILENCE = 1e-4  # amplitude, -80 dBFS


# -- tempo and key -----------------------------------------------------------------------------------------


def tempo(wave: Wave, rate: int) -> float:
    """Tempo in beats per minute, by librosa's beat tracker; 0 if no beat is found."""
    import librosa

    return float(np.squeeze(librosa.beat.beat_track(y=wave, sr=rate)[0]))


def tempo_matches(estimate: float, target: float, octaves: bool) -> bool:
    """Whether a tempo is within TEMPO_TOLERANCE of the target or, with `octaves`, of its half or double.

    >>> tempo_matches(121, 60, octaves=False), tempo_matches(121, 60, octaves=True)
    (False, True)
    """
    if not target:
        return False
    factors = (0.5, 1, 2) if octaves else (1,)
    return any(abs(estimate / (target * factor) - 1) <= TEMPO_TOLERANCE for factor in factors)


def key(wave: Wave, rate: int) -> tuple[int, str]:
    """Tonic (0 is C) and mode, by correlation of the pitch-class distribution with key profiles.

    The distribution sums all registers and, at half the weight, the bass again. It is computed on the
    harmonic part of the spectrum (median filtering, Fitzgerald 2010), so drums contribute little.
    """
    import librosa
    from scipy.ndimage import median_filter

    rate_low, n_fft = 8000, 4096
    low = librosa.resample(wave, orig_sr=rate, target_sr=rate_low, res_type="soxr_hq")
    power = stft(torch.from_numpy(low), n_fft, 1024, pad_mode="constant").abs().numpy()
    harmonic, percussive = median_filter(power, (1, 9)) ** 2, median_filter(power, (17, 1)) ** 2
    harmonic = power * harmonic / (harmonic + percussive + 1e-12)
    bass = harmonic * (np.arange(len(harmonic)) * rate_low / n_fft <= 250)[:, None]
    full, bass = (melody.chroma_filters(rate_low, n_fft).numpy() @ part for part in (harmonic, bass))
    # Each frame counts the same, whatever its level.
    full = full / (full.max(axis=0) + 1e-6)
    distribution = sum(
        weight * part.mean(axis=1) / (part.mean() + 1e-9) for weight, part in ((1, full), (0.5, bass))
    )
    correlations = {
        (tonic, mode): np.corrcoef(distribution, np.roll(profile, tonic))[0, 1]
        for mode, profile in KEY_PROFILES.items()
        for tonic in range(12)
    }
    return max(correlations, key=lambda candidate: correlations[candidate])


# -- timbre ------------------------------------------------------------------------------------------------


def timbre(wave: Wave, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """(features [D] of the whole wave for a `Classifier`, musicnn embeddings [B, 200]).

    The features are statistics of the level and the onset strength of each mel band, then musicnn's mean
    features, mean embedding and, last, mean tag probabilities.
    """
    decibel = _mel_decibel(wave, rate)
    rise = np.maximum(np.diff(decibel, axis=1), 0)
    statistics = [
        decibel.mean(axis=1),
        decibel.std(axis=1),
        *np.quantile(decibel, (0.1, 0.9), axis=1),
        rise.mean(axis=1),
        np.quantile(rise, 0.97, axis=1),
    ]
    tags, embedding, features = (part.numpy() for part in musicnn()(patches(wave, rate)))
    means = [part.mean(axis=0) for part in (features, embedding, tags)]
    return np.concatenate([*statistics, *means]), embedding


def band_levels(wave: Wave, rate: int) -> np.ndarray:
    """10, 50 and 90 % quantiles over time of the level of each mel band, in dB [3, 64]."""
    return np.quantile(_mel_decibel(wave, rate), (0.1, 0.5, 0.9), axis=1)


def _mel_decibel(wave: Wave, rate: int) -> np.ndarray:
    """Log-mel spectrogram [64, T] in dB."""
    power = mel_power(torch.from_numpy(wave), rate, n_fft=2048, hop=512, bands=64).numpy()
    return 10 * np.log10(np.maximum(power, SILENCE**2))


class Classifier(Generic[Label]):
    """Logistic regression from features [n, D] to one label each, with balanced classes."""

    def __init__(self, features: np.ndarray, labels: Sequence[Label], regularization: float = 0.03):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._model = make_pipeline(
            StandardScaler(), LogisticRegression(C=regularization, class_weight="balanced", max_iter=2000)
        )
        self._model.fit(features, labels)

    def __call__(self, features: np.ndarray) -> list[Label]:
        """Predicted labels of features [n, D]."""
        return self._model.predict(features).tolist()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to two sets of embeddings [n, D], [m, D] (arXiv:1812.08466).

    The estimate is biased upwards for small sets: compare only values from sets of equal size.

    >>> points = np.random.default_rng(0).normal(size=(500, 4))
    >>> round(frechet_distance(points, points), 6), round(frechet_distance(points, points + [3, 0, 0, 0]), 6)
    (0.0, 9.0)
    """
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return max(0.0, float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


# -- melody ------------------------------------------------------------------------------------------------


def chroma(wave: Wave, rate: int) -> np.ndarray:
    """Chromagram [12, F] float16, as the model's melody conditioner computes it."""
    return melody.chroma(torch.from_numpy(wave)[None], rate).numpy().astype(np.float16)


def melody_similarity(generated: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """(cosine similarity of quantized chroma, cosine similarity to the quantized target), means over frames.

    Both inputs are [12, F]. Quantized chroma keeps only the strongest class of each frame, so the first value
    is the share of frames in which the strongest classes agree. Only frames in which the target melody sounds
    count; (nan, nan) if there are none.
    """
    frames = min(generated.shape[1], target.shape[1])
    voiced = target[:, :frames].max(axis=0) > 0.5
    generated = generated[:, :frames][:, voiced].astype(np.float32)
    pitch_class = target[:, :frames][:, voiced].argmax(axis=0)
    if not len(pitch_class):
        return np.nan, np.nan
    found = melody.similarity(torch.from_numpy(generated), torch.from_numpy(pitch_class))
    return found.accuracy, found.cosine


def chroma_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine similarity of two chromagrams [12, F], averaged over frames."""
    a, b = (torch.from_numpy(x.astype(np.float32)) for x in (a, b))
    return float(torch.cosine_similarity(a, b, dim=0).mean())


def skyline(notes: np.ndarray) -> np.ndarray:
    """Melody line of notes [M, 4] by the skyline algorithm: the notes with no higher note at their onset.

    >>> skyline(np.array([[0.0, 1.0, 60, 1], [0.0, 1.0, 72, 1], [0.5, 1.0, 64, 1]]))[:, 2].tolist()
    [72.0]
    """
    start, end, pitch = notes[:, 0], notes[:, 1], notes[:, 2]
    sounding = (start[None] <= start[:, None] + 0.03) & (end[None] > start[:, None] + 0.05)
    return notes[~(sounding & (pitch[None] > pitch[:, None])).any(axis=1)]


def note_f1(estimated: np.ndarray, reference: np.ndarray) -> float:
    """F1 score of notes [M, ≥ 3] (onset, offset, pitch, ...) against reference notes.

    Notes match if their pitch classes are equal and their onsets lie within ONSET_TOLERANCE. Matching is one
    to one, nearest onsets first.

    >>> tune = np.array([[0.0, 0.5, 60], [0.5, 1.0, 62]])
    >>> note_f1(tune, tune), note_f1(tune + [0, 0, 1], tune)
    (1.0, 0.0)
    """
    if not len(estimated) or not len(reference):
        return 0.0
    error = np.abs(estimated[:, :1] - reference[None, :, 0])
    error[(estimated[:, 2:3] - reference[None, :, 2]) % 12 != 0] = np.inf
    hits = 0
    while error.min() <= ONSET_TOLERANCE:
        row, column = np.unravel_index(error.argmin(), error.shape)
        error[row], error[:, column] = np.inf, np.inf
        hits += 1
    return 2 * hits / (len(estimated) + len(reference))


# -- seams -------------------------------------------------------------------------------------------------


def seam_is_smooth(wave: Wave, rate: int, seconds: float) -> bool:
    """Whether the energy jump at a seam is at most the 99 % quantile of the jumps within the wave.

    Energy is measured on the first difference of the wave, in frames of 10 ms, where clicks stand out.
    """
    frame = rate // 100
    slope = np.diff(wave, prepend=wave[:1])
    energy = np.square(slope[: len(slope) // frame * frame].reshape(-1, frame), dtype=np.float64).mean(axis=1)
    jumps = np.abs(np.diff(10 * np.log10(energy + SILENCE**2)))
    seam = round(seconds * 100)
    return bool(jumps[seam - 1 : seam + 1].max() <= np.quantile(jumps, 0.99))
