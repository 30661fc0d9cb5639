"""Batches of language-model training: crops of clips, dropped conditions, corrupted captions and histories.

Axes: B batch, K codebooks, T frames, F chroma frames, Q labels of a frame, L text length in tokens.

    seed, step -> `Planner` -> `Plan`: clips, captions, what is dropped and corrupted   (in worker processes)
    plan, codes of all clips -> `Batches` -> `Batch`                                    (on the device)

Captions and their tokens take Python about 0.1 ms a clip, longer than a GPU takes for everything else. For a
GPU, worker processes therefore prepare the plans of the next steps; on a CPU they would only compete with the
training for its cores.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgkit.band.captions import KEY_AND_TEMPO
from mgkit.band.dataset import ClipRow
from mgkit.melody import one_hot
from mgkit.text import tokenize
from mgkit.train.tokenizer import frequent_words
from mgkit.train.tokens import CHROMA_STRIDE, CODE_STRIDE, Tokens, new_caption

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Crop(NamedTuple):
    """Shape of the crops of one batch."""

    # fraction of the clip's frames
    length: float
    # crops in the batch, in multiples of the batch size
    factor: int
    # False: from the beginning of the clip; True: from a random frame
    random_start: bool


# Used in turn. One second of music reveals most of its caption, so long crops barely train the text encoder;
# short crops from the beginning of a clip do.
CROPS = (Crop(1.0, 1, False), Crop(0.2, 4, False), Crop(1.0, 1, False), Crop(0.4, 2, True))

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
# Matches captions with a tempo or a key.
TEMPO_OR_KEY = re.compile(r"\d|major|minor", re.IGNORECASE)
# Mean lengths, in frames, of the segments of a corrupted history: the clip's own, and another clip's
MEAN_OWN, MEAN_FOREIGN = 60, 30
# Frames before the first segment of another clip, if the caption names neither key nor tempo
MIN_OWN = 100
# Fewest frames of a crop that can have a beginning to be continued: MIN_OWN or more, up to 60 % of the crop
CONTINUATION = 200

# Plans that each worker process prepares in advance, and the largest number of workers
PREFETCH, MAX_WORKERS = 4, 8


@dataclass(frozen=True)
class Augmentation:
    """Probabilities of dropping or corrupting parts of an example."""

    # the caption and the melody
    drop_all: float = 0.2
    # the melody alone
    drop_melody: float = 0.55
    # the caption alone, if the melody is kept
    drop_caption: float = 0.15
    # a quarter of the caption's words
    drop_words: float = 0.35
    # one to three random words, half of them invented, inserted into the caption
    insert_words: float = 0.35
    # segments of another clip in the history
    corrupt_history: float = 0.5
    # the chords in place of the melody, if the melody is kept
    chords: float = 0.35
    # the loss counts only what follows the clip's own beginning, in crops of CONTINUATION or more frames
    continuation: float = 0.25


def invented_word(rng: np.random.Generator) -> str:
    """A word of two to four syllables that no caption has.

    A prompt may have words that were in no training caption, and the tokenizer splits them into pieces in
    unusual orders. The other words of the prompt must keep their effect.
    """
    syllables = rng.integers((len(CONSONANTS), len(VOWELS)), size=(rng.integers(2, 5), 2))
    return "".join(CONSONANTS[first] + VOWELS[second] for first, second in syllables)


def corrupt_caption(text: str, options: Augmentation, rng: np.random.Generator) -> str:
    """`text` with random words dropped or inserted, at the probabilities in `options`."""
    words = text.split(" ")
    if rng.random() < options.drop_words:
        words = [word for word in words if rng.random() > 0.25] or words
    if rng.random() < options.insert_words:
        for _ in range(rng.integers(1, 4)):
            word = frequent_words()[rng.integers(len(frequent_words()))]
            words.insert(rng.integers(len(words) + 1), word if rng.random() < 0.5 else invented_word(rng))
    return " ".join(words)


def foreign_frames(
    frames: int, informed: np.ndarray, given: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Frames [B, T] of a history that come from another clip, in a fraction `share` of the rows.

    In a training clip, the history predicts the next codes better than the caption does. Trained on true
    histories alone, the model stays in the key and tempo of its last few frames, right or wrong; corrupted
    histories train it to return to its condition. `informed` [B] marks captions with a key or tempo. Other
    rows start with MIN_OWN frames or more of their own, since nothing else determines their continuation, and
    the first `given` [B] frames of a row always are.

        informed, half of the rows    | foreign | own      | foreign | own ...
        informed, the other half      | own      | foreign | own ...
        not informed                  | own, at least MIN_OWN | foreign | own ...
    """
    count = len(informed)
    swapped = np.zeros((count, frames), bool)
    for row in np.flatnonzero(rng.random(count) < share):
        foreign = bool(informed[row] and rng.random() < 0.5)
        start = max(int(given[row]), 0 if informed[row] else MIN_OWN)
        while start < frames:
            end = start + 1 + int(rng.exponential(MEAN_FOREIGN if foreign else MEAN_OWN))
            swapped[row, start:end] = foreign
            start, foreign = end, not foreign
    return swapped


class Plan(NamedTuple):
    """All decisions about one batch."""

    # [B], numbers of the clips
    rows: Tensor
    # beginning of the crop, in units of CODE_STRIDE frames, and its length in frames
    start: int
    frames: int
    captions: list[str]
    # [B, L], the captions' tokens and their mask
    ids: Tensor
    mask: Tensor
    # [B], False: dropped
    keep_caption: Tensor
    keep_melody: Tensor
    # [B], True: the chords in place of the melody
    chords: Tensor
    # [B], frames of a beginning to be continued
    given: Tensor
    # [B, T], frames of the history that come from the next clip of the batch
    foreign: Tensor


class Planner:
    """The plans of a training run; each one depends on the seed and its step alone.

    To continue an audio prompt in its key and tempo, the model must take both from the first seconds, in
    spite of its own later errors. A quarter of the longer crops, a fifth of all frames, train this: the
    caption names neither key nor tempo, the melody is dropped, the history begins with `given` frames of the
    clip itself and may have segments of another clip after them, and the loss counts only what follows. In
    most other crops the caption names the key or the tempo, and the beginning is not needed. Some of these
    crops start at a random frame, because an audio prompt need not start with a bar.
    """

    def __init__(
        self,
        pieces: Sequence[ClipRow],
        tokenizer: "PreTrainedTokenizerBase",
        total: int,
        size: int,
        augmentation: Augmentation,
        seed: int,
    ):
        self.pieces, self.tokenizer = pieces, tokenizer
        # frames of a clip
        self.total = total
        self.size, self.augmentation, self.seed = size, augmentation, seed

    def __getitem__(self, step: int) -> Plan:
        """The plan of this step."""
        options, rng = self.augmentation, np.random.default_rng((self.seed, step))
        crop = CROPS[step % len(CROPS)]
        rows, frames = self.rows(step), round(crop.length * self.total)
        # in units of CODE_STRIDE frames, where codes and chroma frames coincide
        start = int(rng.integers(1 + (self.total - frames) // CODE_STRIDE)) if crop.random_start else 0
        given = self.beginnings(frames, len(rows), rng)
        captions = [
            new_caption(self.pieces[row], rng, KEY_AND_TEMPO if first else ())
            for row, first in zip(rows, given, strict=True)
        ]
        captions = [corrupt_caption(text, options, rng) for text in captions]

        keep_caption = rng.random(len(rows)) >= options.drop_all
        keep_melody = (rng.random(len(rows)) >= options.drop_melody) & keep_caption & (given == 0)
        keep_caption &= ~(keep_melody & (rng.random(len(rows)) < options.drop_caption))
        # A null text is as long as the caption, as in guidance; in half of the cases it is that of an empty
        # caption.
        captions = [
            text if keep or rng.random() < 0.5 else ""
            for text, keep in zip(captions, keep_caption, strict=True)
        ]
        informed = keep_caption & [bool(TEMPO_OR_KEY.search(text)) for text in captions]
        foreign = foreign_frames(frames, informed, given, options.corrupt_history, rng)
        chords = keep_melody & (rng.random(len(rows)) < options.chords)
        ids, mask = tokenize(self.tokenizer, captions)
        arrays = (keep_caption, keep_melody, chords, given, foreign)
        return Plan(
            torch.from_numpy(rows), start, frames, captions, ids, mask, *map(torch.from_numpy, arrays)
        )

    def beginnings(self, frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Frames to be continued in each of `count` crops of `frames` frames [count]; 0 in most of them."""
        if frames < CONTINUATION:
            return np.zeros(count, np.int64)
        lengths = rng.integers(MIN_OWN, int(0.6 * frames) + 1, count)
        return lengths * (rng.random(count) < self.augmentation.continuation)

    def rows(self, step: int) -> np.ndarray:
        """Numbers of the clips of a batch; each pass over all clips has an order of its own."""
        factors = [crop.factor for crop in CROPS]
        rounds, turn = divmod(step, len(CROPS))
        first = self.size * (rounds * sum(factors) + sum(factors[:turn]))
        places = range(first, first + self.size * factors[turn])
        clips = len(self.pieces)
        orders = {epoch: self.order(epoch) for epoch in {place // clips for place in places}}
        return np.array([orders[place // clips][place % clips] for place in places])

    def order(self, epoch: int) -> np.ndarray:
        """The order of all clips in one pass over them."""
        return np.random.default_rng((self.seed, 77, epoch)).permutation(len(self.pieces))


@dataclass(frozen=True)
class Batch:
    """The examples of one training step."""

    # [B, K, T], the targets; the special token in frames that the loss does not count
    codes: Tensor
    # [B, K, T], the inputs; the true codes unless corrupted
    history: Tensor
    # [B, L], the captions' tokens and their mask, on the CPU
    ids: Tensor
    mask: Tensor
    # [B, F, 12], chroma of melody or chords; pitch class 0 if dropped
    melody: Tensor
    # [B] on the CPU, False: condition on the null text, of the caption's length
    keep_caption: Tensor
    # [B, Q, T], for the auxiliary head
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, part: slice) -> "Batch":
        labels = None if self.labels is None else self.labels[part]
        return Batch(
            self.codes[part],
            self.history[part],
            self.ids[part],
            self.mask[part],
            self.melody[part],
            self.keep_caption[part],
            labels,
        )


class Batches:
    """The batches of a training run, on a device; each one depends on the seed and its step alone.

    On a GPU, with `workers` processes (by default half the cores, at most MAX_WORKERS), the plans of the next
    steps are prepared in advance.
    """

    def __init__(
        self,
        data: Tokens,
        planner: Planner,
        device: torch.device,
        special: int,
        labels: tuple[np.ndarray, np.ndarray] | None = None,
        workers: int | None = None,
    ):
        self.planner, self.device, self.special = planner, device, special
        if workers is None:
            workers = min(MAX_WORKERS, (os.cpu_count() or 1) // 2) if device.type == "cuda" else 0
        self.workers = workers
        # All clips: codes [clips, K, T], melody [clips, F], labels int8 [clips, Q, T], chords [clips, F]
        self.codes, self.melody = (torch.from_numpy(x).to(device) for x in (data.codes, data.melody))
        self.labels: Tensor | None = None
        self.chords: Tensor | None = None
        if labels is not None:
            self.labels, self.chords = (torch.from_numpy(x).to(device) for x in labels)
        self.plans: Iterator[Plan] = iter(())
        # the step of the next of `plans`
        self.next: int | None = None

    def __getitem__(self, step: int) -> Batch:
        """The batch of this step."""
        plan = self.prefetched(step) if self.workers else self.planner[step]
        device, first = self.device, plan.start * CODE_STRIDE
        rows, crop = plan.rows.to(device), slice(first, first + plan.frames)
        codes = self.codes[..., crop][rows].long()
        history = torch.where(plan.foreign.to(device)[:, None], codes.roll(1, 0), codes)
        counted = torch.arange(plan.frames, device=device) >= plan.given.to(device)[:, None]
        codes = codes.where(counted[:, None], self.special)

        # the melody repeats at the end of the clip
        shift = -plan.start * CHROMA_STRIDE
        melody = self.melody[rows].long() * plan.keep_melody.to(device)[:, None]
        chroma = one_hot(melody).roll(shift, dims=1)
        if self.chords is not None:
            bits = self.chords[rows].roll(shift, dims=1)
            tones = bits[..., None] >> torch.arange(12, device=device) & 1
            chroma = torch.where(plan.chords.to(device)[:, None, None], tones.float(), chroma)
        return Batch(
            codes,
            history,
            plan.ids,
            plan.mask,
            chroma,
            plan.keep_caption,
            None if self.labels is None else self.labels[..., crop][rows],
        )

    def prefetched(self, step: int) -> Plan:
        """The plan of this step from the worker processes, which start again after a jump."""
        from torch.utils.data import DataLoader

        if step != self.next:
            loader = DataLoader(
                self.planner,  # type: ignore[arg-type]
                batch_size=None,
                sampler=range(step, sys.maxsize),
                num_workers=self.workers,
                prefetch_factor=PREFETCH,
                # of its own: torch's global one stays as it is
                generator=torch.Generator(),
            )
            self.plans = iter(loader)
        self.next = step + 1
        return next(self.plans)
