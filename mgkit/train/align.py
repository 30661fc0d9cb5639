"""Attention heads initialized to follow the melody.

Axes: B batch, F chroma frames, P prefix positions, S steps, D width, E width of a head, M rows of a
regression.

    query at step s         ~  cos and sin of w s / 6.4  --.
    key at chroma frame j   ~  cos and sin of w j        --+-> attention is largest at j = s / 6.4

To follow a melody, step s must attend to the chroma frame of the same time. Chroma frames are 6.4 times
longer than steps, and a text of any length comes between them. Training alone learns this too slowly on a
small computer: after hours, the model followed the melody for the first half second only. Positions are
sinusoids, so one linear map of the queries and one of the keys are enough, and ridge regression on the
layer's inputs gives both in closed form. Training starts from there.
"""

import torch
from torch import Tensor

from mgkit.delay import delay, delays
from mgkit.lm import Attention
from mgkit.melody import one_hot
from mgkit.train.model import ConditionalLM
from mgkit.train.tokens import CHROMA_STRIDE, CODE_STRIDE

# In each of these layers the last head is initialized.
LAYERS = (0, 1)
# Attention logit of the current chroma frame; the others are near 0.
SHARPNESS = 40.0
RIDGE = 1e-3


def clock(time: Tensor, size: int) -> Tensor:
    """Cosines and sines [..., size] of `time` [...] in chroma frames, with periods from 6 to 300 frames."""
    rates = torch.logspace(0, -1.7, size // 2, device=time.device)
    angle = time[..., None] * rates
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """The matrix [E, D] of the ridge regression from `inputs` [M, D] to `targets` [M, E]."""
    covariance = inputs.t() @ inputs
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), device=inputs.device)
    return torch.linalg.solve(covariance, inputs.t() @ targets).t()


@torch.no_grad()
def align(model: ConditionalLM, codes: Tensor, texts: list[str], melody: Tensor) -> list[float]:
    """Initialize the last head of each of LAYERS from `codes` [B, K, S], `texts` and `melody` [B, F].

    Returns the fraction of attention within two chroma frames of the current one, for each of these heads.
    """
    lm, conditioner, device = model.lm, model.conditioner, model.lm.device
    config, codes, melody = lm.config, codes.to(device), melody.to(device)
    size = config.dim // config.heads
    head = slice(config.dim - size, config.dim)
    steps = delay(codes, delays(config.codebooks, config.channels), config.special)[..., : codes.shape[-1]]
    condition = conditioner(conditioner.encode(texts), melody)
    prefix = condition.prefix_length
    length, frames = prefix + steps.shape[-1], melody.shape[1]
    # Time in chroma frames since the beginning of the music; negative in the prefix
    now = (torch.arange(length, device=device) - prefix) * CHROMA_STRIDE / CODE_STRIDE
    pads = (~condition.prefix_mask).sum(dim=1)
    fractions = []
    for number in LAYERS:
        layer = lm.layers[number]
        [residual] = lm.residuals(steps, condition, layers=(number,))
        inputs = layer.norm1(residual)
        # The keys and values of text and music are fitted to 0.
        keys = torch.zeros(*inputs.shape[:2], size, device=device)
        values = torch.zeros(*inputs.shape[:2], 12, device=device)
        for row, pad in enumerate(pads.tolist()):
            keys[row, pad : pad + frames] = clock(torch.arange(frames, device=device).float(), size)
            values[row, pad : pad + frames] = one_hot(melody[row])
        queries = clock(now[prefix:], size).expand(len(inputs), -1, -1)
        attention = layer.attention
        scale = (SHARPNESS * size**0.5 / (size // 2)) ** 0.5
        flat = inputs.flatten(0, 1)
        attention.q_proj.weight[head] = scale * ridge(inputs[:, prefix:].flatten(0, 1), queries.flatten(0, 1))
        attention.k_proj.weight[head] = scale * ridge(flat, keys.flatten(0, 1))
        attention.v_proj.weight[head][:12] = ridge(flat, values.flatten(0, 1))
        # The head adds nothing to the residual stream yet: what it adds is learned in training.
        attention.out_proj.weight[:, head] = 0
        fractions.append(_attention_near(attention, inputs, head, prefix, pads, now, frames))
    return fractions


def _attention_near(
    attention: Attention, inputs: Tensor, head: slice, prefix: int, pads: Tensor, now: Tensor, frames: int
) -> float:
    """The fraction of a head's attention within two chroma frames of the current one."""
    queries, keys = (inputs @ proj.weight[head].t() for proj in (attention.q_proj, attention.k_proj))
    logits = queries[:, prefix:] @ keys.transpose(1, 2) / (head.stop - head.start) ** 0.5
    position = torch.arange(inputs.shape[1], device=inputs.device)
    logits.masked_fill_(position > position[prefix:, None], float("-inf"))
    logits.masked_fill_((position < pads[:, None])[:, None], float("-inf"))
    frame = position - pads[:, None, None]
    near = ((frame - now[prefix:, None]).abs() <= 2) & (frame < frames)
    return float((logits.softmax(dim=-1) * near).sum(dim=-1).mean())
