"""The delayed interleave of K codebooks, and its inverse (MusicGen, arXiv:2306.05284, section 2.2).

Letters: B batch, K codebooks, T frames, S delayed steps.

Codebook q is shifted right by its delay, so that one transformer step predicts one token of every codebook,
and the token of codebook q at a frame still sees those of codebooks 0..q-1 at the same frame:

    a0 a1 a2        _  a0 a1 a2 _
    b0 b1 b2   ->   _  _  b0 b1 b2          _ = the special token; column 0 is where generation starts
"""

from torch import Tensor


def delays(codebooks: int, channels: int = 1) -> tuple[int, ...]:
    """Delay in steps of each codebook: 0, 1, 2, 3 in mono; left and right share a delay in stereo.

    >>> delays(4)
    (0, 1, 2, 3)
    >>> delays(8, channels=2)
    (0, 0, 1, 1, 2, 2, 3, 3)
    """
    return tuple(k // channels for k in range(codebooks))


def delay(codes: Tensor, shifts: tuple[int, ...], special: int) -> Tensor:
    """Delayed steps [B, K, S] of `codes` [B, K, T], with S = T + 1 + max(shifts) and `special` in the gaps.

    >>> import torch
    >>> delay(torch.tensor([[[1, 2, 3], [4, 5, 6]]]), (0, 1), special=0)
    tensor([[[0, 1, 2, 3, 0],
             [0, 0, 4, 5, 6]]])
    """
    batch, codebooks, frames = codes.shape
    steps = codes.new_full((batch, codebooks, frames + 1 + max(shifts)), special)
    for k, shift in enumerate(shifts):
        steps[:, k, 1 + shift : 1 + shift + frames] = codes[:, k]
    return steps


def undelay(steps: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """Codes [B, K, T] of delayed `steps` [B, K, S]: the T = S - 1 - max(shifts) frames that are complete.

    >>> import torch
    >>> undelay(torch.tensor([[[0, 1, 2, 3, 0], [0, 0, 4, 5, 6]]]), (0, 1))
    tensor([[[1, 2, 3],
             [4, 5, 6]]])
    """
    frames = max(0, steps.shape[-1] - 1 - max(shifts))
    codes = steps.new_empty((*steps.shape[:2], frames))
    for k, shift in enumerate(shifts):
        codes[:, k] = steps[:, k, 1 + shift : 1 + shift + frames]
    return codes
