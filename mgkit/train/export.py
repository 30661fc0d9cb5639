"""From the folders of two runs to a model that `MusicGen.get_pretrained` and transformers load, in float16."""

import argparse
from pathlib import Path

import torch

from mgkit import weights
from mgkit.musicgen import MusicGen

from . import codec as codec_training
from . import lm as lm_training


def export(codec: str | Path, lm: str | Path, out: str | Path, seconds: float = 10.0) -> MusicGen:
    """Writes `out` and returns the model; `seconds` is the length of the clips that it learned from."""
    parts = lm_training.load(lm)
    model = MusicGen(
        weights.Model(
            codec_training.load(codec), parts["lm"], parts["conditioner"], "nano", seconds, weights.MIT
        )
    )
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
