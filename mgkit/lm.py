"""The language model over K token streams (MusicGen, arXiv:2306.05284, section 2).

Axes: B batch, K codebooks, S steps, P prefix positions, L text length, D width, H heads, V codebook size.

    steps [B, K, S] -> sum of K embeddings [B, S, D], after an optional prefix [B, P, D]
                    -> pre-norm layers: causal self-attention, cross-attention to the text, feed-forward
                    -> K heads -> logits [B, K, S, V]: the token of each codebook one step later

Text enters through cross-attention (small, medium, large) or, after the melody, as a prefix (melody models).
The caller passes a `KVCache` per layer. Every part is called as a module: forward hooks run at every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.linear import Linear
from mgkit.positions import causal_mask, positions, sinusoid

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
"""An attention kernel: queries, keys, values [B, H, S, D / H]; mask (True: attend) or None; causal."""


Tap = Callable[[int, str, Tensor], Tensor]
"""Reads or replaces activations: layer, site and activation in, the activation to use out.

Sites: "residual", the stream [B, P + S, D] at the input of layer 0 to L - 1 and, under L, after the last;
"attention" and "cross_attention", the outputs of the heads [B, H, P + S, D / H]; "mlp", the
output of the feed-forward [B, P + S, D].
"""


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Torch's own attention kernel; an `Attend`."""
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
        """The token in the gaps of the delay pattern."""
        return self.codebook_size


@dataclass(frozen=True)
class Condition:
    """Conditioning vectors of a batch, for cross-attention or as a prefix; masks are False at padding.

    Every call of the LM for the same piece takes the same condition. With a cache, its vectors are used in
    the first call only, its masks in every call.
    """

    cross: Tensor | None = None  # [B, L, D], padded on the right
    cross_mask: Tensor | None = None  # [B, L]
    prefix: Tensor | None = None  # [B, P, D], padded on the left
    prefix_mask: Tensor | None = None  # [B, P]

    @property
    def batch(self) -> int:
        """Batch size B."""
        return len(self.prefix if self.cross is None else self.cross)  # type: ignore[arg-type]

    @property
    def prefix_length(self) -> int:
        """P, the number of positions before the music."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    @cached_property
    def padding(self) -> Tensor | None:
        """Number of padded prefix positions [B]; None if there are none."""
        if self.prefix_mask is None or self.prefix_mask.all():
            return None
        return (~self.prefix_mask).sum(dim=1)

    @cached_property
    def text_mask(self) -> Tensor | None:
        """`cross_mask` in the shape of attention weights, [B, 1, 1, L]; None without padding."""
        if self.cross_mask is None or self.cross_mask.all():
            return None
        return self.cross_mask[:, None, None, :]


class KVCache:
    """Keys and values of one layer: those of the `length` positions so far, and those of the text."""

    def __init__(self, storage: Tensor):
        self.storage = storage  # [2, B, H, capacity, D / H]
        self.length = 0
        self.text: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far [B, H, length + S, D / H], the new ones included."""
        end, capacity = self.length + keys.shape[2], self.storage.shape[3]
        assert end <= capacity, f"the cache holds {capacity} positions; {end} are needed"
        self.storage[0, :, :, self.length : end] = keys
        self.storage[1, :, :, self.length : end] = values
        self.length = end
        return self.storage[0, :, :, :end], self.storage[1, :, :, :end]


class Attention(nn.Module):
    """Multi-head attention without biases; keys and values come from the caller."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Linear(config.dim, config.dim, bias=False) for _ in range(4)
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
        causal: bool,
        attend: Attend,
        tap: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        y = attend(self._split(self.q_proj(x)), keys, values, mask, causal)
        y = y if tap is None else tap(y)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers without biases around an exact (erf) GELU."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.linear1 = Linear(config.dim, config.feed_forward, bias=False)
        self.linear2 = Linear(config.feed_forward, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class Layer(nn.Module):
    """Pre-norm layer: self-attention, cross-attention (text models), feed-forward, each added to x."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(config.dim), Attention(config)
        if config.cross_attention:
            self.norm_cross, self.cross_attention = nn.LayerNorm(config.dim), Attention(config)
        self.norm2, self.feed_forward = nn.LayerNorm(config.dim), FeedForward(config)

    def forward(
        self,
        x: Tensor,
        condition: Condition,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        causal: bool = True,
        attend: Attend = attend,
        tap: Callable[[str, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The residual stream [B, S, D] after this layer; `tap` is an `lm.Tap` for this layer."""
        y = self.norm1(x)
        keys, values = self.attention.keys_values(y)
        if cache is not None:
            keys, values = cache.append(keys, values)
        heads = tap and partial(tap, "attention")
        x = x + self.attention(y, keys, values, mask, causal, attend, heads)
        if condition.cross is not None:
            text = cache and cache.text or self.cross_attention.keys_values(condition.cross.to(x.dtype))
            if cache is not None:
                cache.text = text
            heads = tap and partial(tap, "cross_attention")
            x = x + self.cross_attention(self.norm_cross(x), *text, condition.text_mask, False, attend, heads)
        y = self.feed_forward(self.norm2(x))
        return x + (y if tap is None else tap("mlp", y))


class LM(nn.Module):
    """The transformer: `forward` gives logits, `residuals` the residual stream at any layers."""

    compiled = False  # whether steps in float32 are those of `compiled_step`

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList(
            nn.Embedding(config.codebook_size + 1, config.dim) for _ in range(config.codebooks)
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.compiled = False  # whether steps in float32 use `compiled_step`
        self.heads = nn.ModuleList(
            Linear(config.dim, config.codebook_size, bias=False) for _ in range(config.codebooks)
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; conditions and the cache follow it."""
        return self.norm.weight.dtype

    def cache(self, batch: int, length: int) -> list[KVCache]:
        """An empty cache for each layer, with room for `length` positions, prefix included."""
        shape = (2, batch, self.config.heads, length, self.config.dim // self.config.heads)
        return [KVCache(torch.zeros(shape, device=self.device, dtype=self.dtype)) for _ in self.layers]

    def forward(
        self,
        steps: Tensor,
        condition: Condition | None = None,
        cache: list[KVCache] | None = None,
        *,
        last_only: bool = False,
        attend: Attend = attend,
        tap: Tap | None = None,
    ) -> Tensor:
        """Logits [B, K, S, V], float32, of delayed `steps` [B, K, S] that follow those in `cache`.

        With `last_only`, the logits of the last step, [B, K, 1, V].
        """
        hidden = self.hidden(steps, condition, cache, attend, tap)
        return self.logits(hidden[:, -1:] if last_only else hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, K, S, V], float32, of the output of `hidden` [B, S, D]."""
        return torch.stack([head(hidden) for head in self.heads], dim=1).float()

    def hidden(
        self,
        steps: Tensor,
        condition: Condition | None = None,
        cache: list[KVCache] | None = None,
        attend: Attend = attend,
        tap: Tap | None = None,
    ) -> Tensor:
        """The last layer's output after the final norm, [B, S, D], at the steps; arguments as `forward`."""
        [last] = self.residuals(steps, condition, cache, layers=(len(self.layers),), attend=attend, tap=tap)
        return self.norm(last[:, -steps.shape[-1] :])

    def residuals(
        self,
        steps: Tensor,
        condition: Condition | None = None,
        cache: list[KVCache] | None = None,
        *,
        layers: Sequence[int],
        attend: Attend = attend,
        tap: Tap | None = None,
    ) -> list[Tensor]:
        """The residual stream [B, P + S, D] at the input of each of `layers`, numbers in rising order.

        Number len(self.layers) is the output of the last layer. Nothing beyond the last of them is computed.
        With a non-empty cache there is no prefix: P = 0.
        """
        assert list(layers) == sorted(set(layers)) and layers[0] >= 0 and layers[-1] <= len(self.layers)
        assert cache is None or layers[-1] == len(self.layers), "a cache needs all layers"
        condition = condition or Condition()
        start = 0 if cache is None else cache[0].length
        x = torch.stack([embed(steps[:, k]) for k, embed in enumerate(self.embeddings)]).sum(dim=0)
        if condition.prefix is not None and start == 0:
            x = torch.cat([condition.prefix.to(x.dtype), x], dim=1)
        length, padding = x.shape[1], condition.padding

        x = x + sinusoid(positions(start, length, padding, x.device), self.config.dim).to(x.dtype)
        mask, causal = causal_mask(start, length, padding, x.device)
        kept = []
        for number in range(len(self.layers) + 1):
            x = x if tap is None else tap(number, "residual", x)
            if number in layers:
                kept.append(x)
            if number == layers[-1]:
                break
            here, own = tap and partial(tap, number), None if cache is None else cache[number]
            x = self.layers[number](x, condition, own, mask, causal, attend, here)
        return kept
