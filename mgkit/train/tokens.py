"""What the language model learns from: every clip as the codec's tokens, with its melody's pitch classes.

codes.npy    int16 [clips, K, T]
melody.npy   int8 [clips, F], F = chroma frames of a clip
tokens.json  where they come from; written last: with it, all is there
"""

import argparse
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mgkit import audio, melody
from mgkit.band.captions import captions
from mgkit.codec import Codec
from mgkit.train import codec as codec_training
from mgkit.train.loop import Clips, waves

STRIDE, STRIDE_CHROMA = (
    32,
    5,
)  # frames of codes and of chroma that take equally long: 32 * 640 = 5 * 4096 samples


def chroma_frames(samples: int) -> int:
    """Pitch classes of a clip: 79 for ten seconds."""
    return 1 + samples // melody.HOP


def digest(module: nn.Module) -> str:
    """Tells modules apart by their weights."""
    parts = (p.detach().cpu().numpy().tobytes() for p in module.parameters())
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def write(codec: Codec, data: Clips, out: str | Path, clips: int) -> None:
    """Tokens of the first `clips` of `data` into `out`; does nothing where just they are there.

    Errors: ValueError where `out` holds the tokens of another codec, or for a codec of other frames.
    """
    out = Path(out)
    if STRIDE * codec.config.hop != STRIDE_CHROMA * melody.HOP:
        raise ValueError(
            f"a frame of this codec is {codec.config.hop} samples; the language model is taught with frames of "
            f"{STRIDE_CHROMA * melody.HOP // STRIDE}"
        )
    frames = -(-data.samples // codec.config.hop)
    plan = {"clips": clips, "samples": data.samples, "codebooks": codec.config.codebooks, "frames": frames,
            "codebook_size": codec.config.codebook_size, "rate": codec.config.sample_rate, "codec": digest(codec)}  # fmt: skip
    if (out / "tokens.json").is_file():
        old = json.loads((out / "tokens.json").read_text())
        if old == plan:
            return
        if old["codec"] != plan["codec"]:
            raise ValueError(f"{out} holds the tokens of another codec; give another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    shapes = {"codes.npy": (np.int16, (clips, codec.config.codebooks, frames)),
              "melody.npy": (np.int8, (clips, chroma_frames(data.samples)))}  # fmt: skip
    codes, heard = (np.zeros(shape, dtype) for dtype, shape in shapes.values())

    @torch.no_grad()
    def one(clip: int) -> None:
        codes[clip] = codec.encode(waves(data.mix[clip])[None, None])[0].short().numpy()
        heard[clip] = melody.classes(
            waves(data.melody[clip])[None], codec.config.sample_rate, heard.shape[1]
        ).numpy()

    # one clip and one thread each: what a clip needs fits a core's cache, and cores that share one wait for each other
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in tqdm(pool.map(one, range(clips)), total=clips, desc="tokens", unit="clip"):
            pass
    for name, values in (("codes.npy", codes), ("melody.npy", heard)):
        np.save(out / name, values)
    audio.replace_file(out / "tokens.json", lambda path: path.write_text(json.dumps(plan, indent=1) + "\n"))


class Tokens:
    """A folder of tokens with its clips' descriptions: `codes` [clips, K, T], `melody` [clips, F], `captions`.

    Errors: FileNotFoundError or ValueError for a folder that is missing, not finished, or of other clips.
    """

    def __init__(self, folder: str | Path, data: str | Path):
        folder = Path(folder)
        if not (folder / "tokens.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no tokens.json: make them first (python -m mgkit train tokens)"
            )
        self.plan = json.loads((folder / "tokens.json").read_text())
        self.codes, self.melody = np.load(folder / "codes.npy"), np.load(folder / "melody.npy")
        pieces = [json.loads(line) for line in (Path(data) / "pieces.jsonl").read_text().splitlines()]
        if len(pieces) < len(self.codes):
            raise ValueError(f"{folder} holds {len(self.codes)} clips and {data} describes {len(pieces)}")
        self.pieces = pieces[: len(self.codes)]
        self.captions = [piece["captions"] for piece in self.pieces]
        self.seconds = self.plan["samples"] / self.plan["rate"]

    def __len__(self) -> int:
        return len(self.codes)

    def caption(self, row: int, rng: np.random.Generator) -> str:
        """A caption of the clip: a new one at every call, since they cost nothing."""
        return captions(SimpleNamespace(**self.pieces[row]), int(rng.integers(2**31)), 1)[0]  # type: ignore[arg-type]

    def music(self, rows: np.ndarray, frames: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Codes [B, K, frames] of the clips from frame `start` * STRIDE on, and pitch classes [B, F] in a loop from there."""
        at = start * STRIDE
        codes = torch.from_numpy(self.codes[rows, :, at : at + frames].astype(np.int64))
        heard = torch.from_numpy(self.melody[rows].astype(np.int64))
        return codes, heard.roll(-start * STRIDE_CHROMA, dims=1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that learns from tokens: which ones, and where the captions of their clips are."""
    parser.add_argument("--data", default="runs/band", help="rendered clips to learn from")
    parser.add_argument("--valid", default="runs/valid", help="rendered clips to measure on")
    parser.add_argument("--tokens", default="runs/tokens", help="tokens of --data")
    parser.add_argument("--valid-tokens", default="runs/valid_tokens", help="tokens of --valid")


def open_both(args: argparse.Namespace) -> tuple[Tokens, Tokens]:
    """What these options name: tokens to learn from, and to measure on.

    Errors: those of `Tokens`; ValueError where two codecs made them.
    """
    data, valid = Tokens(args.tokens, args.data), Tokens(args.valid_tokens, args.valid)
    if valid.plan["codec"] != data.plan["codec"]:
        raise ValueError(f"{args.tokens} and {args.valid_tokens} were made by two codecs; make both with one")
    return data, valid


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train tokens`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train tokens", description="Encodes the clips once."
    )
    parser.add_argument("--data", default="runs/band", help="rendered clips")
    parser.add_argument(
        "--codec", default="runs/codec", help="folder of the codec's run, or the name or folder of a model"
    )
    parser.add_argument("--out", default="runs/tokens", help="folder to write")
    parser.add_argument("--clips", type=int, default=None, help="only the first so many")
    args = parser.parse_args(argv)
    codec = codec_training.load(args.codec)
    data = Clips(args.data, codec.config.sample_rate)
    write(codec, data, args.out, min(args.clips or len(data), len(data)))


if __name__ == "__main__":
    main()
