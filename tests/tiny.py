"""Shared by many tests: tiny models with random weights, and runs of transformers' models."""

from unittest.mock import patch

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from mgkit import MusicGen, checkpoint, hub, steps
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.lm import LM, LMConfig
from mgkit.melody import HOP
from mgkit.text import TextEncoder

RATE = 32000
WORDS = (
    *("a", "an", "and", "bass", "bright", "calm", "choir", "dark", "drums", "fast", "flute", "guitar"),
    *("happy", "loud", "of", "piano", "rain", "sad", "slow", "soft", "solo", "strings", "with", "without"),
)
CODEC = CodecConfig(filters=4, dim=16, codebook_size=32)


def tiny(melody: bool = False, channels: int = 1, window: float = 10.0, layers: int = 2) -> MusicGen:
    """A MusicGen with random weights, equal at every call; a step takes a few milliseconds.

    Scaled so that greedy tokens vary from frame to frame and the text and the melody change them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = TextEncoder(tokenizer(), t5())
        shape = LMConfig(
            dim=128,
            layers=layers,
            heads=2,
            feed_forward=256,
            codebooks=4 * channels,
            codebook_size=CODEC.codebook_size,
            channels=channels,
            cross_attention=not melody,
        )
        frames = 1 + int(window * RATE) // HOP if melody else None
        parts = (codec(), scattered(LM(shape)), Conditioner(text, shape.dim, frames))
    for part in parts:
        part.eval().requires_grad_(False)
    for parameter in parts[2].text_proj.parameters():
        parameter.mul_(0.25)  # louder, the text would drown what was played
    return MusicGen(checkpoint.Model(*parts, "tiny", window, hub.MIT))


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of WORDS; as in T5, every text ends with `</s>`."""
    words = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def t5(width: int = 48) -> T5EncoderModel:
    """A T5 encoder for `tokenizer`."""
    shape = {"d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=3 + len(WORDS), d_model=width, **shape)).eval()


def codec(config: CodecConfig = CODEC) -> Codec:
    """A codec with random weights a little larger than torch's: a signal passes from one end to the other."""
    made = Codec(config).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(1.5)
    return made


def scattered(lm: LM) -> LM:
    """The model with all weights redrawn, so that its predictions depend on its past tokens."""
    for name, parameter in lm.named_parameters():
        if parameter.dim() == 1:  # the norms' gains and biases
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.1)
        elif name.startswith("embeddings"):
            nn.init.normal_(parameter, std=1.4)
        else:
            nn.init.normal_(parameter, std=1.7 * lm.config.dim**-0.5)
    return lm


def tune(seconds: float, notes: tuple[int, ...] = (60, 64, 67, 69, 72, 71), channels: int = 1) -> Tensor:
    """A melody [C, N] at RATE: MIDI `notes` of 0.4 s each, repeated."""
    time = torch.arange(round(seconds * RATE)) / RATE
    pitch = torch.tensor(notes)[(time / 0.4).long() % len(notes)]
    wave = 0.5 * torch.sin(2 * torch.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
    return torch.stack([wave * (1 - 0.4 * c) for c in range(channels)])


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Waves of noise at a third of full scale."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 3


def oracle_run(oracle: PreTrainedModel, frames: int, **inputs: object) -> tuple[Tensor, Tensor]:
    """Wave [B, C, N] and tokens [B, K, T] of `frames` greedy new frames of a MusicGen of transformers.

    It returns the sound only, so the tokens are taken where it decodes them. Its `max_new_tokens` counts the
    steps of the delay as well.
    """
    heard, decode = [], oracle.audio_encoder.decode

    def listen(audio_codes: Tensor, *rest: object, **named: object) -> object:
        heard.append(audio_codes[0])
        return decode(audio_codes, *rest, **named)

    with patch.object(oracle.audio_encoder, "decode", listen):
        wave = oracle.generate(**inputs, do_sample=False, max_new_tokens=frames + 3)
    return wave, torch.stack(heard, dim=2).flatten(1, 2)  # stereo is decoded left, then right


def ordinary(monkeypatch, generate) -> Tensor:
    """The tokens of `generate()` without static steps."""
    with monkeypatch.context() as patch:
        patch.setattr(steps, "STATIC_ON", set())
        return generate()
