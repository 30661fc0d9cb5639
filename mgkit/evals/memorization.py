"""`python -m mgkit memorization`: a page to look at, and verbatim overlap with the training clips.

Axes: n generated clips, M training clips, K codebooks, T frames of 20 ms, V codebook size.

    generated [n, K, T], training [M, K, T] -> longest common run of frames
                                            -> nearest training clip by token statistics

The page has for each prompt the render of its piece, the render after the codec, the generated clip and the
nearest training clip, as spectrograms on one scale and with players, and the faults of each set
(`evals/faults.py`).

Clips of one style share short runs by chance. The reference is therefore the overlap of held-out renders,
which copy no training clip. MusicLM's memorization analysis (arXiv:2301.11325) also counts exact matches.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mgkit import ranges
from mgkit.codec import Codec
from mgkit.evals import shards
from mgkit.evals.faults import faults, table
from mgkit.evals.shards import SHARD_SIZE, Shard
from mgkit.lab import figures
from mgkit.lab.pages import Table
from mgkit.musicgen import MusicGen
from mgkit.train.clips import Clips, to_float
from mgkit.train.tokens import Tokens

Items = list[str | figures.Player | figures.Picture | Table]


class Match(NamedTuple):
    """The longest run of frames shared by a generated clip and a training clip."""

    length: int  # frames
    start: int  # first frame in the generated clip
    clip: int  # index of the training clip
    clip_start: int  # first frame in the training clip


def longest_matches(generated: np.ndarray, training: np.ndarray) -> list[Match]:
    """For each row of `generated` [n, T], the longest run that also occurs in `training` [M, T'].

    Lengths are tried in rising order, all runs of one length at once by their hashes; a row is finished at
    the first length of which it shares no run.

    >>> longest_matches(np.array([[9, 1, 2, 3, 9]]), np.array([[0, 0, 0, 0, 0], [0, 1, 2, 3, 0]]))
    [Match(length=3, start=1, clip=1, clip_start=1)]
    """
    matches = [Match(0, 0, 0, 0)] * len(generated)
    hashes, training_hashes = np.zeros_like(generated, np.uint64), np.zeros_like(training, np.uint64)
    for length in range(1, min(generated.shape[1], training.shape[1]) + 1):
        hashes = _extend(hashes, generated, length)
        training_hashes = _extend(training_hashes, training, length)
        candidates = [i for i, match in enumerate(matches) if match.length == length - 1]
        sought = np.unique(hashes[candidates])
        positions = np.minimum(np.searchsorted(sought, training_hashes), len(sought) - 1)
        present = np.zeros(len(sought), bool)
        present[positions[sought[positions] == training_hashes]] = True
        for i in candidates:
            [starts] = np.nonzero(present[np.searchsorted(sought, hashes[i])])
            if len(starts):
                first = int((training_hashes == hashes[i, starts[0]]).argmax())
                matches[i] = Match(length, int(starts[0]), *divmod(first, training_hashes.shape[1]))
        if all(match.length < length for match in matches):
            break
    return matches


def _extend(hashes: np.ndarray, frames: np.ndarray, length: int) -> np.ndarray:
    """Hashes of all runs of `length` frames, from those of the runs one frame shorter (splitmix64)."""
    count = frames.shape[1] - length + 1
    mixed = hashes[:, :count] + frames[:, length - 1 :].astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def nearest_clips(generated: np.ndarray, training: np.ndarray, size: int) -> list[int]:
    """Index of the training clip [M, K, T] with the most similar tokens, for each of `generated` [n, K, T].

    Similarity is the cosine of token counts in the first two codebooks, with TF-IDF weights.
    """
    counts, training_counts = _token_counts(generated, size), _token_counts(training, size)
    idf = np.log(len(training) / np.maximum(1, (training_counts > 0).sum(axis=0)))
    counts, training_counts = (
        weighted / (np.linalg.norm(weighted, axis=1, keepdims=True) + 1e-9)
        for weighted in (counts * idf, training_counts * idf)
    )
    return (counts @ training_counts.T).argmax(axis=1).tolist()


def _token_counts(codes: np.ndarray, size: int) -> np.ndarray:
    """Square roots of the counts of each token in the first two codebooks [n, 2 * V]."""
    counts = np.zeros((len(codes), 2 * size), np.float32)
    for clip, (first, second) in enumerate(codes[:, :2]):
        counts[clip] = np.bincount(np.concatenate([first, second + size]).astype(int), minlength=2 * size)
    return np.sqrt(counts)


# -- page --------------------------------------------------------------------------------------------------


def compare(name: str, data: Path, tokens: Path, cache: Path, count: int = 20) -> Items:
    """Items of a page about the first `count` held-out prompts: a summary, a table of faults, then each clip.

    Raises: FileNotFoundError or ValueError for a folder of clips or tokens that is missing, incomplete or of
    another rate, and ValueError for tokens of another codec than the model's.
    """
    model = shards.load_model(name)
    rate, size = model.sample_rate, model.codec.config.codebook_size
    clips, training = Clips(data, rate), Tokens(tokens, data)
    if (_encode(model.codec, to_float(clips.mix[0])[None].numpy()) == training.codes[:1]).mean() < 0.9:
        raise ValueError(
            f"{tokens} holds tokens of another codec than {name}'s; encode the clips again with "
            f"`python -m mgkit train tokens --codec {name}`"
        )
    cache.mkdir(parents=True, exist_ok=True)
    seconds = clips.samples / rate
    some = [
        Shard(cache, name, "guidance 3", start, SHARD_SIZE, seconds) for start in range(0, count, SHARD_SIZE)
    ]
    generated = np.concatenate([shard.tokens() for shard in tqdm(some, desc="generate", unit="shard")])[
        :count
    ]
    renders = np.stack([mix for shard in some for mix, _ in shard.renders()][:count])
    both = np.concatenate([generated, _encode(model.codec, renders)])
    first = longest_matches(both[:, 0], training.codes[:, 0])
    full = longest_matches(_frame_ids(both, size), _frame_ids(training.codes, size))
    items: Items = [
        f"{count} held-out prompts, each beside the most similar of {len(training)} training clips. "
        "A match is a run of frames of 20 ms with the same tokens in both.",
        _summary("first codebook", first, count),
        _summary("all codebooks", full, count),
    ]
    prompts = [prompt for shard in some for prompt in shard.prompts]
    waves = {
        "render": renders,
        "render, encoded and decoded": _decode(model, both[count:]),
        "generated": _decode(model, both[:count]),
    }
    found = {name: [faults(wave, rate) for wave in part] for name, part in waves.items()}
    items.append(table(found))
    for i, clip in enumerate(nearest_clips(generated, training.codes, size)):
        nearest = to_float(clips.mix[clip])[None]
        items.append(
            f"{i + 1}. “{prompts[i]}”: longest match {_describe(first[i])}; "
            f"in all codebooks {_describe(full[i])}. "
            f"Nearest training clip: {clip}, “{training.captions[clip][0]}”."
        )
        rows = [(name, torch.from_numpy(part[i])[None]) for name, part in waves.items()]
        rows.append((f"nearest training clip, {clip}", nearest))
        items += [figures.mel(rows, rate), figures.players(rows, rate)]
    return items


@torch.no_grad()
def _encode(codec: Codec, mixes: np.ndarray) -> np.ndarray:
    """Codes [n, K, T] of waves [n, N]."""
    return codec.encode(torch.from_numpy(mixes)[:, None]).numpy()


def _decode(model: MusicGen, codes: np.ndarray) -> np.ndarray:
    """Waves [n, N] of codes [n, K, T]."""
    one_by_one = torch.from_numpy(codes.astype(np.int64)).split(1)
    return torch.cat([model.generate_audio(part)[0] for part in one_by_one]).numpy()


def _frame_ids(codes: np.ndarray, size: int) -> np.ndarray:
    """One integer [n, T] for the K codes of each frame of [n, K, T]."""
    return sum(codes[:, k].astype(np.int64) * size**k for k in range(codes.shape[1]))


def _summary(title: str, matches: list[Match], count: int) -> str:
    """Statistics of the first `count` matches, of generated clips, and of the others, of renders."""
    generated, held_out = (
        f"median {np.median(lengths):g}, maximum {max(lengths)}"
        for lengths in ([m.length for m in matches[:count]], [m.length for m in matches[count:]])
    )
    return f"Longest match in frames, {title}: generated {generated}; held-out renders {held_out}."


def _describe(match: Match) -> str:
    return f"{match.length / 50:.2f} s, in training clip {match.clip}"


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit memorization`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit memorization",
        description="A page of generated clips beside renders and the nearest training clips.",
    )
    parser.add_argument("model", nargs="?", default="nano", help="name or folder of the model")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/band"), help="rendered clips the model was trained on"
    )
    parser.add_argument("--tokens", type=Path, default=Path("runs/tokens"), help="tokens of --data")
    parser.add_argument("--count", type=ranges.count, default=20, help="number of held-out prompts")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/measure"),
        help="folder for memorization.html; clips cached there by `measure` are reused",
    )
    args = parser.parse_args(argv)
    items = compare(args.model, args.data, args.tokens, args.out / "shards", args.count)
    print(*items[1:3], sep="\n")
    title = "Renders, generated clips and the nearest training clips"
    print(figures.page(items, args.out / "memorization.html", title))


if __name__ == "__main__":
    main()
