"""From logits to tokens: prompts mixed, guidance, temperature, top-k, top-p, and noise that belongs to one sample.

Letters: B batch, K codebooks, V codebook size.

A token is drawn as argmax(p / e) with e ~ Exp(1), the race that `torch.multinomial` runs inside. The noise e
comes from the sample's own generator and is drawn whatever the logits are, so neither the other samples of a
batch nor the settings of earlier steps change it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mix(prompts: Sequence[Tensor], weights: Tensor, base: Tensor) -> Tensor:
    """Logits [B, K, V] of several prompts at once: `base` plus, of each prompt, its `weights` [n, B] times what it adds.

    `base` is what guidance compares with, so that guide(mix(...), null, coef) pulls from null towards prompt i with
    coef * weight i. One prompt of weight 1 comes out as it is.
    """
    told = sum(weight[:, None, None] * logits for weight, logits in zip(weights, prompts, strict=True))
    return told + (1 - weights.sum(dim=0))[:, None, None] * base


def guide(conditional: Tensor, null: Tensor, coef: float) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598): null + (conditional - null) * coef, of any one shape."""
    return null + (conditional - null) * coef


def guide_double(conditional: Tensor, melody: Tensor, null: Tensor, coef: float, beta: float) -> Tensor:
    """Double guidance (MusicGen-Style, arXiv:2407.12563): pull from null to melody, and on to melody + text.

    `melody` are the logits with the melody and without the text; `beta` weighs the text against the melody.
    """
    return null + coef * (melody + beta * (conditional - melody) - null)


def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Probabilities [..., V] after temperature and either top-p (where > 0; it wins) or top-k (where > 0).

    Top-k keeps every token as likely as the k-th; top-p keeps the smallest set of likely tokens whose
    probabilities reach p, never fewer than one. Source: audiocraft `sample_top_k`, `sample_top_p`.

    >>> probabilities(torch.tensor([0.0, 1.0, 2.0]), top_k=1)
    tensor([0., 0., 1.])
    """
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p > 0:
        ordered, order = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of all that is likelier
        probs = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(before > top_p, 0))
    elif top_k > 0:
        kth = probs.topk(min(top_k, probs.shape[-1]), dim=-1).values[..., -1:]
        probs = probs.masked_fill(probs < kth, 0)
    return probs / probs.sum(dim=-1, keepdim=True)


def noise(generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Exp(1) noise [B, *shape], row b from generator b alone."""
    return torch.stack([torch.empty(shape).exponential_(generator=g) for g in generators])


def draw(probs: Tensor, exponential: Tensor) -> Tensor:
    """Tokens [...] drawn from `probs` [..., V] with Exp(1) noise of the same shape."""
    return (probs / exponential.to(probs.device)).argmax(dim=-1)
