"""The delay pattern; the round trip is in test_properties."""

import pytest
import torch

from mgkit.delay import delay, delays, undelay


@pytest.mark.parametrize("codebooks", [2, 8])
def test_a_wrong_number_of_codebooks_is_an_error_and_not_uninitialised_memory(codebooks: int) -> None:
    codes = torch.zeros(1, codebooks, 5, dtype=torch.long)
    with pytest.raises(AssertionError, match=f"{codebooks} codebooks, 4 shifts"):
        delay(codes, delays(4), special=9)
    with pytest.raises(AssertionError, match=f"{codebooks} codebooks, 4 shifts"):
        undelay(codes, delays(4))
