"""Logits and attention of a generated piece: its tokens pass through the language model once more.

Axes: K codebooks, T frames, S steps, V codebook size, D width, L layers, H heads, W words, F chroma frames.

    codes [K, T], manifest -> retrace -> Trace: logits [K, T, V], attention [L, H, S, W or F or S]

Generation keeps nothing but the tokens. Once they are known, a single pass computes all steps: each attends
only to the steps before it, so its logits are those of generation. The pass is the model's own, with an
attention kernel that computes softmax(q k / sqrt(d)) explicitly and keeps it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.condition import Conditioner
from mgkit.delay import delay, delays
from mgkit.lm import LM, Condition
from mgkit.manifest import from_manifest
from mgkit.musicgen import MusicGen
from mgkit.prompts import plain
from mgkit.sampling import guide, guide_double, probabilities
from mgkit.settings import Settings
from mgkit.text import TextEncoder


@dataclass(frozen=True)
class Trace:
    """Logits and attention of one piece.

    Logits are by frame: those at [k, t] chose the token of codebook k in frame t. Attention is by step: row s
    is the step that predicts frame s of codebook 0, frame s - 1 of codebook 1, and so on. Rows are softmaxes.
    In a melody model, `to_melody`, `to_words` and `to_steps` share one softmax; with cross-attention,
    `to_words` has its own, and `to_melody` is empty.
    """

    codes: Tensor  # [K, T] the piece
    conditional: Tensor  # [K, T, V] logits given the prompt
    null: Tensor  # [K, T, V] logits given the null condition, or the negative prompt
    logits: Tensor  # [K, T, V] after guidance
    probs: Tensor  # [K, T, V] after temperature, top-k and top-p: the distribution of the tokens drawn
    words: list[str]  # of the prompt, and the tokenizer's end-of-sequence token
    to_melody: Tensor  # [L, H, S, F] attention to each chroma frame
    to_words: Tensor  # [L, H, S, W] attention to each word, summed over its tokens
    to_steps: Tensor  # [L, H, S, S] attention to each earlier step and to itself

    @property
    def entropy(self) -> Tensor:
        """Entropy of each choice in bits, [K, T]."""
        return entropy(self.probs)

    @property
    def divergence(self) -> Tensor:
        """How far the prompt moves the distribution, [K, T] from 0 to 1; see `divergence`."""
        return divergence(self.conditional.softmax(dim=-1), self.null.softmax(dim=-1))


class RecordAttention:
    """An attention kernel (`lm.Attend`) that keeps the weights [H, S, S or L] of every call, on the CPU."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        scores = (queries @ keys.transpose(-1, -2)).float() / math.sqrt(queries.shape[-1])
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(dim=-1)
        self.weights.append(weights[0].cpu())
        return weights.to(values.dtype) @ values


@torch.no_grad()
def retrace(model: MusicGen, codes: Tensor, manifest: dict) -> Trace:
    """The trace of a piece's `codes` [K, T], given its `manifest`, on the CPU.

    A changed manifest asks "what if": `manifest | {"text": "sad cello"}` gives the predictions at each step
    of the same piece under another prompt. Attention takes 4 * L * H * S * S bytes: 34 MB for 10 s of nano,
    0.9 GB for 15 s of `small`; shorten a long piece. In the last frames of a shortened piece, the logits are
    not those of generation, because the tokens after the cut are missing.

    Raises:
        ValueError: codes of another shape or longer than a window, or a manifest refused by `replay` or with
            more than one prompt.
    """
    config, longest = model.lm.config, model.model.window_frames
    if codes.ndim != 2 or len(codes) != config.codebooks or not 0 < codes.shape[1] <= longest:
        raise ValueError(
            f"expected the codes of one piece, [{config.codebooks}, T] with 1 to {longest} frames (a "
            f"window), got {list(codes.shape)}: pick one, codes[0], or its beginning, codes[0, :, :{longest}]"
        )
    request = from_manifest(manifest, config.codebooks)
    settings, text, chroma = request.settings, plain(request.texts[0]), request.chroma.get(0)
    if not isinstance(text, str):
        raise ValueError(
            f"the manifest has several prompts, {text}, and a trace takes one prompt: give one, as in "
            "manifest | {'text': 'calm piano'}"
        )
    conditioner = model.conditioner
    prompt, negative = conditioner.encode([text]), conditioner.encode(request.negative)
    empty = [torch.zeros_like(row) for row in prompt]

    conditional, record = _logits(model.lm, codes, conditioner(prompt, chroma))
    null, _ = _logits(model.lm, codes, conditioner(negative if request.negative[0] else empty))
    if settings.cfg_coef_beta is not None:
        melody_alone, _ = _logits(model.lm, codes, conditioner(empty, chroma))
        logits = guide_double(conditional, melody_alone, null, settings.cfg_coef, settings.cfg_coef_beta)
    else:
        logits = conditional if settings.cfg_coef == 1 else guide(conditional, null, settings.cfg_coef)

    names, to_melody, to_words, to_steps = _split_attention(conditioner, text, record)
    probs = _distribution(logits, settings)
    return Trace(codes.cpu(), conditional, null, logits, probs, names, to_melody, to_words, to_steps)


def _logits(lm: LM, codes: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
    """Logits [K, T, V] by frame for the codes [K, T], and the attention weights of every call, in order."""
    shifts = delays(lm.config.codebooks, lm.config.channels)
    steps = delay(codes[None].to(lm.device), shifts, lm.config.special)[..., :-1]
    record = RecordAttention()
    logits = lm(steps, condition, attend=record)[0]
    # Frame t of codebook k is predicted at position t + shift.
    frames = [row[shift : shift + codes.shape[1]] for row, shift in zip(logits, shifts, strict=True)]
    return torch.stack(frames).cpu(), record.weights


def _split_attention(
    conditioner: Conditioner, text: str, record: list[Tensor]
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """The words, and the attention of every layer to chroma frames, words and steps."""
    names, owner = words(conditioner.text, text)
    chroma_frames = conditioner.melody_frames or 0
    if conditioner.melody_frames is None:  # text models alternate self-attention and cross-attention
        own, tokens = torch.stack(record[::2]), torch.stack(record[1::2])
    else:
        own = torch.stack(record)
        own = own[:, :, chroma_frames + len(owner) :]  # the rows of steps, not of the prefix
        tokens = own[..., chroma_frames : chroma_frames + len(owner)]
    to_words = tokens.new_zeros(*tokens.shape[:-1], len(names)).index_add_(-1, torch.tensor(owner), tokens)
    steps = own.shape[-2]
    return names, own[..., :chroma_frames], to_words, own[..., -steps:]


def entropy(probs: Tensor) -> Tensor:
    """Entropy of `probs` [..., V] in bits [...]: 0 for one certain token, log2 V for a uniform distribution.

    >>> entropy(torch.tensor([0.25, 0.25, 0.25, 0.25]))
    tensor(2.)
    """
    return torch.special.entr(probs).sum(dim=-1) / math.log(2)


def divergence(probs: Tensor, others: Tensor) -> Tensor:
    """Distance of two distributions [..., V], [...] from 0 (equal) to 1 (no token in common).

    It is the square root of the Jensen-Shannon divergence in bits, a metric in which small differences still
    show.

    >>> divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(1.)
    """
    # In double precision, because it is a small difference of large entropies.
    one, other = probs.double(), others.double()
    apart = entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2
    return apart.clamp(0, 1).sqrt().float()  # only rounding leaves the range


def words(encoder: TextEncoder, text: str) -> tuple[list[str], list[int]]:
    """The words of `text` and the end-of-sequence token, and for each token the index of its word."""
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


def _distribution(logits: Tensor, settings: Settings) -> Tensor:
    """Probabilities [..., V] under the settings; one-hot without sampling."""
    if not settings.samples:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    return probabilities(logits, settings.temperature, settings.top_k, settings.top_p)
