"""Heads that look at the melody's present: a start that saves a small model hours of finding out where "now" is.

Letters: B batch, F chroma frames, S steps, D width.

    query at step s          ~  cos and sin of w s / 6.4  --.
    key at chroma frame j    ~  cos and sin of w j        --+-> largest where j is now, s / 6.4

To follow a melody, the music at step s must find the chroma frame that sounds then, 6.4 times slower and before all
text. Nothing but the loss says so, and within hours on a small computer it says it too softly: the melody was followed
for half a second and no longer. But positions are sinusoids, so one linear map of a query and one of a key do it, and
both can be fitted in closed form (ridge regression on what the layer sees). From there on the loss may change them.
"""

import torch
from torch import Tensor, nn

from mgkit.delay import delay, delays
from mgkit.melody import one_hot
from mgkit.train.tokens import CHROMA_STRIDE, CODE_STRIDE

LAYERS = (0, 1)  # in each of these the last head is given over to it
SHARPNESS = 40.0  # logit of the frame that sounds now, others being near 0
RIDGE = 1e-3


def clock(time: Tensor, size: int) -> Tensor:
    """Cosines and sines [..., size] of `time` [...] in chroma frames: periods from 6 frames to 300."""
    rates = torch.logspace(0, -1.7, size // 2)
    angle = time[..., None] * rates
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def fit(seen: Tensor, wanted: Tensor) -> Tensor:
    """The matrix [size, D] that maps `seen` [M, D] nearest to `wanted` [M, size]."""
    square = seen.t() @ seen
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square))
    return torch.linalg.solve(square, seen.t() @ wanted).t()


@torch.no_grad()
def align(model: nn.ModuleDict, codes: Tensor, texts: list[str], melody: Tensor) -> list[float]:
    """Gives a head in each of LAYERS the melody's present, as heard in `codes` [B, K, S], `texts` and `melody` [B, F].

    Returns, for each of the heads, the share of its attention that falls within two chroma frames of now.
    """
    lm, conditioner = model["lm"], model["conditioner"]
    config = lm.config
    size = config.dim // config.heads
    own = slice(config.dim - size, config.dim)
    steps = delay(codes, delays(config.codebooks, config.channels), config.special)[..., : codes.shape[-1]]
    condition = conditioner(conditioner.describe(texts), melody)
    lead = condition.prefix_length
    length, frames = lead + steps.shape[-1], melody.shape[1]
    now = (
        (torch.arange(length) - lead) * CHROMA_STRIDE / CODE_STRIDE
    )  # chroma frames since the music began; below 0 in the prefix
    pads = (~condition.prefix_mask).sum(dim=1)
    shares = []
    for number in LAYERS:
        layer = lm.layers[number]
        found: list[Tensor] = []
        hook = layer.norm1.register_forward_hook(
            lambda module, given, output, found=found: found.append(output)
        )
        lm.hidden(steps, None, condition.prefix, condition.prefix_mask)
        hook.remove()
        [seen] = found  # [B, length, D]
        keys = torch.zeros(*seen.shape[:2], size)  # text and music are no part of the melody: 0
        values = torch.zeros(*seen.shape[:2], 12)
        for row, pad in enumerate(pads.tolist()):
            keys[row, pad : pad + frames] = clock(torch.arange(frames).float(), size)
            values[row, pad : pad + frames] = one_hot(melody[row])
        queries = clock(now[lead:], size).expand(len(seen), -1, -1)
        attention = layer.attention
        scale = (SHARPNESS * size**0.5 / (size // 2)) ** 0.5
        attention.q_proj.weight[own] = scale * fit(seen[:, lead:].flatten(0, 1), queries.flatten(0, 1))
        attention.k_proj.weight[own] = scale * fit(seen.flatten(0, 1), keys.flatten(0, 1))
        attention.v_proj.weight[own][:12] = fit(seen.flatten(0, 1), values.flatten(0, 1))
        attention.out_proj.weight[:, own] = 0  # what it says of the present is still to be learned
        shares.append(_share(attention, seen, own, lead, pads, now, frames))
    return shares


def _share(
    attention: nn.Module, seen: Tensor, own: slice, lead: int, pads: Tensor, now: Tensor, frames: int
) -> float:
    """Share of a head's attention within two chroma frames of now."""
    queries, keys = (seen @ w.weight[own].t() for w in (attention.q_proj, attention.k_proj))
    logits = queries[:, lead:] @ keys.transpose(1, 2) / (own.stop - own.start) ** 0.5
    place = torch.arange(seen.shape[1])
    logits.masked_fill_(place > torch.arange(lead, seen.shape[1])[:, None], float("-inf"))
    logits.masked_fill_((place < pads[:, None])[:, None], float("-inf"))
    frame = place - pads[:, None, None]
    near = ((frame - now[lead:, None]).abs() <= 2) & (frame < frames)
    return float((logits.softmax(dim=-1) * near).sum(dim=-1).mean())
