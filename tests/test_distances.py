"""Distances between sets of recordings are zero for equal sources, and their intervals cover."""

import doctest

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import rbf_kernel

from mgkit.evals import distances

WIDTH, BANDWIDTH = 6, 2.0


def draw(rng: np.random.Generator, count: int, shift: float = 0.0, windows: int = 1) -> list[np.ndarray]:
    """Embeddings of `count` recordings, windows of which resemble each other, from a normal distribution."""
    centres = rng.normal(size=(count, 1, WIDTH)) + shift * np.eye(WIDTH)[0]
    return list(centres + 0.2 * rng.normal(size=(count, windows, WIDTH)) * (windows > 1))


def discrepancy(shift: float) -> float:
    """KAD of the two distributions of `draw`, with one window each."""
    scale = BANDWIDTH**2 / (BANDWIDTH**2 + 2)
    return 100 * 2 * scale ** (WIDTH / 2) * (1 - np.exp(-(shift**2) / (2 * BANDWIDTH**2 + 4)))


# -- Fréchet distance --------------------------------------------------------------------------------------


def test_frechet_distance_is_that_of_scipy_s_matrix_square_root():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, WIDTH, WIDTH))
    one, other = ([x @ mix for x in draw(rng, 50, shift=i, windows=3)] for i, mix in enumerate(mixing))
    (mean_a, cov_a), (mean_b, cov_b) = (
        (rows.mean(axis=0), np.cov(rows.T)) for rows in map(np.concatenate, (one, other))
    )
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert distances.frechet(one, other).value == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_has_an_interval_over_recordings_from_three_on():
    rng = np.random.default_rng(1)
    some, few = draw(rng, 30, windows=4), draw(rng, 2, windows=8)
    estimate = distances.frechet(some, draw(rng, 30, shift=2, windows=4))
    assert 0 < estimate.low < estimate.value < estimate.high
    # copies of a recording's windows add nothing: the interval must not shrink
    copied = distances.frechet([np.repeat(x, 5, axis=0) for x in some], draw(rng, 30, shift=2, windows=4))
    assert copied.high - copied.low > 0.5 * (estimate.high - estimate.low)
    assert np.isnan(distances.frechet(some, few).low)
    with pytest.raises(ValueError, match="at least two windows in each set"):
        distances.frechet(some, [few[0][:1]])


# -- KAD ---------------------------------------------------------------------------------------------------


def test_kad_is_the_unbiased_estimator_of_the_paper():
    rng = np.random.default_rng(2)
    one, other = draw(rng, 20), draw(rng, 15, shift=1)
    x, y = np.concatenate(one), np.concatenate(other)
    within_x, within_y, across = (
        rbf_kernel(a, b, gamma=1 / (2 * BANDWIDTH**2)) for a, b in ((x, x), (y, y), (x, y))
    )
    pairs = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (within_x, within_y)]
    expected = 100 * (sum(pairs) - 2 * across.mean())
    assert distances.kernel_distance(one, other, BANDWIDTH).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("windows", [1, 4])
def test_kad_of_sets_from_one_source_is_zero_on_average(windows):
    """With several windows each, a mean over all pairs of windows would be about 3."""
    rng = np.random.default_rng(3)
    values = [
        distances.kernel_distance(
            draw(rng, 12, windows=windows), draw(rng, 8, windows=windows), BANDWIDTH
        ).value
        for _ in range(225)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 15
    assert min(values) < 0


def test_kad_of_a_set_with_itself_is_near_zero_and_grows_with_the_shift():
    rng = np.random.default_rng(4)
    some = draw(rng, 100)
    itself = distances.kernel_distance(some, some)
    assert -2 <= itself.value <= 0
    shifted = [distances.kernel_distance(some, [x + shift for x in some]).value for shift in (0.5, 1, 2)]
    assert shifted == sorted(shifted) and shifted[0] > 3


@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_intervals_of_kad_cover_the_distance_of_the_distributions(shift):
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(120):
        estimate = distances.kernel_distance(draw(rng, 30), draw(rng, 20, shift), BANDWIDTH)
        covered.append(estimate.low <= discrepancy(shift) <= estimate.high)
    assert np.mean(covered) >= 0.88


def test_kad_does_not_depend_on_the_unit_of_the_embedding():
    rng = np.random.default_rng(6)
    one, other = draw(rng, 20), draw(rng, 20, shift=1)
    scaled = distances.kernel_distance([1000 * x for x in one], [1000 * x for x in other])
    assert scaled.value == pytest.approx(distances.kernel_distance(one, other).value)
    constant = [np.ones((1, WIDTH))] * 3
    assert distances.kernel_distance(constant, constant).value == 0


def test_kad_of_a_single_recording_is_refused():
    rng = np.random.default_rng(7)
    with pytest.raises(ValueError, match="KAD needs at least two recordings in each set, got 1 and 5"):
        distances.kernel_distance(draw(rng, 1), draw(rng, 5))
    assert np.isnan(distances.kernel_distance(draw(rng, 2), draw(rng, 5)).low)


# -- neighbours --------------------------------------------------------------------------------------------


def test_a_copy_is_its_own_nearest_recording_at_any_level():
    rng = np.random.default_rng(8)
    training = draw(rng, 30, windows=3)
    found = distances.nearest([2 * training[7], training[12]], training)
    assert found == [(7, pytest.approx(1)), (12, pytest.approx(1))]
    among = distances.nearest(training, training, itself=True)
    assert all(index != i and similarity < 1 for i, (index, similarity) in enumerate(among))


def test_doctests_of_distances_pass():
    assert doctest.testmod(distances).failed == 0
