"""Training data of the language model: every clip as codec tokens, with the chroma of its melody.

codes.npy    int16 [clips, K, T]
melody.npy   int8 [clips, F], the loudest pitch class in each of F chroma frames
tokens.json  metadata of codec and clips; written last
"""

import argparse
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mgkit import audio, melody, ranges
from mgkit.band.captions import captions
from mgkit.band.dataset import ClipRow
from mgkit.band.piece import Piece
from mgkit.codec import Codec
from mgkit.devices import best_device
from mgkit.train import codec as codec_training
from mgkit.train import storage
from mgkit.train.channels_last import ChannelsLast
from mgkit.train.clips import Clips, to_float

# Code frames and chroma frames of equal duration: 32 * 640 = 5 * 4096 samples. Crops start at multiples of
# it.
CODE_STRIDE, CHROMA_STRIDE = 32, 5
# Clips encoded together on a GPU, where the LSTM's steps take as long for many, and batches in preparation
GPU_CLIPS, GPU_BATCHES = 64, 4


class Metadata(TypedDict):
    """Content of tokens.json."""

    clips: int
    samples: int  # per clip
    codebooks: int
    frames: int  # of codes, per clip
    codebook_size: int
    rate: int
    codec: str  # digest of its weights


def chroma_frames(samples: int) -> int:
    """Number of chroma frames of a clip: 79 for ten seconds at 32 kHz."""
    return 1 + samples // melody.HOP


def digest(module: nn.Module) -> str:
    """Hash of a module's weights."""
    parts = (p.detach().cpu().numpy().tobytes() for p in module.parameters())
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def write(codec: Codec, data: Clips, out: str | Path, clips: int) -> None:
    """Encodes the first `clips` clips of `data` into `out`, unless they are already there.

    Raises: ValueError if `out` holds the tokens of another codec, or if the codec's frame length is not 640
    samples.
    """
    out, config = Path(out), codec.config
    if CODE_STRIDE * config.hop != CHROMA_STRIDE * melody.HOP:
        raise ValueError(
            f"a frame of this codec is {config.hop} samples, but the language model trains on frames of "
            f"{CHROMA_STRIDE * melody.HOP // CODE_STRIDE}: use a codec with that frame length"
        )
    frames = -(-data.samples // config.hop)
    metadata: Metadata = {
        "clips": clips,
        "samples": data.samples,
        "codebooks": config.codebooks,
        "frames": frames,
        "codebook_size": config.codebook_size,
        "rate": config.sample_rate,
        "codec": digest(codec),
    }
    if (out / "tokens.json").is_file():
        existing = storage.read_json(out / "tokens.json")
        if existing == metadata:
            return
        if existing.get("codec") != metadata["codec"]:
            raise ValueError(f"{out} holds the tokens of another codec: give another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    codes = np.zeros((clips, config.codebooks, frames), np.int16)
    pitch_classes = np.zeros((clips, chroma_frames(data.samples)), np.int8)

    device = best_device()
    codec = codec.to(device)
    # On a CPU one clip and one thread per core: a clip's working set fits a core's cache, and cores sharing
    # an operation wait for each other.
    size, batches = (1, os.cpu_count()) if device.type == "cpu" else (GPU_CLIPS, GPU_BATCHES)
    encoder = ChannelsLast(codec).encode

    @torch.no_grad()
    def encode(start: int) -> int:
        part = slice(start, min(start + size, clips))
        mixes, tunes = (to_float(waves[part], device) for waves in (data.mix, data.melody))
        latents = encoder(mixes[:, None])
        codes[part] = codec.quantizer.encode(latents, config.codebooks).short().cpu().numpy()
        for clip, tune in zip(range(part.start, part.stop), tunes[:, None], strict=True):
            pitch_classes[clip] = melody.classes(tune, config.sample_rate, pitch_classes.shape[1]).numpy()
        return part.stop - part.start

    with (
        ThreadPoolExecutor(batches, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        tqdm(total=clips, desc="tokens", unit="clip") as bar,
    ):
        for count in pool.map(encode, range(0, clips, size)):
            bar.update(count)
    np.save(out / "codes.npy", codes)
    np.save(out / "melody.npy", pitch_classes)
    text = json.dumps(metadata, indent=1) + "\n"
    audio.replace_file(out / "tokens.json", lambda path: path.write_text(text, encoding="utf-8"))


class Tokens:
    """A folder of tokens: `codes` [clips, K, T], `melody` [clips, F], and `pieces` and `captions` per clip.

    Raises: FileNotFoundError if the folder is missing or unfinished; ValueError if `data` describes fewer
    clips.
    """

    def __init__(self, folder: str | Path, data: str | Path):
        folder = Path(folder)
        if not (folder / "tokens.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no tokens.json: make the tokens first (python -m mgkit train tokens)"
            )
        self.metadata = cast(Metadata, storage.read_json(folder / "tokens.json"))
        self.codes, self.melody = (storage.read_array(folder / name) for name in ("codes.npy", "melody.npy"))
        pieces = cast(list[ClipRow], storage.read_lines(Path(data) / "pieces.jsonl"))
        if len(pieces) < len(self.codes):
            raise ValueError(
                f"{folder} holds {len(self.codes)} clips, but {data} describes only {len(pieces)}: "
                "give the data that the tokens were made from"
            )
        self.pieces = pieces[: len(self.codes)]
        self.captions = [piece["captions"] for piece in self.pieces]
        self.seconds = self.metadata["samples"] / self.metadata["rate"]

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, rows: np.ndarray, frames: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Crops: codes [B, K, frames] from frame `start` * CODE_STRIDE, and pitch classes [B, F].

        The pitch classes start at the same moment and wrap around at the end of the clip.
        """
        first = start * CODE_STRIDE
        codes = torch.from_numpy(self.codes[rows, :, first : first + frames].astype(np.int64))
        pitch_classes = torch.from_numpy(self.melody[rows].astype(np.int64))
        return codes, pitch_classes.roll(-start * CHROMA_STRIDE, dims=1)


def new_caption(piece: ClipRow, rng: np.random.Generator, omit: tuple[str, ...] = ()) -> str:
    """A new random caption of a clip, without the slots in `omit`."""
    return captions(Piece.from_attributes(piece), int(rng.integers(2**31)), 1, omit=omit)[0]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name training and validation tokens."""
    parser.add_argument("--data", default="runs/band", help="rendered clips to train on")
    parser.add_argument("--valid", default="runs/valid", help="rendered clips to validate on")
    parser.add_argument("--tokens", default="runs/tokens", help="tokens of --data")
    parser.add_argument("--valid-tokens", default="runs/valid_tokens", help="tokens of --valid")


def open_splits(args: argparse.Namespace) -> tuple[Tokens, Tokens]:
    """Training and validation tokens from the options of `add_options`.

    Raises: as `Tokens`; ValueError if the two were made with different codecs.
    """
    data, valid = Tokens(args.tokens, args.data), Tokens(args.valid_tokens, args.valid)
    if valid.metadata["codec"] != data.metadata["codec"]:
        raise ValueError(
            f"{args.tokens} and {args.valid_tokens} were made with different codecs: make both with one"
        )
    return data, valid


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train tokens`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train tokens", description="Encode rendered clips as codec tokens."
    )
    parser.add_argument("--data", default="runs/band", help="rendered clips")
    parser.add_argument(
        "--codec", default="runs/codec", help="folder of a codec training run, or name or folder of a model"
    )
    parser.add_argument("--out", default="runs/tokens", help="folder to write")
    parser.add_argument("--clips", type=ranges.count, default=None, help="number of clips (default: all)")
    args = parser.parse_args(argv)
    codec = codec_training.load(args.codec)
    data = Clips(args.data, codec.config.sample_rate)
    write(codec, data, args.out, min(args.clips or len(data), len(data)))


if __name__ == "__main__":
    main()
