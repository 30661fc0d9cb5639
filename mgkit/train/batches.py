"""Batches of language-model training: crops of clips, dropped conditions, corrupted captions and histories.

Axes: B batch, K codebooks, T frames, F chroma frames, Q labels of a frame.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgkit.train.tokenizer import frequent_words
from mgkit.train.tokens import CODE_STRIDE, Tokens


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

# Matches captions with a tempo or a key.
TEMPO_OR_KEY = re.compile(r"\d|major|minor", re.IGNORECASE)
# Mean lengths, in frames, of the segments of a corrupted history: the clip's own, and another clip's
MEAN_OWN, MEAN_FOREIGN = 60, 30
# Frames before the first segment of another clip, if the caption names neither key nor tempo
MIN_OWN = 100


@dataclass(frozen=True)
class Augmentation:
    """Probabilities of dropping or corrupting parts of an example."""

    # the caption and the melody
    drop_all: float = 0.2
    # the melody alone
    drop_melody: float = 0.65
    # the caption alone, if the melody is kept
    drop_caption: float = 0.15
    # a quarter of the caption's words
    drop_words: float = 0.3
    # one to three random words inserted into the caption
    insert_words: float = 0.15
    # segments of another clip in the history
    corrupt_history: float = 0.5


def corrupt_caption(text: str, options: Augmentation, rng: np.random.Generator) -> str:
    """`text` with random words dropped or inserted, at the probabilities in `options`."""
    words = text.split(" ")
    if rng.random() < options.drop_words:
        words = [word for word in words if rng.random() > 0.25] or words
    if rng.random() < options.insert_words:
        for _ in range(rng.integers(1, 4)):
            words.insert(rng.integers(len(words) + 1), str(rng.choice(frequent_words())))
    return " ".join(words)


def corrupt_history(codes: Tensor, informed: np.ndarray, share: float, rng: np.random.Generator) -> Tensor:
    """`codes` [B, K, T] with segments of the next clip, in a fraction `share` of the rows.

    In a training clip, the history predicts the next codes better than the caption does. Trained on true
    histories alone, the model stays in the key and tempo of its last few frames, right or wrong; corrupted
    histories train it to return to its condition. `informed` [B] marks captions with a key or tempo. Other
    rows start with MIN_OWN frames or more of their own, since nothing else determines their continuation.

        informed, half of the rows    | foreign | own      | foreign | own ...
        informed, the other half      | own      | foreign | own ...
        not informed                  | own, at least MIN_OWN | foreign | own ...
    """
    count, _, frames = codes.shape
    swapped = np.zeros((count, frames), bool)
    for row in np.flatnonzero(rng.random(count) < share):
        foreign = bool(informed[row] and rng.random() < 0.5)
        start = 0 if informed[row] else MIN_OWN
        while start < frames:
            end = start + 1 + int(rng.exponential(MEAN_FOREIGN if foreign else MEAN_OWN))
            swapped[row, start:end] = foreign
            start, foreign = end, not foreign
    return torch.where(torch.from_numpy(swapped)[:, None], codes.roll(1, 0), codes)


@dataclass(frozen=True)
class Batch:
    """The examples of one training step."""

    # [B, K, T], the targets
    codes: Tensor
    # [B, K, T], the inputs; equal to `codes` unless corrupted
    history: Tensor
    captions: list[str]
    # [B, F] pitch classes; 0 if dropped
    melody: Tensor
    # [B], False: condition on the null text, of the caption's length
    keep_caption: Tensor
    # [B, Q, T], for the auxiliary head
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, part: slice) -> "Batch":
        labels = None if self.labels is None else self.labels[part]
        return Batch(
            self.codes[part],
            self.history[part],
            self.captions[part],
            self.melody[part],
            self.keep_caption[part],
            labels,
        )


class Batches:
    """The batches of a training run; each one depends on the seed and its step alone."""

    def __init__(
        self,
        data: Tokens,
        size: int,
        augmentation: Augmentation,
        seed: int,
        labels: np.ndarray | None = None,
    ):
        self.data, self.size, self.augmentation, self.seed = data, size, augmentation, seed
        # int8 [clips, Q, T]
        self.labels = labels

    def __getitem__(self, step: int) -> Batch:
        """The batch of this step."""
        options, rng = self.augmentation, np.random.default_rng((self.seed, step))
        crop, total = CROPS[step % len(CROPS)], self.data.codes.shape[-1]
        rows, frames = self.rows(step), round(crop.length * total)
        # in units of CODE_STRIDE frames, where codes and chroma frames coincide
        start = int(rng.integers(1 + (total - frames) // CODE_STRIDE)) if crop.random_start else 0
        codes, melody = self.data.batch(rows, frames, start)
        captions = [corrupt_caption(self.data.caption(i, rng), options, rng) for i in rows]

        keep_caption = torch.from_numpy(rng.random(len(rows)) >= options.drop_all)
        keep_melody = torch.from_numpy(rng.random(len(rows)) >= options.drop_melody) & keep_caption
        keep_caption &= ~(keep_melody & torch.from_numpy(rng.random(len(rows)) < options.drop_caption))
        # A null text is as long as the caption, as in guidance; in half of the cases it is that of an empty
        # caption.
        captions = [
            text if keep or rng.random() < 0.5 else ""
            for text, keep in zip(captions, keep_caption, strict=True)
        ]
        informed = keep_caption.numpy() & [bool(TEMPO_OR_KEY.search(text)) for text in captions]
        history = corrupt_history(codes, informed, options.corrupt_history, rng)

        labels = None
        if self.labels is not None:
            first = start * CODE_STRIDE
            labels = torch.from_numpy(self.labels[rows, :, first : first + frames])
        return Batch(codes, history, captions, melody * keep_melody[:, None], keep_caption, labels)

    def rows(self, step: int) -> np.ndarray:
        """Numbers of the clips of a batch; each pass over all clips has an order of its own."""
        factors = [crop.factor for crop in CROPS]
        rounds, turn = divmod(step, len(CROPS))
        first = self.size * (rounds * sum(factors) + sum(factors[:turn]))
        places = range(first, first + self.size * factors[turn])
        clips = len(self.data)
        orders = {
            epoch: np.random.default_rng((self.seed, 77, epoch)).permutation(clips)
            for epoch in {place // clips for place in places}
        }
        return np.array([orders[place // clips][place % clips] for place in places])
