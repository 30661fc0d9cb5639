"""An auxiliary head that predicts musical labels from a middle layer of the language model.

Letters: B batch, T frames, D width, Q labels of a frame.

    piece -> labels int8 [Q, T]: key, tempo, position in the bar, melody, bass, chord, drums (mgkit.band.labels)
    residual stream [B, T, D] -> `AuxiliaryHead` -> cross-entropy of the labels

The codes are mostly noise to a small model, and a gradient through them hardly connects "d minor" in a caption with
the notes: without this head the model followed its caption for no longer than the first second. The labels are exact,
since the band knows every note it plays. To predict them, the lower layers learn to propagate the caption, to count
beats and to listen to the history, and the upper layers make use of it. The head is used in training only and is not
part of the released model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.band.labels import BINARY, CLASSES
from mgkit.lm import LMConfig

# Rhythm depends on the position in the bar, which is the hardest to predict. All other labels have weight 1.
LOSS_WEIGHTS = {"beat": 2.0, "phase": 3.0}


class AuxiliaryHead(nn.Module):
    """Label predictions from the residual stream that enters layer number `layer`, by default two thirds of the way up."""

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
        """Weighted cross-entropies [len(CLASSES) + 1], in nats per frame, of `labels` [B, Q, T]; the last is BINARY's sum.

        The residual at the step that predicts a frame [B, T, D] predicts the labels of this frame.
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
