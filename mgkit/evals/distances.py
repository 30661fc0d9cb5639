"""Distances between two sets of recordings in the space of an embedding, with confidence intervals.

Axes: B windows of a recording, D features, n and m recordings.

    recordings -> embeddings [B, D] of each -> Fréchet distance: Gaussians fitted to all windows
                                            -> KAD: an unbiased estimate of the maximum mean discrepancy

Windows of one recording resemble each other. Intervals therefore leave out whole recordings (jackknife), and
KAD compares windows of different recordings only.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mgkit.evals.estimates import Estimate, Z, exact, jackknife
from mgkit.evals.metrics import frechet_distance

Embeddings = Sequence[np.ndarray]
"""Embeddings [B, D] of each recording."""

KAD_SCALE = 100.0  # as in kadtk
BANDWIDTH_WINDOWS = 2000  # windows that determine the bandwidth of the kernel, at most
CHUNK = 1000  # windows of which the kernel is computed at once


def frechet(found: Embeddings, reference: Embeddings) -> Estimate:
    """Fréchet distance of the windows of two sets (Fréchet audio distance, arXiv:1812.08466).

    It is biased upwards: compare only values from sets of equal size. The interval, from a jackknife over
    recordings, does not account for the bias; with fewer than three recordings in a set, there is none.

    Raises: ValueError for less than two windows in a set.
    """
    for each in (found, reference):
        if sum(map(len, each)) < 2:
            raise ValueError("the Fréchet distance needs at least two windows in each set; add recordings")

    def distance(*sets: np.ndarray) -> float:
        one, other = (np.concatenate(list(each)).astype(np.float64) for each in sets)
        return frechet_distance(one, other)

    fewest = min(len(found), len(reference))
    if fewest < 3:
        return exact(distance(_rows(found), _rows(reference)))
    return jackknife(distance, _rows(found), _rows(reference), groups=min(10, fewest))


def _rows(embeddings: Embeddings) -> np.ndarray:
    """An array of objects, one for each recording."""
    rows = np.empty(len(embeddings), object)
    rows[:] = list(embeddings)
    return rows


def kernel_distance(found: Embeddings, reference: Embeddings, bandwidth: float | None = None) -> Estimate:
    """Kernel audio distance (KAD, arXiv:2502.15602): 100 times the squared maximum mean discrepancy.

    The kernel is exp(-d² / 2 bandwidth²); its default bandwidth is the median distance between windows of the
    reference. The estimate is unbiased, so it can be negative, and its mean over sets from the same source is
    zero. A recording counts as the mean of its windows' kernel values; with one window each, this is the
    paper's estimator. With fewer than three recordings in a set, there is no interval.

    Raises: ValueError for less than two recordings in a set.
    """
    if min(len(found), len(reference)) < 2:
        raise ValueError(
            f"KAD needs at least two recordings in each set, got {len(found)} and {len(reference)} in the "
            "reference; add recordings"
        )
    if bandwidth is None:
        bandwidth = median_distance(reference)
    within = [_kernel(each, each, bandwidth) for each in (found, reference)]
    across = _kernel(found, reference, bandwidth)
    value = sum(_mean_of_pairs(each) for each in within) - 2 * float(across.mean())
    if min(len(found), len(reference)) < 3:
        return exact(KAD_SCALE * value)
    # The statistic without each recording in turn; of the terms, only these two depend on it.
    variance = 0.0
    for kernel, cross in zip(within, (across, across.T), strict=True):
        n = len(kernel)
        others = kernel.sum() - kernel.trace() - 2 * (kernel.sum(axis=1) - kernel.diagonal())
        rest = others / ((n - 1) * (n - 2)) - 2 * (cross.sum() - cross.sum(axis=1)) / (
            (n - 1) * cross.shape[1]
        )
        variance += (n - 1) * rest.var()
    half = Z * math.sqrt(variance)
    return Estimate(*(KAD_SCALE * x for x in (value, value - half, value + half)))


def median_distance(embeddings: Embeddings) -> float:
    """Median Euclidean distance between windows, of all recordings; of a large set, evenly spaced windows.

    >>> median_distance([np.array([[0.0]]), np.array([[1.0]]), np.array([[5.0]])])
    4.0
    """
    rows = np.concatenate(list(embeddings)).astype(np.float64)
    rows = rows[:: math.ceil(len(rows) / BANDWIDTH_WINDOWS)]
    distances = torch.pdist(torch.from_numpy(rows))
    positive = distances[distances > 0]
    return float(positive.median()) if len(positive) else 1.0


def _mean_of_pairs(kernel: np.ndarray) -> float:
    """Mean of a kernel [n, n] without its diagonal."""
    return float(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))


def _kernel(one: Embeddings, other: Embeddings, bandwidth: float) -> np.ndarray:
    """Kernel [n, m] of recordings: the mean over their pairs of windows."""
    (rows, row_owner), (columns, column_owner) = _windows(one), _windows(other)
    sums = torch.zeros(len(one), len(other), dtype=torch.float64)
    for some, owner in zip(rows.split(CHUNK), row_owner.split(CHUNK), strict=True):
        kernel = (-torch.cdist(some, columns).square() / (2 * bandwidth**2)).exp()
        merged = kernel.new_zeros(len(some), len(other)).index_add_(1, column_owner, kernel)
        sums.index_add_(0, owner, merged)
    return (sums / torch.outer(row_owner.bincount(), column_owner.bincount())).numpy()


def _windows(embeddings: Embeddings) -> tuple[Tensor, Tensor]:
    """All windows [B, D], and the number of the recording that each belongs to [B]."""
    owner = np.repeat(np.arange(len(embeddings)), [len(each) for each in embeddings])
    return torch.from_numpy(np.concatenate(list(embeddings)).astype(np.float64)), torch.from_numpy(owner)


def nearest(found: Embeddings, others: Embeddings, itself: bool = False) -> list[tuple[int, float]]:
    """(index, cosine similarity) of the most similar of the `others`, by the mean embedding of a recording.

    With `itself`, both sets are the same and a recording does not count as its own neighbour.

    >>> nearest([np.array([[1.0, 0.0]])], [np.array([[0.0, 1.0]]), np.array([[2.0, 0.0]])])
    [(1, 1.0)]
    """
    one, other = (np.stack([each.mean(axis=0) for each in embeddings]) for embeddings in (found, others))
    one, other = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12) for x in (one, other))
    similarity = one @ other.T
    if itself:
        np.fill_diagonal(similarity, -np.inf)
    return [
        (int(i), round(float(row[i]), 6))
        for i, row in zip(similarity.argmax(axis=1), similarity, strict=True)
    ]
