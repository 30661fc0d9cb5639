"""From the folders of two runs to a model that `MusicGen.get_pretrained` and transformers load, in float16."""

import argparse
from pathlib import Path

import torch

from mgkit import checkpoint, hub
from mgkit.melody import HOP
from mgkit.musicgen import MusicGen
from mgkit.train import codec as codec_training
from mgkit.train import lm as lm_training


def export(codec: str | Path, lm: str | Path, out: str | Path, seconds: float = 10.0) -> MusicGen:
    """Writes `out` and returns the model; `seconds` is the length of the clips that it learned from.

    Errors: ValueError for a codec and a language model that do not fit each other.
    """
    parts, coder = lm_training.load(lm), codec_training.load(codec)
    config, shape = coder.config, parts["lm"].config
    if (shape.codebooks, shape.codebook_size) != (config.codebooks * shape.channels, config.codebook_size):
        raise ValueError(
            f"{lm} writes {shape.codebooks} codebooks of {shape.codebook_size}, and {codec} has {config.codebooks} of "
            f"{config.codebook_size}: take the codec that made the tokens it learned from"
        )
    heard, frames = parts["conditioner"].melody_frames, 1 + int(seconds * config.sample_rate) // HOP
    if heard not in (None, frames):
        raise ValueError(
            f"{lm} hears {heard} frames of a melody, and {seconds:g} s at the {config.sample_rate} Hz of {codec} are {frames}: "
            "take a codec of the rate that it learned at"
        )
    model = MusicGen(checkpoint.Model(coder, parts["lm"], parts["conditioner"], "nano", seconds, hub.MIT))
    model.save_pretrained(str(out), torch.float16)
    return model


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train export`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train export", description="Writes a model to use."
    )
    parser.add_argument("--codec", default="runs/codec", help="folder of the codec's run")
    parser.add_argument("--lm", default="runs/lm", help="folder of the language model's run")
    parser.add_argument("--out", default="data/nano", help="folder to write")
    args = parser.parse_args(argv)
    export(args.codec, args.lm, args.out)
    size = sum(file.stat().st_size for file in Path(args.out).iterdir())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
