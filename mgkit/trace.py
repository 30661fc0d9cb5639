"""What happened inside: the tokens of a finished piece go through the language model again, and all is kept.

Letters: K codebooks, T frames, S steps, V codebook size, D width, L layers, H heads, W words, F chroma frames.

    codes [K, T], manifest -> retrace -> Trace: logits [K, T, V], attention [L, H, S, W or F or S]

Generation writes one step at a time and keeps nothing but its tokens. Now that they are known, one pass does for
all steps: each sees only the steps before it, as it did then, so its logits are those of then. The attention is
computed here in the open, softmax(q k / sqrt(d)), because the kernel that `lm.py` calls does not say what it was.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.condition import Condition
from mgkit.delay import delay, delays
from mgkit.generate import Settings
from mgkit.job import from_manifest, plain
from mgkit.lm import LM, Attention, sinusoid
from mgkit.musicgen import MusicGen
from mgkit.sampling import guide, guide_double, probabilities
from mgkit.text import TextEncoder


@dataclass(frozen=True)
class Trace:
    """What happened inside while one piece was written.

    By frame: `told`, `null` and `logits` are what the token of codebook k in frame t was chosen by. By step: row s of
    an attention is the step that writes frame s of codebook 0, frame s - 1 of codebook 1, and so on; each row is a
    softmax. In a melody model, one softmax is shared by `to_melody`, `to_words` and `to_steps`; where text enters by
    cross-attention, `to_words` is a softmax of its own, and `to_melody` is empty.
    """

    codes: Tensor  # [K, T] the piece
    told: Tensor  # [K, T, V] logits by the prompt
    null: Tensor  # [K, T, V] logits by nothing, or by what the prompt is to keep away from
    logits: Tensor  # [K, T, V] after guidance
    probs: Tensor  # [K, T, V] after temperature, top-k and top-p: what the tokens were drawn from
    words: list[str]  # the words of the prompt, and the tokenizer's end mark
    to_melody: Tensor  # [L, H, S, F] attention to each frame of the melody's chroma
    to_words: Tensor  # [L, H, S, W] attention to each word: the sum over its pieces
    to_steps: Tensor  # [L, H, S, S] attention to each step up to this one

    @property
    def entropy(self) -> Tensor:
        """How open each choice was, in bits [K, T]."""
        return entropy(self.probs)

    @property
    def divergence(self) -> Tensor:
        """How much the prompt changes what the model expects, [K, T] from 0 to 1; see `divergence`."""
        return divergence(self.told.softmax(dim=-1), self.null.softmax(dim=-1))


@torch.no_grad()
def retrace(model: MusicGen, codes: Tensor, manifest: dict) -> Trace:
    """The trace of a piece `codes` [K, T] that `manifest` (of `model.manifests`) tells of, on the CPU.

    A changed manifest asks what if: `manifest | {"text": "sad cello"}` gives what the model would have expected at
    each step of the same piece, had it been told so. Attention takes 4 * L * H * S * S bytes: 34 MB for 10 s of nano,
    0.9 GB for 15 s of `small`; give fewer frames of a long piece. The last frames of a piece that was cut lack what
    codebook 0 held after the cut.
    Errors: ValueError for another shape, more frames than a window, a manifest that `replay` would refuse to read, or
    one of several prompts.
    """
    config, longest = model.lm.config, round(model.max_duration * model.frame_rate)
    if codes.ndim != 2 or len(codes) != config.codebooks or not 0 < codes.shape[1] <= longest:
        raise ValueError(
            f"expected one piece's codes [{config.codebooks}, T] of 1 to {longest} frames (a window), got "
            f"{list(codes.shape)}: pick one, codes[0], or its beginning, codes[0, :, :{longest}]"
        )
    job = from_manifest(manifest, config.codebooks)
    settings, text, melody = job.settings, plain(job.texts[0]), job.melody.get(0)
    if not isinstance(text, str):
        raise ValueError(
            f"the piece was told {text}; a trace is of one prompt: give one, as in manifest | {{'text': 'calm piano'}}"
        )
    told, against = model.conditioner.describe([text]), model.conditioner.describe(job.negative)
    nothing = [torch.zeros_like(row) for row in told]

    shifts = delays(config.codebooks, config.channels)
    codes = codes.to(model.lm.device)
    steps = delay(codes[None], shifts, config.special)[..., :-1]

    def hear(condition: Condition) -> tuple[Tensor, Tensor, Tensor | None]:
        logits, own, cross = _one_pass(model.lm, steps, condition)
        # frame t of codebook k is written by the step that follows position t + shift
        framed = [row[shift : shift + codes.shape[1]] for row, shift in zip(logits[0], shifts, strict=True)]
        return torch.stack(framed).cpu(), own, cross

    asked, own, cross = hear(model.conditioner(told, melody))
    null = hear(model.conditioner(against if job.negative[0] else nothing))[0]
    if settings.cfg_coef_beta is not None:
        tune = hear(model.conditioner(nothing, melody))[0]
        logits = guide_double(asked, tune, null, settings.cfg_coef, settings.cfg_coef_beta)
    else:
        logits = asked if settings.cfg_coef == 1 else guide(asked, null, settings.cfg_coef)

    names, owner = words(model.conditioner.text, text)
    heard = model.conditioner.melody_frames or 0
    pieces = own[..., heard : heard + len(owner)] if cross is None else cross
    to_words = torch.zeros(*pieces.shape[:-1], len(names)).index_add_(-1, torch.tensor(owner), pieces)
    to_steps = own[..., -steps.shape[-1] :]
    return Trace(
        codes.cpu(),
        asked,
        null,
        logits,
        _drawn(logits, settings),
        names,
        own[..., :heard],
        to_words,
        to_steps,
    )


def entropy(probs: Tensor) -> Tensor:
    """How open a choice is, in bits [...], of `probs` [..., V]: 0 for one certain token, log2 V for all alike.

    >>> entropy(torch.tensor([0.25, 0.25, 0.25, 0.25]))
    tensor(2.)
    """
    return torch.special.entr(probs).sum(dim=-1) / math.log(2)


def divergence(probs: Tensor, others: Tensor) -> Tensor:
    """How far `probs` [..., V] and `others` are apart, [...] from 0 (the same) to 1 (no token in common).

    The root of the Jensen-Shannon divergence in bits: a distance, in which small differences still show.

    >>> divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(1.)
    """
    one, other = probs.double(), others.double()  # a small difference of large entropies
    apart = entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2
    return apart.clamp(0, 1).sqrt().float()  # rounding alone leaves the range


def words(encoder: TextEncoder, text: str) -> tuple[list[str], list[int]]:
    """The words of `text` with the tokenizer's end mark, and for each piece of the text which word it is of."""
    split = encoder.tokenizer(text)
    names: list[str] = []
    owner: list[int] = []
    before: int | None = None
    for piece, word in zip(split.tokens(), split.word_ids(), strict=True):
        if word is None or word != before or not names:
            names.append(piece if word is None else text[slice(*split.word_to_chars(word))].strip())
        owner.append(len(names) - 1)
        before = word
    return names, owner


def _drawn(logits: Tensor, settings: Settings) -> Tensor:
    """Probabilities [..., V] that the settings make of logits; all on the likeliest token without sampling."""
    if not settings.use_sampling or settings.temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    return probabilities(logits, settings.temperature, settings.top_k, settings.top_p)


def _one_pass(lm: LM, steps: Tensor, told: Condition) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [1, K, S, V] of `steps` [1, K, S], as `LM.forward` gives them, and the attention of every layer.

    Both on the CPU: to the prefix and the steps [L, H, S, P + S], and to the text [L, H, S, pieces] where there is
    cross-attention. A condition of one row has no padding, so the only mask is the causal one.
    """
    x = torch.stack([embed(steps[:, k]) for k, embed in enumerate(lm.embeddings)]).sum(dim=0)
    if told.prefix is not None:
        x = torch.cat([told.prefix.to(x.dtype), x], dim=1)
    x = x + sinusoid(torch.arange(x.shape[1], device=x.device), lm.config.dim).to(x.dtype)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
    own, cross = [], []
    for layer in lm.layers:
        y = layer.norm1(x)
        y, weights = _attend(layer.attention, y, y, later)
        own.append(weights[:, -steps.shape[-1] :].cpu())
        x = x + y
        if told.cross is not None:
            y, weights = _attend(layer.cross_attention, layer.norm_cross(x), told.cross.to(x.dtype))
            cross.append(weights.cpu())
            x = x + y
        x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
    logits = lm.logits(lm.norm(x[:, -steps.shape[-1] :]))
    return logits, torch.stack(own), torch.stack(cross) if cross else None


def _attend(
    attention: Attention, x: Tensor, to: Tensor, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `attention` adds to x [1, S, D] that looks at `to` [1, L, D], and how much it looked where, [H, S, L]."""
    keys, values = attention.keys_values(to)
    queries = attention.q_proj(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    scores = (queries @ keys.transpose(-1, -2)).float() / math.sqrt(queries.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    weights = scores.softmax(dim=-1)
    mixed = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
    return attention.out_proj(mixed), weights[0]
