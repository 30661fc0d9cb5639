"""The training loss: cross-entropy of each codebook's next token.

Letters: B batch, K codebooks, T frames, S delayed steps, D width, V codebook size.

    codes [B, K, T] -> delayed steps 0..T [B, K, T + 1]
                       steps 0..T-1 -> language model -> logits
                       steps 1..T    = targets, wherever they hold a code
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.condition import Condition
from mgkit.delay import delay, delays
from mgkit.lm import LM, Attend, _causal_mask, sinusoid
from mgkit.lm import attend as fused_attend


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention as explicit matrix products (an `mgkit.lm.Attend`).

    Forward and backward on a CPU take half the time of `scaled_dot_product_attention`.
    """
    logits = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    length = logits.shape[-1]
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=logits.dtype, device=mask.device)
        logits += bias.masked_fill(~mask, float("-inf"))
    return logits.softmax(dim=-1) @ values


def attend_for(lm: LM) -> Attend:
    """The faster attention for training on the device of `lm`."""
    return attend if lm.device.type == "cpu" else fused_attend


def delayed(lm: LM, codes: Tensor) -> Tensor:
    """Steps 0..T [B, K, T + 1] of `codes` [B, K, T]; the last codes of delayed codebooks are cut off."""
    config = lm.config
    steps = delay(codes.to(lm.device), delays(config.codebooks, config.channels), config.special)
    return steps[..., : codes.shape[-1] + 1]


def hidden(lm: LM, steps: Tensor, condition: Condition) -> Tensor:
    """Normed output [B, S, D] of the last layer."""
    return lm.hidden(
        steps,
        None,
        condition.prefix,
        condition.prefix_mask,
        condition.cross,
        condition.cross_mask,
        attend_for(lm),
    )


# to be replaced by lm.residuals, which the core brings
def residuals(
    lm: LM, steps: Tensor, condition: Condition, *, layers: tuple[int, ...], attend: Attend = fused_attend
) -> list[Tensor]:
    """The residual stream [B, P + S, D] that enters each of `layers`; number L is after the last."""
    pad, mask_in, prefix = None, condition.prefix_mask, condition.prefix
    if mask_in is not None and not mask_in.all():
        pad = (~mask_in).sum(dim=1)
    x = torch.stack([embed(steps[:, k]) for k, embed in enumerate(lm.embeddings)]).sum(dim=0)
    if prefix is not None:
        x = torch.cat([prefix.to(x.dtype), x], dim=1)
    length = x.shape[1]
    position = torch.arange(length, device=x.device)
    if pad is not None:
        position = (position - pad[:, None]).clamp(min=0)
    x = x + sinusoid(position, lm.config.dim).to(x.dtype)
    causal = pad is None and length > 1
    mask = None if causal or (length == 1 and pad is None) else _causal_mask(0, length, pad, x.device)
    text: list[tuple[Tensor, Tensor]] = []
    text_mask = None
    if condition.cross is not None:
        text = [layer.cross_attention.keys_values(condition.cross.to(x.dtype)) for layer in lm.layers]
        cross_mask = condition.cross_mask
        text_mask = None if cross_mask is None or cross_mask.all() else cross_mask[:, None, None, :]
    found = {}
    for i, layer in enumerate(lm.layers):
        found[i] = x
        if i == max(layers):
            break
        y = layer.norm1(x)
        keys, values = layer.attention.keys_values(y)
        x = x + layer.attention(y, keys, values, mask, causal, attend)
        if text:
            x = x + layer.cross_attention(layer.norm_cross(x), *text[i], text_mask)
        x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
    else:
        found[len(lm.layers)] = x
    return [found[number] for number in layers]


def losses(lm: LM, codes: Tensor, condition: Condition, history: Tensor | None = None) -> Tensor:
    """Mean cross-entropy [K], in nats, of each codebook of `codes` [B, K, T].

    The language model reads `history` [B, K, T] instead of `codes`, if given, and still predicts `codes`.
    Past the end of a clip `codes` hold the special token, which is not counted; every clip has the same
    weight, whatever its length.
    """
    targets = delayed(lm, codes)[..., 1:]
    inputs = delayed(lm, codes if history is None else history)[..., :-1]
    return codebook_losses(lm, hidden(lm, inputs, condition), targets)


def codebook_losses(lm: LM, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy [K] of `targets` [B, K, S], predicted from the normed output `hidden` [B, S, D]."""
    special, each = lm.config.special, []
    # One codebook at a time: stacking the logits of all of them takes a tenth longer.
    for k, head in enumerate(lm.heads):
        target = targets[:, k]
        entropy = F.cross_entropy(
            head(hidden).float().flatten(0, 1), target.flatten(), ignore_index=special, reduction="none"
        )
        each.append((entropy.view_as(target).sum(dim=1) / (target != special).sum(dim=1)).mean())
    return torch.stack(each)
