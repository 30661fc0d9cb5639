"""The delay pattern of K codebooks and its inverse (MusicGen, arXiv:2306.05284, section 2.2).

Axes: B batch, K codebooks, T frames, S delayed steps.

Each codebook is shifted right by its delay. A transformer step then predicts one token per codebook, and the
token of codebook k depends on those of codebooks 0 to k - 1 of its frame, which are in earlier columns:

    codes   a0 a1 a2      steps   _  a0 a1 a2 _
            b0 b1 b2  ->          _  _  b0 b1 b2      _  the special token
                                  ↑ generation starts here
"""

import torch
from torch import Tensor


def delays(codebooks: int, channels: int = 1) -> tuple[int, ...]:
    """Delay of each codebook in steps: 0, 1, 2, 3 in mono; in stereo, left and right share a delay.

    >>> delays(4)
    (0, 1, 2, 3)
    >>> delays(8, channels=2)
    (0, 0, 1, 1, 2, 2, 3, 3)
    """
    return tuple(k // channels for k in range(codebooks))


def delay(codes: Tensor, shifts: tuple[int, ...], special: int) -> Tensor:
    """Delayed steps [B, K, S] of `codes` [B, K, T], S = T + 1 + max(shifts), with `special` in the gaps.

    >>> import torch
    >>> delay(torch.tensor([[[1, 2, 3], [4, 5, 6]]]), (0, 1), special=0)
    tensor([[[0, 1, 2, 3, 0],
             [0, 0, 4, 5, 6]]])
    """
    batch, codebooks, frames = codes.shape
    assert codebooks == len(shifts), f"{codebooks} codebooks, {len(shifts)} shifts"
    steps = codes.new_full((batch, codebooks, frames + 1 + max(shifts)), special)
    for k, shift in enumerate(shifts):
        steps[:, k, 1 + shift : 1 + shift + frames] = codes[:, k]
    return steps


def undelay(steps: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """Codes [B, K, T] of delayed `steps` [B, K, S]: the T = max(0, S - 1 - max(shifts)) complete frames.

    >>> import torch
    >>> undelay(torch.tensor([[[0, 1, 2, 3, 0], [0, 0, 4, 5, 6]]]), (0, 1))
    tensor([[[1, 2, 3],
             [4, 5, 6]]])
    """
    _, codebooks, length = steps.shape
    assert codebooks == len(shifts), f"{codebooks} codebooks, {len(shifts)} shifts"
    frames = max(0, length - 1 - max(shifts))
    return torch.stack([steps[:, k, 1 + d : 1 + d + frames] for k, d in enumerate(shifts)], dim=1)
