"""What the model makes beside the training music that is nearest to it, to see and to hear that nothing is copied whole.

Letters: n pieces, M training clips, K codebooks, T frames of 20 ms.

    made [n, K, T], training tokens [M, K, T] -> the longest stretch of frames that both have
                                              -> the training clip that uses the same codes as often: the nearest

Music of one kind shares some frames: how many is said by held-out renders, which are copies of nothing.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mgkit.codec import Codec
from mgkit.evals import protocol
from mgkit.evals.protocol import PART, Part
from mgkit.lab import figures
from mgkit.train.loop import Clips, waves
from mgkit.train.tokens import Tokens


class Stretch(NamedTuple):
    """Frames that a piece and a training clip both have."""

    length: int  # frames
    at: int  # first frame in the piece
    clip: int
    start: int  # first frame in the clip


def longest_stretches(made: np.ndarray, training: np.ndarray) -> list[Stretch]:
    """For each piece of `made` [n, T] the longest stretch that stands somewhere in `training` [M, T'].

    >>> longest_stretches(np.array([[9, 1, 2, 3, 9]]), np.array([[0, 0, 0, 0, 0], [0, 1, 2, 3, 0]]))
    [Stretch(length=3, at=1, clip=1, start=1)]
    """
    found = [Stretch(0, 0, 0, 0)] * len(made)
    ours, theirs = np.zeros_like(made, np.uint64), np.zeros_like(training, np.uint64)
    for length in range(1, min(made.shape[1], training.shape[1]) + 1):
        ours, theirs = _longer(ours, made, length), _longer(theirs, training, length)
        alive = [i for i, stretch in enumerate(found) if stretch.length == length - 1]
        wanted = np.unique(ours[alive])
        places = np.minimum(np.searchsorted(wanted, theirs), len(wanted) - 1)
        there = np.zeros(len(wanted), bool)
        there[places[wanted[places] == theirs]] = True
        for i in alive:
            same = np.flatnonzero(there[np.searchsorted(wanted, ours[i])])
            if len(same):
                clip, start = divmod(int((theirs == ours[i, same[0]]).argmax()), theirs.shape[1])
                found[i] = Stretch(length, int(same[0]), clip, start)
        if all(stretch.length < length for stretch in found):
            break
    return found


def _longer(numbers: np.ndarray, frames: np.ndarray, length: int) -> np.ndarray:
    """A number for every stretch of `length` frames, from those of the stretches one shorter: equal stretches have
    equal numbers, and others practically never (the mixing is that of splitmix64)."""
    count = frames.shape[1] - length + 1
    mixed = numbers[:, :count] + frames[:, length - 1 :].astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def nearest(made: np.ndarray, training: np.ndarray, size: int) -> list[int]:
    """For each piece of `made` [n, K, T] the clip of `training` [M, K, T] whose codes of the first two codebooks are
    most alike: cosine of how often each is used, where those that few clips use count more."""
    theirs, ours = _use(training, size), _use(made, size)
    rare = np.log(len(theirs) / np.maximum(1, (theirs > 0).sum(axis=0)))
    theirs, ours = (use * rare / (np.linalg.norm(use * rare, axis=1, keepdims=True) + 1e-9) for use in (theirs, ours))  # fmt: skip
    return (ours @ theirs.T).argmax(axis=1).tolist()


def _use(codes: np.ndarray, size: int) -> np.ndarray:
    """How often each code of the first two codebooks is used, as a square root [n, 2 * size]."""
    use = np.zeros((len(codes), 2 * size), np.float32)
    for clip, (first, second) in enumerate(codes[:, :2]):
        use[clip] = np.bincount(np.concatenate([first, second + size]).astype(int), minlength=2 * size)
    return np.sqrt(use)


def look(name: str, data: Path, tokens: Path, parts: Path, count: int = 20) -> list[str | figures.Player | figures.Picture]:  # fmt: skip
    """Items of a page about the first `count` held-out prompts.

    Errors: those of `Clips` and `Tokens`, and ValueError for tokens of another codec than the model's.
    """
    model = protocol.load(name)
    rate, size = model.sample_rate, model.codec.config.codebook_size
    clips, training = Clips(data, rate), Tokens(tokens, data)
    if (_encode(model.codec, waves(clips.mix[0])[None].numpy()) == training.codes[:1]).mean() < 0.9:
        raise ValueError(f"{tokens} holds the tokens of another codec than that of {name}: make them anew")
    parts.mkdir(parents=True, exist_ok=True)
    some = [Part(parts, name, "guided", at, PART, clips.samples / rate) for at in range(0, count, PART)]
    made = np.concatenate([part.tokens() for part in tqdm(some, desc="music", unit="part")])[:count]
    mixes = [mix for part in some for mix, _ in part.rendered()][:count]
    both = np.concatenate([made, _encode(model.codec, np.stack(mixes))])
    first = longest_stretches(both[:, 0], training.codes[:, 0])
    whole = longest_stretches(_frames(both, size), _frames(training.codes, size))
    items: list[str | figures.Player | figures.Picture] = [
        f"{count} held-out prompts, each beside the one of {len(training)} training clips whose codes are most alike. "
        "A stretch is frames of 20 ms that stand in the music and, in the same order, somewhere in training.",
        *(
            f"Longest stretch in frames, {what}: made, {_of(found[:count])}; held-out renders, which are copies of nothing, {_of(found[count:])}."
            for what, found in (("first codebook alone", first), ("all codebooks", whole))
        ),
    ]
    pieces = [piece for part in some for piece in part.pieces()]
    for i, clip in enumerate(nearest(made, training.codes, size)):
        wave = model.generate_audio(torch.from_numpy(made[i : i + 1].astype(np.int64)))[0]
        near = waves(clips.mix[clip])[None]
        items.append(
            f"{i + 1}. “{protocol.prompt(pieces[i])}”: longest stretch {_said(first[i])}; all codebooks {_said(whole[i])}. "
            f"Nearest: clip {clip}, “{training.captions[clip][0]}”."
        )
        pair = [("made", wave), (f"nearest training clip, {clip}", near)]
        items += [figures.mel(pair, rate), figures.players(pair, rate)]
    return items


@torch.no_grad()
def _encode(codec: Codec, mixes: np.ndarray) -> np.ndarray:
    """Codes [n, K, T] of waves [n, N]."""
    return codec.encode(torch.from_numpy(mixes)[:, None]).numpy()


def _frames(codes: np.ndarray, size: int) -> np.ndarray:
    """One number [n, T] for all the codes of a frame of codes [n, K, T]."""
    return sum(codes[:, k].astype(np.int64) * size**k for k in range(codes.shape[1]))


def _of(found: list[Stretch]) -> str:
    lengths = [stretch.length for stretch in found]
    return f"median {np.median(lengths):g}, largest {max(lengths)}"


def _said(stretch: Stretch) -> str:
    return f"{stretch.length / 50:.2f} s, also in clip {stretch.clip}"


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train look`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit train look", description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="nano", help="name or folder of the model")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/band"), help="rendered clips that it learned from"
    )
    parser.add_argument("--tokens", type=Path, default=Path("runs/tokens"), help="their tokens")
    parser.add_argument("--count", type=int, default=20, help="held-out prompts")
    parser.add_argument("--out", type=Path, default=Path("runs/measure"), help="folder for look.html; tokens that measuring made there are used")  # fmt: skip
    args = parser.parse_args(argv)
    items = look(args.model, args.data, args.tokens, args.out / "parts", args.count)
    print(*items[1:3], sep="\n")
    print(figures.page(items, args.out / "look.html", "Made, and nearest in training"))


if __name__ == "__main__":
    main()
