"""Text and melody as vectors of the language model's width (arXiv:2306.05284, section 2.3).

Axes: B batch, D width of the language model, L text length, P prefix positions, F chroma frames.

    small, medium, large    text          -> cross  [B, L, D], attended to in every layer
    melody                  melody, text  -> prefix [B, P, D], placed before the music, P = F + L

The null condition of classifier-free guidance is zeros in place of the text's vectors, and pitch class 0 in
every frame of the melody. Texts of a batch differ in length; padding is masked and does not count as a
position, so that a sample does not depend on its neighbours in the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.lm import Condition
from mgkit.melody import one_hot
from mgkit.text import TextEncoder


class Conditioner(nn.Module):
    """Text encoder and projections; `melody_frames` is F in a melody model, else None."""

    def __init__(self, text: TextEncoder, dim: int, melody_frames: int | None = None):
        super().__init__()
        self.text = text
        self.text_proj = nn.Linear(text.dim, dim)
        self.melody_frames = melody_frames
        if melody_frames is not None:
            self.melody_proj = nn.Linear(12, dim)

    def encode(self, texts: list[str]) -> list[Tensor]:
        """Projected vectors [L, D] of each text; zeros [1, D] for an empty one."""
        vectors, mask = self.text(texts)
        projected = self.text_proj(vectors) * mask[..., None]
        lengths = [max(1, int(n)) for n in mask.sum(dim=1)]
        return [row[:length] for row, length in zip(projected, lengths, strict=True)]

    def forward(self, texts: list[Tensor], melody: Tensor | None = None) -> Condition:
        """The condition of encoded `texts` [L, D] and the melody: pitch classes [B, F] or chroma [B, F, 12].

        A melody model without a melody gets the null melody.
        """
        if self.melody_frames is None:
            cross, mask = pad_rows(texts)
            return Condition(cross=cross, cross_mask=mask)
        if melody is None:
            melody = torch.zeros(len(texts), self.melody_frames, dtype=torch.long)
        chroma = one_hot(melody) if melody.dim() == 2 else melody.float()
        chroma = self.melody_proj(chroma.to(self.melody_proj.weight.device))
        prefix, mask = pad_rows(
            [torch.cat([row, text]) for row, text in zip(chroma, texts, strict=True)], left=True
        )
        return Condition(prefix=prefix, prefix_mask=mask)

    def null(self, texts: list[Tensor]) -> Condition:
        """The null condition, with rows as long as those of `texts`."""
        return self([torch.zeros_like(text) for text in texts])


def cat(conditions: Sequence[Condition]) -> Condition:
    """One batch of the rows of all `conditions`, in order."""
    cross = [row for c in conditions for row in _rows(c.cross, c.cross_mask)]
    prefix = [row for c in conditions for row in _rows(c.prefix, c.prefix_mask)]
    return Condition(*pad_rows(cross), *pad_rows(prefix, left=True))


def pad_rows(rows: Sequence[Tensor], left: bool = False) -> tuple[Tensor | None, Tensor | None]:
    """Rows [L_i, D] zero-padded to [B, L, D], and the mask [B, L], False at padding; None without rows."""
    if not rows:
        return None, None
    longest = max(len(row) for row in rows)
    gaps = [longest - len(row) for row in rows]
    padded = [
        F.pad(row, (0, 0, gap, 0) if left else (0, 0, 0, gap)) for row, gap in zip(rows, gaps, strict=True)
    ]
    position = torch.arange(longest, device=rows[0].device)
    mask = [position >= gap if left else position < longest - gap for gap in gaps]
    return torch.stack(padded), torch.stack(mask)


def _rows(padded: Tensor | None, mask: Tensor | None) -> list[Tensor]:
    """The rows [L_i, D] without their padding."""
    if padded is None or mask is None:
        return []
    return [row[keep] for row, keep in zip(padded, mask, strict=True)]
