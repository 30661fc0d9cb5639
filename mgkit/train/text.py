"""Teaching the text encoder before the language model listens to it: what does a caption say of the music?

Letters: B batch, L text length, W width of T5.

    caption -> T5 -> vectors [B, L, W] -> mean over L -> a guess for every attribute of the piece

The published models begin with a T5 that has read much text. A fresh one learns next to nothing through the language
model, whose tokens it changes little at first; a few minutes of guessing attributes give its vectors their meaning.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.text import TextEncoder

ATTRIBUTES = ("style", "lead", "key", "mode", "tempo", "meter", "mood", "density", "drums")
TEMPO_STEP = 10  # beats a minute that count as one class


def classes(pieces: Sequence[dict[str, Any]]) -> tuple[Tensor, list[int]]:
    """Class [pieces, attributes] of every attribute, and how many classes each attribute has."""
    columns, sizes = [], []
    for name in ATTRIBUTES:
        values = [piece[name] // TEMPO_STEP if name == "tempo" else piece[name] for piece in pieces]
        known = sorted(set(values))
        columns.append([known.index(value) for value in values])
        sizes.append(len(known))
    return torch.tensor(columns).t(), sizes


def learn_attributes(
    text: TextEncoder,
    pieces: Sequence[dict[str, Any]],
    steps: int,
    batch: int = 48,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Teaches `text` to tell the attributes of `pieces` from their captions; the loss of each attribute every 50 steps.

    A caption names some attributes only: of the others the mean loss is what guessing gives.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    targets, sizes = classes(pieces)
    heads = nn.ModuleList(nn.Linear(text.dim, size) for size in sizes)
    learned = [*text.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(learned, lr, betas=(0.9, 0.98), weight_decay=0.01)
    history = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 50, 1 - 0.9 * step / steps)
        rows = rng.integers(len(pieces), size=batch)
        ids, mask = text.tokens([str(rng.choice(pieces[row]["captions"])) for row in rows])
        vectors = text.t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        mean = (vectors * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        losses = [F.cross_entropy(head(mean), targets[rows, i]) for i, head in enumerate(heads)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            history.append(
                {"step": step + 1} | {n: float(x.detach()) for n, x in zip(ATTRIBUTES, losses, strict=True)}
            )
    return history
