"""How likely a piece is under the model: the log-likelihood of its tokens given a condition.

Axes: B batch, K codebooks, T frames, S steps, V codebook size.

    codes [B, K, T] -> delayed steps -> one pass -> logits by frame [B, K, T, V] -> log p of each token

The likelihood is that of the model given the condition, without guidance, temperature or top-k. One pass
computes all steps, because each attends only to the steps before it.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mgkit.checkpoint import Model
from mgkit.delay import delay, delays
from mgkit.edits import Change
from mgkit.interventions import parse_interventions
from mgkit.lm import LM, Attend, Condition, Tap, attend
from mgkit.prompts import Texts, parse_texts
from mgkit.settings import Settings


class Door(Protocol):
    """A `MusicGen`."""

    model: Model


def score(
    model: Door | Model,
    codes: Tensor,
    conditions: Texts | Condition,
    *,
    edits: Sequence[Change] = (),
    grad: bool = False,
) -> Tensor:
    """Log-likelihood of each token of `codes` [K, T] or [B, K, T], in nats and in their shape.

    `conditions` is a list of one text or None for all B pieces, or of one for each; or a `Condition`, for a
    melody or for vectors of one's own: `model.conditioner(model.conditioner.encode(texts), chroma)`. `edits`
    (`mgkit.edits`) apply as to the prompt's stream. With `grad`, the result can be differentiated with
    respect to the condition or the edits' tensors. Where a piece was cut, the likelihood of its last frames
    is not that of generation: finer codebooks are predicted from later frames.

    Raises:
        ValueError: codes of another shape, longer than a window or out of range, another number of texts, or
            edits that do not fit the model.
    """
    plain = model if isinstance(model, Model) else model.model
    pieces = _parse_codes(plain, codes)
    condition = _parse_condition(plain, conditions, len(pieces))
    config, rate = plain.lm.config, plain.frame_rate
    changes = parse_interventions(edits, None, config, rate, Settings())
    steps = range(pieces.shape[-1] + max(delays(config.codebooks, config.channels)))
    with torch.set_grad_enabled(grad), torch.autocast(plain.lm.device.type, enabled=False):
        logits = frame_logits(plain.lm, pieces, condition, tap=changes.tap(len(pieces), 0, steps))
        chosen = logits.log_softmax(dim=-1).gather(-1, pieces[..., None])[..., 0]
    return chosen if codes.ndim == 3 else chosen[0]


def rank(
    model: Door | Model,
    candidates: Sequence[Tensor],
    conditions: Texts | Condition,
    *,
    start: int = 0,
) -> list[int]:
    """Indices of the candidates, codes [K, T] each, from the most to the least likely.

    They are compared by the mean log-likelihood of the tokens from frame `start` on, so their lengths may
    differ. `conditions` is that of all candidates, a list of one text or a `Condition` of one piece.

    Raises:
        ValueError: as `score`, or a candidate that ends before `start`.
    """
    means = []
    for i, codes in enumerate(candidates):
        if not 0 <= start < codes.shape[-1]:
            raise ValueError(
                f"candidate {i} has {codes.shape[-1]} frames, and the comparison starts at frame {start}: "
                "give a start within each candidate"
            )
        means.append(float(score(model, codes, conditions)[:, start:].mean()))
    return sorted(range(len(means)), key=lambda i: -means[i])


def frame_logits(
    lm: LM, codes: Tensor, condition: Condition, attend: Attend = attend, tap: Tap | None = None
) -> Tensor:
    """Logits [B, K, T, V] of the codes [B, K, T]: those at [:, k, t] predict codebook k of frame t."""
    shifts, length = delays(lm.config.codebooks, lm.config.channels), codes.shape[-1]
    steps = delay(codes, shifts, lm.config.special)[..., :-1]
    logits = lm(steps, condition, attend=attend, tap=tap)
    return torch.stack([logits[:, k, shift : shift + length] for k, shift in enumerate(shifts)], dim=1)


def _parse_codes(model: Model, codes: Tensor) -> Tensor:
    """The codes as [B, K, T] on the model's device."""
    config, longest = model.lm.config, model.window_frames
    shape = list(getattr(codes, "shape", []))
    if len(shape) not in (2, 3) or shape[-2] != config.codebooks or not 0 < shape[-1] <= longest:
        raise ValueError(
            f"expected codes [{config.codebooks}, T] or [B, {config.codebooks}, T] with 1 to {longest} "
            f"frames (a window), got {shape}: give the tokens of `return_tokens=True`, or a part of them"
        )
    if codes.is_floating_point() or not 0 <= int(codes.min()) <= int(codes.max()) < config.codebook_size:
        raise ValueError(f"codes must be integers from 0 to {config.codebook_size - 1}, as from `generate`")
    pieces = codes.long().to(model.lm.device)
    return pieces if pieces.ndim == 3 else pieces[None]


def _parse_condition(model: Model, conditions: Texts | Condition, batch: int) -> Condition:
    """The condition of `batch` pieces."""
    if isinstance(conditions, Condition):
        if conditions.batch != batch:
            raise ValueError(
                f"the condition has a batch size of {conditions.batch}, and the codes one of {batch}: "
                "build it from as many texts as there are pieces"
            )
        return conditions
    texts = parse_texts(conditions, "conditions")
    if len(texts) not in (1, batch):
        raise ValueError(f"there are {len(texts)} conditions for {batch} pieces; give one, or one for each")
    with torch.no_grad():
        # Each text alone, as in generation: padding would change the last bits.
        vectors = [model.conditioner.encode([text])[0] for text in texts]
        return model.conditioner(vectors * (batch // len(vectors)))
