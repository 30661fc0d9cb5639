"""An auxiliary head for musical labels on a middle layer of the language model.

Axes: B batch, T frames, D width, Q labels of a frame.

    piece -> labels int8 [Q, T]: key, tempo, position in the bar, melody, bass, … (mgkit.band.labels)
    residual stream [B, T, D] -> `AuxiliaryHead` -> cross-entropy of the labels

Codes are mostly noise to a small model, and their gradient hardly connects "d minor" in a caption with notes:
without this head, the model followed its captions for the first second only. The labels are exact, because
the composer knows every note. To predict them, the lower layers learn to propagate the caption, count beats
and recognize harmony, and the upper layers build on this. The head is used in training only; the released
model does not contain it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.band.labels import BINARY, CLASSES
from mgkit.lm import LMConfig

# The position in the bar is the hardest label and the basis of rhythm. All other weights are 1.
LOSS_WEIGHTS = {"beat": 2.0, "phase": 3.0}


class AuxiliaryHead(nn.Module):
    """Predictions of frame labels from the input of layer `layer`, by default two thirds of the way up."""

    def __init__(self, config: LMConfig, layer: int | None = None):
        super().__init__()
        self.layer = 2 * config.layers // 3 if layer is None else layer
        self.norm = nn.LayerNorm(config.dim)
        self.linear = nn.Linear(config.dim, sum(CLASSES.values()) + len(BINARY))

    def logits(self, residual: Tensor) -> list[Tensor]:
        """Logits [B, T, classes] of each of CLASSES, then [B, T, len(BINARY)] of all the binary labels."""
        sizes = [*CLASSES.values(), len(BINARY)]
        return list(self.linear(self.norm(residual)).float().split(sizes, dim=-1))

    def forward(self, residual: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropies [len(CLASSES) + 1] of `labels` [B, Q, T], in nats per frame.

        The last entry is the sum over BINARY. The `residual` [B, T, D] at step t, where the codes of frame t
        are predicted, predicts the labels of frame t.
        """
        labels = labels.to(residual.device)
        *categorical, binary = self.logits(residual)
        each = [
            LOSS_WEIGHTS.get(name, 1.0) * F.cross_entropy(logits.flatten(0, 1), labels[:, i].flatten().long())
            for i, (name, logits) in enumerate(zip(CLASSES, categorical, strict=True))
        ]
        targets = labels[:, len(CLASSES) :].transpose(1, 2).float()
        each.append(F.binary_cross_entropy_with_logits(binary, targets) * len(BINARY))
        return torch.stack(each)
