"""Copies of training clips are found, and their length is exact."""

import doctest

import numpy as np

from mgkit.evals import memorization
from mgkit.evals.memorization import Match


def test_the_longest_match_is_the_copied_run():
    rng = np.random.default_rng(0)
    training, generated = rng.integers(0, 1024, (40, 300)), rng.integers(0, 1024, (3, 250))
    generated[0, 30:90] = training[17, 200:260]
    generated[1, 0:20], generated[1, 100:125] = training[3, :20], training[5, 50:75]
    matches = memorization.longest_matches(generated, training)
    assert matches[:2] == [Match(60, 30, 17, 200), Match(25, 100, 5, 50)]
    assert matches[2].length <= 3


def test_a_full_copy_matches_in_full():
    training = np.random.default_rng(1).integers(0, 1024, (10, 80))
    assert memorization.longest_matches(training[4:5], training) == [Match(80, 0, 4, 0)]


def test_the_nearest_clip_has_the_same_token_counts():
    rng = np.random.default_rng(2)
    training = np.stack([rng.choice(rng.integers(0, 64, 6), (4, 100)) for _ in range(20)])
    generated = training[[7, 12]].copy()
    generated[:, :, ::2] = generated[:, :, ::-2]
    assert memorization.nearest_clips(generated, training, 64) == [7, 12]


def test_doctests_of_memorization_pass():
    assert doctest.testmod(memorization).failed == 0
