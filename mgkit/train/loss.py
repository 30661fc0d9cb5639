"""The training loss: cross-entropy of each codebook's next token.

Axes: B batch, K codebooks, T frames, S delayed steps, D width, V codebook size.

    codes [B, K, T] -> delayed steps 0..T [B, K, T + 1]
                       steps 0..T-1 -> language model -> logits
                       steps 1..T    = targets, wherever they hold a code
"""

from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.delay import delay, delays
from mgkit.lm import LM, Attend, Condition
from mgkit.lm import attend as fused_attend

# Torch's choice of kernels belongs to the process: one thread at a time changes it.
CHOOSING = Lock()


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


def attend_without_cudnn(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    """Torch's attention by any kernel that it would choose but cuDNN's (an `mgkit.lm.Attend`).

    That one prepares every new length anew, for 10 ms a call; texts differ in length.
    """
    # `torch.nn.attention.sdpa_kernel` would also enable kernels that the user has disabled.
    with CHOOSING:
        enabled = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            return fused_attend(queries, keys, values, mask, causal)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(enabled)


def attend_for(lm: LM) -> Attend:
    """The faster attention for training on the device of `lm`."""
    return {"cpu": attend, "cuda": attend_without_cudnn}.get(lm.device.type, fused_attend)


def delayed(lm: LM, codes: Tensor) -> Tensor:
    """Steps 0..T [B, K, T + 1] of `codes` [B, K, T]; the last codes of delayed codebooks are cut off."""
    config = lm.config
    steps = delay(codes.to(lm.device), delays(config.codebooks, config.channels), config.special)
    return steps[..., : codes.shape[-1] + 1]


def losses(lm: LM, codes: Tensor, condition: Condition, history: Tensor | None = None) -> Tensor:
    """Mean cross-entropy [K], in nats, of each codebook of `codes` [B, K, T].

    The language model reads `history` [B, K, T] instead of `codes`, if given, and still predicts `codes`.
    Past the end of a clip `codes` hold the special token, which is not counted; every clip has the same
    weight, whatever its length.
    """
    targets = delayed(lm, codes)[..., 1:]
    inputs = delayed(lm, codes if history is None else history)[..., :-1]
    return codebook_losses(lm, lm.hidden(inputs, condition, attend=attend_for(lm)), targets)


def codebook_losses(lm: LM, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy [K] of `targets` [B, K, S], predicted from `hidden` [B, S, D] of `lm`."""
    special, each = lm.config.special, []
    # One codebook at a time: stacking the logits of all of them takes a tenth longer.
    for k, head in enumerate(lm.heads):
        target = targets[:, k]
        entropy = F.cross_entropy(
            head(hidden).float().flatten(0, 1), target.flatten(), ignore_index=special, reduction="none"
        )
        each.append((entropy.view_as(target).sum(dim=1) / (target != special).sum(dim=1)).mean())
    return torch.stack(each)
