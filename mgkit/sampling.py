"""From logits to tokens: prompt mixing, guidance, temperature, truncation, and one generator per sample.

Axes: B batch, K codebooks, V codebook size.

    logits -> mix -> guide -> probabilities(temperature, top-k or top-p, min-p) -> draw -> token

A token is drawn as argmax(p / e) with e ~ Exp(1), as `torch.multinomial` does internally. Each sample has its
own generator and draws the same amount of noise at every step, so its tokens depend neither on the other
samples of the batch nor on the settings of earlier steps.
"""

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from torch import Tensor

from mgkit.threads import using


def mix(prompts: Sequence[Tensor], weights: Tensor, base: Tensor) -> Tensor:
    """Mixed logits [B, K, V] of n prompts: base + the sum of weight * (prompt - base), with `weights` [n, B].

    With the null logits (those without a prompt) as `base`, guide(mix(...), null, coef) guides towards each
    prompt with coef times its weight. A single prompt of weight 1 is unchanged.
    """
    total = sum(weight[:, None, None] * logits for weight, logits in zip(weights, prompts, strict=True))
    return total + (1 - weights.sum(dim=0))[:, None, None] * base


def guide(conditional: Tensor, null: Tensor, coef: float | Tensor) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598): null + (conditional - null) * coef, elementwise.

    `conditional` are the logits given the prompt, `null` those without it.
    """
    return null + (conditional - null) * coef


def guide_double(
    conditional: Tensor, melody: Tensor, null: Tensor, coef: float | Tensor, beta: float
) -> Tensor:
    """Double guidance (MusicGen-Style, arXiv:2407.12563): from null to melody, then to melody with text.

    `melody` are the logits given the melody without text; `beta` weights the text relative to the melody.
    """
    return null + coef * (melody + beta * (conditional - melody) - null)


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 0.0, min_p: float = 0.0
) -> Tensor:
    """Probabilities [..., V] after temperature, top-p (if > 0), else top-k (if > 0), and min-p.

    Top-k keeps ties with the k-th most likely token. Top-p keeps the smallest set of most likely tokens whose
    total probability is at least p. Source: audiocraft, `sample_top_k` and `sample_top_p`. Min-p keeps the
    tokens at least `min_p` times as likely as the most likely one (arXiv:2407.01082).

    >>> probabilities(torch.tensor([0.0, 1.0, 2.0]), top_k=1)
    tensor([0., 0., 1.])
    """
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p > 0:
        ordered, order = probs.sort(dim=-1, descending=True)
        # total probability of all more likely tokens
        before = ordered.cumsum(dim=-1) - ordered
        probs = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(before > top_p, 0))
    elif top_k > 0:
        probs = probs.masked_fill(probs < _kth(probs, min(top_k, probs.shape[-1])), 0)
    if min_p > 0:
        probs = probs.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), 0)
    return probs / probs.sum(dim=-1, keepdim=True)


def _kth(probs: Tensor, k: int) -> Tensor:
    """The k-th largest of probabilities [..., V], as [..., 1]."""
    if probs.device.type != "cpu":
        return probs.topk(k, dim=-1).values[..., -1:]
    # On a CPU, NumPy selects some ten times as fast as torch sorts.
    place = probs.shape[-1] - k
    return torch.from_numpy(np.partition(probs.detach().numpy(), place)[..., place : place + 1])


def noise(
    generators: list[torch.Generator], shape: tuple[int, ...], threads: Executor | None = None
) -> Tensor:
    """Exp(1) noise [B, *shape], row b from generator b; `threads` draw the rows side by side.

    The numbers are those of `Tensor.exponential_`, whose logarithms are not vectorized: three times as fast.
    """
    rows = torch.empty(len(generators), *shape, dtype=torch.float64)

    def fill(row: Tensor, generator: torch.Generator) -> None:
        # So little work is faster in one thread, and many times as fast beside other busy programs.
        with using(1):
            row.uniform_(generator=generator).neg_().log1p_().neg_()

    for _ in (map if threads is None else threads.map)(fill, rows, generators):
        pass
    return rows.float()


def draw(probs: Tensor, exponential: Tensor) -> Tensor:
    """Tokens [...] drawn from `probs` [..., V] with Exp(1) noise [..., V]."""
    return (probs / exponential.to(probs.device)).argmax(dim=-1)
