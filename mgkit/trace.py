"""Logits, attention and activations of a generated piece: its tokens pass through the model once more.

Axes: K codebooks, T frames, S steps, V codebook size, D width, L layers, H heads, W words, F chroma frames.

    codes [K, T], manifest -> retrace -> Trace: logits [K, T, V], attention [L, H, S, W or F or S],
                                                residual [L + 1, S, D], outputs of heads [L, H, S, D / H]

Generation keeps nothing but the tokens. Once they are known, a single pass computes all steps: each attends
only to the steps before it, so its logits are those of generation. The pass is the model's own, with an
attention kernel that computes softmax(q k / sqrt(d)) explicitly and keeps it.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgkit.brief import brief
from mgkit.condition import Conditioner
from mgkit.delay import delays
from mgkit.edits import Change
from mgkit.files import replace_file
from mgkit.interventions import Interventions, parse_interventions
from mgkit.lm import Condition, Tap
from mgkit.manifest import from_manifest, recorded_edits
from mgkit.musicgen import MusicGen
from mgkit.prompts import plain
from mgkit.sampling import guide, guide_double, probabilities
from mgkit.schedule import value_at
from mgkit.score import frame_logits
from mgkit.settings import Settings
from mgkit.text import TextEncoder

SITES = ("residual", "attention", "cross_attention", "mlp")


@dataclass(frozen=True)
class Trace:
    """Logits, attention and, if kept, activations of one piece.

    Logits are by frame: those at [k, t] chose the token of codebook k in frame t. Attention is by step: row s
    is the step that predicts frame s of codebook 0, frame s - 1 of codebook 1, and so on. Rows are softmaxes.
    In a melody model, `to_melody`, `to_words` and `to_steps` share one softmax; with cross-attention,
    `to_words` has its own, and `to_melody` is empty. Attention and activations are those of the pass given
    the prompt. `residual[l]` is the stream at the input of layer l, `residual[L]` that after the last.
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
    residual: Tensor | None = None  # [L + 1, S, D]
    attention: Tensor | None = None  # [L, H, S, D / H] outputs of the heads, before the output projection
    cross_attention: Tensor | None = None  # [L, H, S, D / H] the same of the cross-attention
    mlp: Tensor | None = None  # [L, S, D] outputs of the feed-forward

    @property
    def entropy(self) -> Tensor:
        """Entropy of each choice in bits, [K, T]."""
        return entropy(self.probs)

    @property
    def divergence(self) -> Tensor:
        """How far the prompt moves the distribution, [K, T] from 0 to 1; see `divergence`."""
        return divergence(self.conditional.softmax(dim=-1), self.null.softmax(dim=-1))

    def save(self, path: str | os.PathLike) -> None:
        """Write the trace as a safetensors file; the words are in its metadata."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}
        replace_file(path, lambda draft: save_file(tensors, draft, {"words": json.dumps(self.words)}))

    @staticmethod
    def load(path: str | os.PathLike) -> "Trace":
        """The trace written by `save`.

        Raises:
            ValueError: another file.
        """
        try:
            with safe_open(Path(path), "pt") as file:
                words = json.loads(file.metadata()["words"])
                return Trace(**{name: file.get_tensor(name) for name in file.keys()}, words=words)  # noqa: SIM118
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, TypeError, LookupError, ValueError) as error:
            raise ValueError(f"{path} is not a trace written by Trace.save ({brief(str(error))})") from None


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


class Activations:
    """Activations of one pass at some sites, at its last `steps` positions, on the CPU; an `lm.Tap`.

    Edits come first, so that what is kept is what the model continued with.
    """

    def __init__(self, keep: Sequence[str], steps: int, edited: Tap | None):
        self.kept: dict[str, list[Tensor]] = {site: [] for site in keep}
        self.steps, self.edited = steps, edited

    def __call__(self, layer: int, site: str, x: Tensor) -> Tensor:
        x = x if self.edited is None else self.edited(layer, site, x)
        if site in self.kept:
            # A copy, so that the rest of a larger tensor is not kept with it.
            self.kept[site].append(x[0, ..., -self.steps :, :].detach().cpu().clone())
        return x

    def stacked(self) -> dict[str, Tensor]:
        """The activations of all layers, [L or L + 1, ...], by site."""
        return {site: torch.stack(layers) for site, layers in self.kept.items()}


@torch.no_grad()
def retrace(
    model: MusicGen,
    codes: Tensor,
    manifest: dict,
    keep: Sequence[str] = (),
    *,
    edits: Sequence[Change] | None = None,
) -> Trace:
    """The trace of a piece's `codes` [K, T], given its `manifest`, on the CPU.

    `keep` names activations to keep: "residual", "attention" (the outputs of the heads), "cross_attention",
    "mlp". They take 4 bytes a number: 10 MB for 10 s of nano, 0.2 GB for 15 s of `small`. `edits` change the
    pass as in generation; by default they are those of the manifest, which cannot hold tensors and functions:
    give the same again, or [] for the model without them. A hook on logits is not applied.

    A changed manifest asks "what if": `manifest | {"text": "sad cello"}` gives the predictions at each step
    of the same piece under another prompt. Attention takes 4 * L * H * S * S bytes: 34 MB for 10 s of nano,
    0.9 GB for 15 s of `small`; shorten a long piece. In the last frames of a shortened piece, the logits are
    not those of generation, because the tokens after the cut are missing.

    Raises:
        ValueError: codes of another shape or longer than a window, an unknown activation, or a manifest
            refused by `replay` or with more than one prompt.
    """
    config, longest = model.lm.config, model.model.window_frames
    if codes.ndim != 2 or len(codes) != config.codebooks or not 0 < codes.shape[1] <= longest:
        raise ValueError(
            f"expected the codes of one piece, [{config.codebooks}, T] with 1 to {longest} frames (a "
            f"window), got {list(codes.shape)}: pick one, codes[0], or its beginning, codes[0, :, :{longest}]"
        )
    keep = _parse_keep(keep, config.cross_attention)
    request = from_manifest(manifest, config.codebooks)
    changes = recorded_edits(manifest, None) if edits is None else edits
    interventions = parse_interventions(changes, None, config, model.frame_rate, request.settings)
    settings, text, chroma = request.settings, plain(request.texts[0]), request.chroma.get(0)
    if not isinstance(text, str):
        raise ValueError(
            f"the manifest has several prompts, {text}, and a trace takes one prompt: give one, as in "
            "manifest | {'text': 'calm piano'}"
        )
    conditioner = model.conditioner
    prompt, negative = conditioner.encode([text]), conditioner.encode(request.negative)
    empty = [torch.zeros_like(row) for row in prompt]

    run = partial(_pass, model, codes, interventions)
    conditional, record, kept = run(conditioner(prompt, chroma), True, keep)
    null, _, _ = run(conditioner(negative if request.negative[0] else empty), False, ())
    coefs = _coefs(model, codes, settings)
    if settings.cfg_coef_beta is not None:
        melody_alone, _, _ = run(conditioner(empty, chroma), False, ())
        logits = guide_double(conditional, melody_alone, null, coefs, settings.cfg_coef_beta)
    else:
        logits = conditional if settings.cfg_coef == 1 else guide(conditional, null, coefs)

    names, to_melody, to_words, to_steps = _split_attention(conditioner, text, record)
    probs = _distribution(logits, settings)
    parts = (codes.cpu(), conditional, null, logits, probs, names, to_melody, to_words, to_steps)
    return Trace(*parts, **kept)


def _pass(
    model: MusicGen,
    codes: Tensor,
    interventions: Interventions,
    condition: Condition,
    prompt: bool,
    keep: Sequence[str],
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Logits [K, T, V] of the codes, attention weights of every call in order, and activations by site."""
    config, record = model.lm.config, RecordAttention()
    steps = codes.shape[1] + max(delays(config.codebooks, config.channels))
    tap = Activations(keep, steps, interventions.tap(int(prompt), 0, range(steps)))
    logits = frame_logits(model.lm, codes[None].to(model.lm.device), condition, record, tap)
    return logits[0].cpu(), record.weights, tap.stacked()


def _coefs(model: MusicGen, codes: Tensor, settings: Settings) -> Tensor:
    """The guidance of each choice, [K, T, 1]: frame t of codebook k is predicted at step t + shift."""
    shifts = delays(model.lm.config.codebooks, model.lm.config.channels)
    seconds = [[(t + shift) / model.frame_rate for t in range(codes.shape[1])] for shift in shifts]
    return torch.tensor([[value_at(settings.cfg_coef, now) for now in row] for row in seconds])[..., None]


def _parse_keep(keep: Sequence[str], cross_attention: bool) -> Sequence[str]:
    """The names of activations to keep."""
    known = [site for site in SITES if cross_attention or site != "cross_attention"]
    if isinstance(keep, str) or not all(site in known for site in keep):
        raise ValueError(f"keep is {brief(keep)}; it must be a list of names out of {', '.join(known)}")
    return keep


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
    return probabilities(logits, settings.temperature, settings.top_k, settings.top_p, settings.min_p)
