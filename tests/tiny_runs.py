"""Tiny training runs and their data, shared by the tests of training."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from mgkit.band.compose import compose
from mgkit.codec import CodecConfig
from mgkit.lm import LMConfig
from mgkit.train import tokens
from mgkit.train.codec import CodecRun
from mgkit.train.lm import LMRun
from mgkit.train.model import TextConfig

RATE = 32000
CODEC = CodecConfig(filters=4, dim=8, codebooks=2, codebook_size=16)
CAPTIONS = [["calm piano", "slow piano"], ["fast violin, drums", "violin"], ["sad cello", "cello"]]
LM_SHAPE = LMConfig(32, 2, 2, 64, 2, 16, cross_attention=False)
TEXT_SHAPE = TextConfig(dim=24, layers=1, heads=2, head_dim=12, feed_forward=32, pieces=150)


def sound(seed: int, seconds: float = 1.5) -> np.ndarray:
    """int16 [N]: a few decaying tones."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * f * t) * np.exp(-3 * (t % 0.5)) for f in rng.uniform(150, 900, 3))
    return (wave * 6000).astype(np.int16)


def clips() -> SimpleNamespace:
    mix = np.stack([sound(seed) for seed in range(3)])
    return SimpleNamespace(mix=mix, melody=mix)


def codec_run(**changed) -> CodecRun:
    run = CodecRun("", "", False, CODEC, steps=6, minutes=None, batch=2, frames=25, books_from=2, bf16=False)
    return replace(run, **changed)


class Music:
    """A stand-in for `Tokens`: codes [clips, 2, frames] and pitch classes [clips, 4]."""

    def __init__(self, clips: int = 5, frames: int = 40):
        rng = np.random.default_rng(0)
        self.codes, self.melody = rng.integers(0, 16, (clips, 2, frames)), rng.integers(0, 12, (clips, 4))
        self.captions = [CAPTIONS[i % 3] for i in range(clips)]
        self.seconds = frames / 50
        self.pieces = [compose(seed, seconds=self.seconds).attributes() for seed in range(clips)]

    def __len__(self) -> int:
        return len(self.codes)

    batch = tokens.Tokens.batch


def lm_run(**changed) -> LMRun:
    return replace(
        LMRun("", "", "", "", LM_SHAPE, TEXT_SHAPE, text_steps=0, steps=6, minutes=None, batch=2, bf16=False),
        **changed,
    )
