"""Pretraining of the text encoder: T5 learns to predict the attributes of a piece from its captions.

Axes: B batch, L text length, W width of T5.

    caption -> T5 -> [B, L, W] -> mean over L -> one linear classifier per attribute

The published models start from a T5 pretrained on large text corpora. A freshly initialized one gets almost
no gradient through the language model, whose predictions hardly depend on the text at first; a few minutes of
attribute classification make its vectors meaningful.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.band.dataset import ClipRow
from mgkit.text import TextEncoder

ATTRIBUTES = ("style", "lead", "key", "mode", "tempo", "meter", "mood", "density", "drums")
TEMPO_STEP = 10  # beats per minute in one tempo class
REPORT_EVERY = 50  # steps


def classes(pieces: Sequence[ClipRow]) -> tuple[Tensor, list[int]]:
    """Class indices [pieces, attributes], and the number of classes of each attribute."""
    columns, sizes = [], []
    for name in ATTRIBUTES:
        values = [
            piece["tempo"] // TEMPO_STEP if name == "tempo" else piece[name]  # type: ignore[literal-required]
            for piece in pieces
        ]
        distinct = sorted(set(values))
        columns.append([distinct.index(value) for value in values])
        sizes.append(len(distinct))
    return torch.tensor(columns).t(), sizes


def pretrain_text_encoder(
    encoder: TextEncoder,
    pieces: Sequence[ClipRow],
    steps: int,
    batch: int = 48,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Train `encoder`, on its device, to predict attributes from captions; return the loss of each attribute
    every 50 steps.

    A caption names only some attributes, so the losses do not fall to zero.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    targets, sizes = classes(pieces)
    classifiers = nn.ModuleList(nn.Linear(encoder.dim, size) for size in sizes).to(encoder.t5.device)
    targets = targets.to(encoder.t5.device)
    parameters = [*encoder.parameters(), *classifiers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.01)
    history = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 50, 1 - 0.9 * step / steps)
        rows = rng.integers(len(pieces), size=batch)
        vectors, mask = encoder([str(rng.choice(pieces[row]["captions"])) for row in rows])
        mean = (vectors * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        losses = [
            F.cross_entropy(classifier(mean), targets[rows, i]) for i, classifier in enumerate(classifiers)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % REPORT_EVERY == 0:
            values = {name: float(loss.detach()) for name, loss in zip(ATTRIBUTES, losses, strict=True)}
            history.append({"step": step + 1} | values)
    return history
