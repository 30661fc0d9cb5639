"""Shared by the tests of invalid input: the check for one clear sentence, and invalid waves."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import RATE, tune

SECONDS = 0.2
FRAMES = 10  # in SECONDS
STEPS = FRAMES + 3  # the last codebook has a delay of 3

GOOD = tune(0.1)
BAD_WAVES = {
    "four axes": (torch.zeros(1, 1, 1, 9), ["[1, 1, 1, 9]"]),
    "no axis": (torch.tensor(1.0), ["[]"]),
    "nine channels": (torch.zeros(9, 99), ["[9, 99]", "channels"]),
    "samples first": (torch.zeros(99, 2), ["[99, 2]", "channels"]),
    "whole numbers": (torch.zeros(1, 99, dtype=torch.int16), ["int16", "32768"]),
    "whole numbers of numpy": (np.zeros((1, 99), np.int32), ["int32"]),
    "complex": (torch.zeros(1, 99) * 1j, ["complex"]),
    "NaN": (GOOD * math.nan, ["NaN"]),
    "infinity": (GOOD / 0, ["infinity"]),
    "no samples": (GOOD[:, :0], ["no samples"]),
    "no waves": ([], []),
    "None": (None, ["None"]),
    "a path": (Path("a.wav"), ["a.wav", "read"]),
    "a string": ("a.wav", ["a.wav", "read"]),
    "what read gives, in one": ((GOOD, RATE), [str(RATE)]),
    "too many": ([GOOD, GOOD], ["2", "1"]),
    "one too deep": ([GOOD[None]], ["[1, 1, "]),
}


def refusal(action, *words, kinds=(ValueError,)):
    """The error message of `action`, which must be one sentence with all of the `words`."""
    with pytest.raises(kinds) as caught:
        action()
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1 and 15 < len(sentence) < 420, sentence
    for word in words:
        assert word in sentence, f"{word!r} is not in {sentence!r}"
    return sentence
