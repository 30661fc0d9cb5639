"""The language model over K token streams (MusicGen, arXiv:2306.05284, section 2).

Letters: B batch, K codebooks, S steps, P prefix positions, L text length, D width, H heads, V codebook size.

    steps [B, K, S] -> sum of K embeddings [B, S, D], after an optional prefix [B, P, D]
                    -> pre-norm layers: causal self-attention, attention to the text, feed-forward
                    -> K heads -> logits [B, K, S, V]: what each codebook holds one step later

Text enters by cross-attention (small, medium, large) or, with the melody, as a prefix (melody models). What one
step needs of the steps before it is in a `KVCache`, which the caller makes and passes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
"""Queries, keys and values [B, H, S, D / H], a mask that is True where attention may go (or None), and whether it is
causal, to values [B, H, S, D / H]."""


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Torch's own attention; an `Attend`."""
    return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal)


@dataclass(frozen=True)
class LMConfig:
    """Shape of a language model; the defaults are `facebook/musicgen-small`."""

    dim: int = 1024
    layers: int = 24
    heads: int = 16
    feed_forward: int = 4096
    codebooks: int = 4
    codebook_size: int = 2048
    channels: int = 1
    cross_attention: bool = True  # False in the melody models

    @property
    def special(self) -> int:
        """The token of the gaps in the delayed pattern."""
        return self.codebook_size


class KVCache:
    """Keys and values of the steps so far, preallocated, and of the text, projected once.

    Positions 0..length-1 are filled. Rows whose prefix is shorter than the batch's longest begin with `pad`
    positions that nothing attends to and that do not count as positions.
    """

    def __init__(self, config: LMConfig, batch: int, length: int, device: torch.device, dtype: torch.dtype):
        shape = (config.layers, 2, batch, config.heads, length, config.dim // config.heads)
        self.steps = torch.zeros(shape, device=device, dtype=dtype)
        self.text: list[tuple[Tensor, Tensor]] = []
        self.text_mask: Tensor | None = None
        self.pad: Tensor | None = None  # [B]
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values [B, H, length + S, D / H] of `layer`, after writing the new ones behind them."""
        end = self.length + keys.shape[2]
        assert end <= self.steps.shape[4], (
            f"the cache holds {self.steps.shape[4]} positions; {end} are needed"
        )
        self.steps[layer, 0, :, :, self.length : end] = keys
        self.steps[layer, 1, :, :, self.length : end] = values
        return self.steps[layer, 0, :, :, :end], self.steps[layer, 1, :, :, :end]


class Attention(nn.Module):
    """Multi-head attention without biases; keys and values come from the caller."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.dim, config.dim, bias=False) for _ in range(4)
        )

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, D / H] of x [B, S, D]."""
        return self._split(self.k_proj(x)), self._split(self.v_proj(x))

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        causal: bool = False,
        attend: Attend = attend,
    ) -> Tensor:
        y = attend(self._split(self.q_proj(x)), keys, values, mask, causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Pre-norm transformer layer: x + attention, x + attention to the text (where there is one), x + feed-forward."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(config.dim), Attention(config)
        if config.cross_attention:
            self.norm_cross, self.cross_attention = nn.LayerNorm(config.dim), Attention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.linear1 = nn.Linear(config.dim, config.feed_forward, bias=False)
        self.linear2 = nn.Linear(config.feed_forward, config.dim, bias=False)


class LM(nn.Module):
    """The transformer. `forward` gives logits; `hidden` and `logits` are its two halves."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList(
            nn.Embedding(config.codebook_size + 1, config.dim) for _ in range(config.codebooks)
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.heads = nn.ModuleList(
            nn.Linear(config.dim, config.codebook_size, bias=False) for _ in range(config.codebooks)
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in; conditions and the cache follow it."""
        return self.norm.weight.dtype

    def cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `length` positions, prefix included."""
        return KVCache(self.config, batch, length, self.device, self.dtype)

    def forward(
        self,
        steps: Tensor,
        cache: KVCache | None = None,
        *,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        cross: Tensor | None = None,
        cross_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, K, S, V], float32, of delayed `steps` [B, K, S].

        `prefix` [B, P, D] comes before the steps, its padding (False in `prefix_mask` [B, P]) on the left;
        `cross` [B, L, D] is the text, its padding (False in `cross_mask` [B, L]) anywhere. With a `cache` give
        them in the first call only; later calls continue after the positions that the cache holds.
        """
        return self.logits(self.hidden(steps, cache, prefix, prefix_mask, cross, cross_mask))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, K, S, V], float32, of the output of `hidden` [B, S, D]."""
        return torch.stack([head(hidden) for head in self.heads], dim=1).float()

    def hidden(
        self,
        steps: Tensor,
        cache: KVCache | None = None,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        cross: Tensor | None = None,
        cross_mask: Tensor | None = None,
        attend: Attend = attend,
    ) -> Tensor:
        """The last layer's normed output [B, S, D] at the steps; arguments as for `forward`.

        `attend` is the attention among the steps: training brings one that is faster backwards.
        """
        start = cache.length if cache else 0
        pad = cache.pad if cache else None
        if prefix_mask is not None and not prefix_mask.all():
            pad = (~prefix_mask).sum(dim=1)
        x = torch.stack([embed(steps[:, k]) for k, embed in enumerate(self.embeddings)]).sum(dim=0)
        if prefix is not None:
            x = torch.cat([prefix.to(x.dtype), x], dim=1)
        length = x.shape[1]

        position = torch.arange(start, start + length, device=x.device)
        if pad is not None:
            position = (position - pad[:, None]).clamp(min=0)
        x = x + sinusoid(position, self.config.dim).to(x.dtype)

        causal = pad is None and start == 0 and length > 1  # the kernel's own mask serves the plain case
        mask = None if causal or (length == 1 and pad is None) else _causal_mask(start, length, pad, x.device)
        text: list[tuple[Tensor, Tensor]] = cache.text if cache else []
        text_mask = cache.text_mask if cache else None
        if cross is not None:
            text = [layer.cross_attention.keys_values(cross.to(x.dtype)) for layer in self.layers]
            text_mask = None if cross_mask is None or cross_mask.all() else cross_mask[:, None, None, :]
        if cache is not None:
            cache.text, cache.text_mask = text, text_mask

        for i, layer in enumerate(self.layers):
            y = layer.norm1(x)
            keys, values = layer.attention.keys_values(y)
            if cache is not None:
                keys, values = cache.append(i, keys, values)
            x = x + layer.attention(y, keys, values, mask, causal, attend)
            if text:
                x = x + layer.cross_attention(layer.norm_cross(x), *text[i], text_mask)
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        if cache is not None:
            cache.length, cache.pad = start + length, pad
        return self.norm(x[:, -steps.shape[-1] :])


def sinusoid(position: Tensor, dim: int) -> Tensor:
    """Position vectors [..., dim]: cosines, then sines, of position / 10000^(i / (dim / 2 - 1)).

    >>> sinusoid(torch.tensor([0]), 4)
    tensor([[1., 1., 0., 0.]])
    """
    half = dim // 2
    rate = torch.exp(torch.arange(half, device=position.device) * -(math.log(10000) / (half - 1)))
    angle = position[..., None].float() * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _causal_mask(start: int, length: int, pad: Tensor | None, device: torch.device) -> Tensor:
    """True where a query may attend, [1 or B, 1, length, start + length]."""
    query = torch.arange(start, start + length, device=device)[:, None]
    key = torch.arange(start + length, device=device)
    allowed = (key <= query)[None, None]
    if pad is None:
        return allowed
    # A padded position sees itself: a row that sees nothing would be NaN and spread.
    return allowed & ((key >= pad[:, None, None, None]) | (key == query))
