"""The text encoder: gradients are the caller's choice, and generation disables them."""

import torch
from tiny import RATE, t5, tiny, tokenizer, tune

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


def test_generation_records_no_gradients_of_trainable_weights() -> None:
    model = tiny(melody=True)
    for part in (model.codec, model.lm, model.conditioner):
        part.requires_grad_(True)
    model.set_generation_params(duration=0.2)
    waves = [
        model.generate(["calm piano"]),
        model.generate_continuation(tune(0.1), RATE, ["calm piano"]),
        model.generate_with_chroma(["calm piano"], tune(0.3), RATE),
        *model.stream(["calm piano"]),
    ]
    assert not any(wave.requires_grad for wave in waves)
