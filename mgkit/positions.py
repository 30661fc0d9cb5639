"""Positions of steps: their vectors, and which of them attend to which.

Axes: B batch, S steps, D width.
"""

import math

import torch
from torch import Tensor


def sinusoid(position: Tensor, dim: int) -> Tensor:
    """Position vectors [..., dim]: cosines, then sines, of position / 10000^(i / (dim / 2 - 1)).

    >>> sinusoid(torch.tensor([0]), 4)
    tensor([[1., 1., 0., 0.]])
    """
    half = dim // 2
    index = torch.arange(half, device=position.device, dtype=torch.float32)
    angle = position[..., None].float() * torch.exp(index * -(math.log(10000) / (half - 1)))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def positions(start: int, length: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Positions [S] or [B, S] of S steps from `start`, without the `padding` [B] before them."""
    position = torch.arange(start, start + length, device=device)
    return position if padding is None else (position - padding[:, None]).clamp(min=0)


def causal_mask(
    start: int, length: int, padding: Tensor | None, device: torch.device
) -> tuple[Tensor | None, bool]:
    """True where a query may attend, [1 or B, 1, S, start + S], and whether to use a kernel's own.

    Without padding or cache the kernel's causal mask is enough; a single query needs none.
    """
    if padding is None and (start == 0 or length == 1):
        return None, length > 1
    query = torch.arange(start, start + length, device=device)[:, None]
    key = torch.arange(start + length, device=device)
    allowed = (key <= query)[None, None]
    if padding is None:
        return allowed, False
    # A padded position attends to itself: a row without any key would be NaN and spread.
    return allowed & ((key >= padding[:, None, None, None]) | (key == query)), False
