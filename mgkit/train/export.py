"""Package a trained codec and language model as one model, in float16."""

import argparse
from pathlib import Path

import torch

from mgkit import checkpoint, hub
from mgkit.melody import HOP
from mgkit.musicgen import MusicGen
from mgkit.train import codec as codec_training
from mgkit.train import lm as lm_training


def export(codec: str | Path, lm: str | Path, out: str | Path, seconds: float = 10.0) -> MusicGen:
    """Write `out` from two run folders and return the model; `seconds` is the length of the training clips.

    Raises: ValueError if codec and language model do not match.
    """
    trained, codec_model = lm_training.load(lm), codec_training.load(codec)
    config, shape = codec_model.config, trained.lm.config
    if (shape.codebooks, shape.codebook_size) != (config.codebooks * shape.channels, config.codebook_size):
        raise ValueError(
            f"{lm} predicts {shape.codebooks} codebooks of {shape.codebook_size}, but {codec} has "
            f"{config.codebooks} of {config.codebook_size}: give the codec that encoded its training tokens"
        )
    expected, frames = trained.conditioner.melody_frames, 1 + int(seconds * config.sample_rate) // HOP
    if expected not in (None, frames):
        raise ValueError(
            f"{lm} takes {expected} melody frames, but {seconds:g} s at the {config.sample_rate} Hz of "
            f"{codec} are {frames}: give a codec with the sample rate of its training data"
        )
    model = MusicGen(checkpoint.Model(codec_model, trained.lm, trained.conditioner, "nano", seconds, hub.MIT))
    model.save_pretrained(str(out), torch.float16)
    return model


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train export`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train export",
        description="Package a trained codec and language model as one model.",
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
