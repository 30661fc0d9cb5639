"""What the language model is told: text and melody as vectors of its own width (arXiv:2306.05284, section 2.3).

Letters: B batch, D width of the language model, L text length, P prefix positions, F chroma frames.

    small, medium, large    text  -> cross   [B, L, D], attended to in every layer
    melody                  melody, text -> prefix [B, P, D], placed before the music, P = F + L

The null branch of guidance is told nothing: zeros for the text, as many as the text has tokens, and pitch class 0
in every frame for the melody. Texts of a batch differ in length; padding is masked and never counts as a position,
so that a sample does not depend on its batch-mates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.melody import one_hot
from mgkit.text import TextEncoder


@dataclass(frozen=True)
class Condition:
    """What a batch is told, either as `cross` or as `prefix`; the masks are False at padding."""

    cross: Tensor | None = None  # [B, L, D], padded on the right
    cross_mask: Tensor | None = None  # [B, L]
    prefix: Tensor | None = None  # [B, P, D], padded on the left
    prefix_mask: Tensor | None = None  # [B, P]

    @property
    def batch(self) -> int:
        """B."""
        told = self.prefix if self.cross is None else self.cross
        assert told is not None
        return told.shape[0]

    @property
    def prefix_length(self) -> int:
        """P, the positions that it takes before the music."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """One batch of all the rows, in order."""
        cross, cross_mask = _stack([row for c in conditions for row in _rows(c.cross, c.cross_mask)])
        prefix, prefix_mask = _stack(
            [row for c in conditions for row in _rows(c.prefix, c.prefix_mask)], left=True
        )
        return Condition(cross, cross_mask, prefix, prefix_mask)


class Conditioner(nn.Module):
    """Text encoder and projections; `melody_frames` is F where the model takes a melody, else None."""

    def __init__(self, text: TextEncoder, dim: int, melody_frames: int | None = None):
        super().__init__()
        self.text = text
        self.text_proj = nn.Linear(text.dim, dim)
        self.melody_frames = melody_frames
        if melody_frames is not None:
            self.melody_proj = nn.Linear(12, dim)

    def describe(self, texts: list[str]) -> list[Tensor]:
        """Projected vectors [L, D] of each text; all zero for an empty one."""
        vectors, mask = self.text(texts)
        projected = self.text_proj(vectors) * mask[..., None]
        lengths = [max(1, int(n)) for n in mask.sum(dim=1)]
        return [row[:length] for row, length in zip(projected, lengths, strict=True)]

    def forward(self, texts: list[Tensor], melody: Tensor | None = None) -> Condition:
        """Condition of `texts` (as `describe` gives them) and of the `melody`'s pitch classes [B, F].

        Without a melody, a melody model is given the null one.
        """
        if self.melody_frames is None:
            cross, mask = _stack(texts)
            return Condition(cross=cross, cross_mask=mask)
        if melody is None:
            melody = torch.zeros(len(texts), self.melody_frames, dtype=torch.long)
        heard = self.melody_proj(one_hot(melody.to(self.melody_proj.weight.device)))
        rows = [torch.cat([tune, text]) for tune, text in zip(heard, texts, strict=True)]
        prefix, mask = _stack(rows, left=True)
        return Condition(prefix=prefix, prefix_mask=mask)

    def null(self, texts: list[Tensor]) -> Condition:
        """The condition that tells nothing, for rows as long as `texts`."""
        return self([torch.zeros_like(text) for text in texts])


def _stack(rows: list[Tensor], left: bool = False) -> tuple[Tensor | None, Tensor | None]:
    """Rows [L_i, D] padded with zeros to [B, L, D], and the mask [B, L]."""
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
