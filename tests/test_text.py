"""The text encoder: gradients are the caller's choice."""

import torch
from tiny import t5, tokenizer

from mgkit.text import TextEncoder


def test_gradients_reach_the_text_encoder_unless_the_caller_disables_them() -> None:
    encoder = TextEncoder(tokenizer(), t5())
    vectors, _ = encoder(["calm piano"])
    vectors.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    with torch.no_grad():
        assert not encoder(["calm piano"])[0].requires_grad


def test_an_empty_text_is_all_padding() -> None:
    _, mask = TextEncoder(tokenizer(), t5()).tokens(["calm piano", ""])
    assert mask.tolist() == [[True, True, True], [False, False, False]]
