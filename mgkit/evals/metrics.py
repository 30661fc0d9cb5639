"""What can be heard in music without its makers being asked: pure functions from a wave to a finding.

Letters: N samples, F chroma frames, M notes, D features.

    tempo, key, timbre, chroma, notes of one wave       -> findings
    tempo_right, follows, note_f1, ...                  -> whether that is what was asked for
    frechet                                             -> how far two sets of music are apart

None of them is perfect: `measure` prints what each says of the renders themselves, which were made as asked.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from mgkit import melody
from mgkit.evals.basic_pitch import notes
from mgkit.evals.musicnn import musicnn, patches

__all__ = ["Classifier", "chroma", "follows", "frechet", "key", "levels", "note_f1", "notes", "same_chroma", "seam",
           "skyline", "tempo", "tempo_right", "timbre"]  # fmt: skip

Wave = np.ndarray  # [N] float32 within ±1

NEAR = 0.08  # relative error of a tempo that still counts as right
NEAR_ONSET = 0.128  # s: a model that is told of a melody 7.8 times a second can hardly be nearer
MODES = ("major", "minor")
PROFILES = {  # how often each step of a key is there (Temperley, Music and Probability, 2007: Kostka-Payne corpus)
    "major": (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400),
    "minor": (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330),
}
QUIET = 1e-4  # amplitude of which a frame is called silent, -80 dBFS


# -- tempo and key -------------------------------------------------------------------------------------------------


def tempo(wave: Wave, rate: int) -> float:
    """Beats a minute, as librosa hears them; 0 where there is no beat."""
    import librosa

    return float(np.squeeze(librosa.beat.beat_track(y=wave, sr=rate)[0]))


def tempo_right(heard: float, named: float, octaves: bool) -> bool:
    """Whether the tempo is within NEAR of the named one; with `octaves` of its half or double too.

    >>> tempo_right(121, 60, octaves=False), tempo_right(121, 60, octaves=True)
    (False, True)
    """
    if not named:
        return False
    return any(abs(heard / (named * factor) - 1) <= NEAR for factor in ((0.5, 1, 2) if octaves else (1,)))


def key(wave: Wave, rate: int) -> tuple[int, str]:
    """Tonic and mode whose profile fits the pitch classes best: those of all registers, and half as much of the bass.

    What lasts in time counts more than what strikes all frequencies at once, so that drums say little.
    """
    import librosa
    from scipy.ndimage import median_filter

    low = librosa.resample(wave, orig_sr=rate, target_sr=8000, res_type="soxr_hq")
    power = np.abs(librosa.stft(low, n_fft=4096, hop_length=1024))
    lasting, striking = median_filter(power, (1, 9)) ** 2, median_filter(power, (17, 1)) ** 2
    lasting = power * lasting / (lasting + striking + 1e-12)
    bass = lasting * (np.arange(len(lasting)) * 8000 / 4096 <= 250)[:, None]
    everything, bass = (_classes(part, 4096, 8000) for part in (lasting, bass))
    everything = everything / (everything.max(axis=0) + 1e-6)  # each moment counts as much as any other
    heard = sum(
        weight * part.mean(axis=1) / (part.mean() + 1e-9) for weight, part in ((1, everything), (0.5, bass))
    )
    fits = {
        (tonic, mode): np.corrcoef(heard, np.roll(profile, tonic))[0, 1]
        for mode, profile in PROFILES.items()
        for tonic in range(12)
    }
    return max(fits, key=lambda candidate: fits[candidate])


def _classes(spectrum: np.ndarray, n_fft: int, rate: int) -> np.ndarray:
    """Sum of each pitch class [12, T] of a spectrum [n_fft / 2 + 1, T]."""
    return _class_filters(n_fft, rate) @ spectrum


@lru_cache
def _class_filters(n_fft: int, rate: int) -> np.ndarray:
    from librosa.filters import chroma as filters

    return filters(sr=rate, n_fft=n_fft, tuning=0)


# -- sound ---------------------------------------------------------------------------------------------------------


def timbre(wave: Wave, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """(features [D] of the whole wave for a `Classifier`, musicnn's embedding [B, 200] of every three seconds).

    Features: how loud each mel band is on average, seldom, mostly, and how suddenly it rises; and what musicnn makes of it.
    """
    decibel = _mel_decibel(wave, rate)
    rise = np.maximum(np.diff(decibel, axis=1), 0)
    own = [decibel.mean(axis=1), decibel.std(axis=1), *np.quantile(decibel, (0.1, 0.9), axis=1),
           rise.mean(axis=1), np.quantile(rise, 0.97, axis=1)]  # fmt: skip
    tags, embedding, mean = (part.numpy() for part in musicnn()(patches(wave, rate)))
    return np.concatenate([*own, mean.mean(axis=0), embedding.mean(axis=0), tags.mean(axis=0)]), embedding


def levels(wave: Wave, rate: int) -> np.ndarray:
    """dB [3, 64] of each mel band when it is quiet, as usual, and loud (its 10, 50 and 90 % quantile over time)."""
    return np.quantile(_mel_decibel(wave, rate), (0.1, 0.5, 0.9), axis=1)


def _mel_decibel(wave: Wave, rate: int) -> np.ndarray:
    import librosa

    power = librosa.feature.melspectrogram(y=wave, sr=rate, n_fft=2048, hop_length=512, n_mels=64)
    return 10 * np.log10(np.maximum(power, QUIET**2))


class Classifier:
    """Tells the values of an attribute apart by features of the sound, as it learned from `features` [n, D]."""

    def __init__(self, features: np.ndarray, values: Sequence, strength: float = 0.03):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._model = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        )
        self._model.fit(features, values)

    def __call__(self, features: np.ndarray) -> list:
        """The values for features [n, D]."""
        return self._model.predict(features).tolist()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of vectors [n, D], [m, D]: how far apart the normal distributions that fit them are.

    Few vectors make it too large; compare only what was taken of equally many.

    >>> points = np.random.default_rng(0).normal(size=(500, 4))
    >>> round(frechet(points, points), 6), round(frechet(points, points + [3, 0, 0, 0]), 6)
    (0.0, 9.0)
    """
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return max(0.0, float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


# -- melody --------------------------------------------------------------------------------------------------------


def chroma(wave: Wave, rate: int) -> np.ndarray:
    """Pitch classes [12, F] float16, as the model is told of a melody."""
    return melody.chroma(torch.from_numpy(wave)[None], rate).numpy().astype(np.float16)


def follows(heard: np.ndarray, told: np.ndarray) -> tuple[float, float]:
    """How chroma [12, F] follows that of a tune over the frames in which the tune sounds: cosine of the two when each
    frame is its loudest class alone, which is the share of frames that agree; and when only the tune's is.

    (nan, nan) where the tune never sounds.
    """
    frames = min(heard.shape[1], told.shape[1])
    sounding = told[:, :frames].max(axis=0) > 0.5
    heard, note = (
        heard[:, :frames][:, sounding].astype(np.float32),
        told[:, :frames][:, sounding].argmax(axis=0),
    )
    if not len(note):
        return np.nan, np.nan
    cosine = heard[note, np.arange(len(note))] / np.maximum(np.linalg.norm(heard, axis=0), 1e-6)
    return float((heard.argmax(axis=0) == note).mean()), float(cosine.mean())


def same_chroma(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of the pitch classes [12, F] of two waves, frame by frame."""
    a, b = (torch.from_numpy(x.astype(np.float32)) for x in (a, b))
    return float(torch.cosine_similarity(a, b, dim=0).mean())


def skyline(found: np.ndarray) -> np.ndarray:
    """The notes [M, 4] that are the highest while they begin: what is heard as the melody, most often.

    >>> skyline(np.array([[0.0, 1.0, 60, 1], [0.0, 1.0, 72, 1], [0.5, 1.0, 64, 1]]))[:, 2].tolist()
    [72.0]
    """
    start, end, pitch = found[:, 0], found[:, 1], found[:, 2]
    over = (start[None] <= start[:, None] + 0.03) & (end[None] > start[:, None] + 0.05)
    return found[~(over & (pitch[None] > pitch[:, None])).any(axis=1)]


def note_f1(heard: np.ndarray, told: np.ndarray) -> float:
    """F1 of notes [M, ≥ 3] (start, end, pitch, ...) against the told ones: right is the pitch class, octaves aside,
    that begins within NEAR_ONSET. Each counts once.

    >>> tune = np.array([[0.0, 0.5, 60], [0.5, 1.0, 62]])
    >>> note_f1(tune, tune), note_f1(tune + [0, 0, 1], tune)
    (1.0, 0.0)
    """
    if not len(heard) or not len(told):
        return 0.0
    late = np.abs(heard[:, :1] - told[None, :, 0])
    late[(heard[:, 2:3] - told[None, :, 2]) % 12 != 0] = np.inf
    hits = 0
    while late.min() <= NEAR_ONSET:
        row, column = np.unravel_index(late.argmin(), late.shape)
        late[row], late[:, column] = np.inf, np.inf
        hits += 1
    return 2 * hits / (len(heard) + len(told))


# -- seams ---------------------------------------------------------------------------------------------------------


def seam(wave: Wave, rate: int, at: float) -> bool:
    """Whether the energy jumps no more at `at` seconds than it does elsewhere: a click is louder than 99 % of the jumps.

    Energy is that of frames of 10 ms of the wave's slope, in which clicks stand out.
    """
    frame = rate // 100
    slope = np.diff(wave, prepend=wave[:1])
    energy = np.square(slope[: len(slope) // frame * frame].reshape(-1, frame), dtype=np.float64).mean(axis=1)
    jumps = np.abs(np.diff(10 * np.log10(energy + QUIET**2)))
    here = round(at * 100)
    return bool(jumps[here - 1 : here + 1].max() <= np.quantile(jumps, 0.99))
