"""The language model's step on a CPU, as fast as memory allows: the arithmetic of `lm.py` in fewer calls.

Axes: B batch, K codebooks, S steps so far, D width, H heads, V codebook size.

    Layer.forward, a call for each module     LayerStep.__call__
    q, k, v: three products                   one, if their weights are adjacent in memory
    GELU, residual additions: three passes    inside the products
    attention to S steps: a general kernel    two weighted sums of rows, at the speed of memory

Both give the same numbers up to rounding (1e-6). The fast one calls no module. So that a forward hook, an
exchanged module, a replaced method or a tap has its effect, `Step` calls `LM` if there is any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.utils.hooks import RemovableHandle

from mgkit.linear import Linear, joint, linear, linear_add, linear_gelu, reordered
from mgkit.lm import LM, Attention, Condition, FeedForward, KVCache, Layer, Tap
from mgkit.packed import Packed
from mgkit.positions import positions, sinusoid
from mgkit.row_cache import RowCache

FEW = 2048  # heads times positions, up to which two matrix products attend fastest
STEADY = 8  # rows, up to which oneDNN's sums do not depend on the number of threads
Norm: TypeAlias = tuple[Tensor, Tensor]
"""Gain and bias of a LayerNorm."""


class Rows:
    """Which rows of a `RowCache` an attention adds up; the same in every layer."""

    def __init__(self, cache: RowCache, length: int, mask: Tensor | None):
        """Attention to the first `length` positions; `mask` [B, capacity] or None is added to the scores."""
        batch, heads, capacity, width = cache.shape
        bags, blocks = batch * heads, -(-length // cache.block)
        self.length, self.blocks = length, blocks
        self.mask = torch.zeros(1, 1, 1, dtype=torch.float32) if mask is None else mask[:, None, :length]
        # In float32 a matrix product is faster as long as there is little to read.
        self.few = cache.keys.dtype == torch.float32 and blocks == 1 and bags * length <= FEW
        if self.few:
            self.mask = self.mask.repeat_interleave(heads, dim=0) if mask is not None else self.mask
            return
        first = torch.arange(bags, dtype=torch.int32)[:, None]
        rows = torch.arange(blocks * width, dtype=torch.int32)
        self.keys = (first * (cache.keys.shape[2] * width) + rows).flatten()
        self.key_bags = torch.arange(bags * blocks + 1, dtype=torch.int32) * width
        self.values = (first * capacity + torch.arange(length, dtype=torch.int32)).flatten()
        self.value_bags = torch.arange(bags + 1, dtype=torch.int32) * length

    def attend(self, query: Tensor, cache: RowCache) -> Tensor:
        """The attention's output [B, D] for a query [B, H, D / H]."""
        batch, heads, _, width = cache.shape
        if self.few:
            keys, values = cache.keys[:, :, 0, :, : self.length], cache.values[:, :, : self.length]
            return attend(query, keys.flatten(0, 1), values.flatten(0, 1), self.mask)
        query = query[:, :, None].expand(-1, -1, self.blocks, -1)
        scores = _sums(cache.keys.view(-1, cache.block), self.keys, self.key_bags, query)
        scores = scores.view(batch, heads, -1)[..., : self.length]
        weights = torch.add(self.mask, scores, alpha=width**-0.5).softmax(dim=-1)
        sums = _sums(cache.values.view(-1, width), self.values, self.value_bags, weights)
        return sums.float().view(batch, -1)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The attention's output [B, D] of a query [B, H, D / H] to few positions, by two matrix products.

    `keys` [B * H, D / H, L] and `values` [B * H, L, D / H]; `mask` [B * H, 1, L] is added to the scores.
    """
    batch, heads, width = query.shape
    scores = torch.baddbmm(mask, query.reshape(-1, 1, width), keys, alpha=width**-0.5)
    return torch.bmm(scores.softmax(dim=-1), values).view(batch, -1)


def _sums(table: Tensor, rows: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """For each bag the sum of weight * row over its rows of the table; bag i begins at rows[bags[i]]."""
    weights = weights.reshape(-1).to(table.dtype)
    return torch.embedding_bag(table, rows, bags, False, 0, False, weights, True)[0]


@dataclass(frozen=True)
class Text:
    """What a layer attends to of the texts, as `attend` takes it."""

    keys: Tensor
    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, mask: Tensor) -> "Text":
        """From keys and values [B * H, L, D / H] and their mask [B * H or 1, 1, L or 1]."""
        return cls(keys.transpose(1, 2).contiguous(), values, mask)


class LayerStep:
    """A layer's forward pass for one step of generation, after the first."""

    def __init__(self, layer: Layer, text: bool, rows: int):
        own = layer.attention
        self.norm1, self.norm2 = _norm(layer.norm1), _norm(layer.norm2)
        self.in_proj = [own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]
        one = joint(self.in_proj)
        self.joint_in_proj = None if one is None else reordered(one, rows)
        self.out_proj = reordered(own.out_proj.weight, rows)
        # Another order is no faster for linear1, which has four times as many outputs as inputs.
        self.linear1 = layer.feed_forward.linear1.weight
        self.linear2 = reordered(layer.feed_forward.linear2.weight, rows)
        if text:
            self.norm_cross = _norm(layer.norm_cross)
            self.cross_q_proj = layer.cross_attention.q_proj.weight
            self.cross_out_proj = layer.cross_attention.out_proj.weight

    def __call__(self, x: Tensor, cache: RowCache, rows: Rows, text: Text | None) -> Tensor:
        """The residual stream [B, D] after this layer."""
        batch, heads, _, width = cache.shape
        y = _normalize(x, self.norm1)
        if self.joint_in_proj is not None:
            query, key, value = linear(y, self.joint_in_proj).view(batch, 3, heads, width).unbind(1)
        else:
            query, key, value = (linear(y, weight).view(batch, heads, width) for weight in self.in_proj)
        cache.put(key, value)
        x = linear_add(rows.attend(query, cache), self.out_proj, x)
        if text is not None:
            query = linear(_normalize(x, self.norm_cross), self.cross_q_proj).view(batch, heads, width)
            x = linear_add(attend(query, text.keys, text.values, text.mask), self.cross_out_proj, x)
        y = linear_gelu(_normalize(x, self.norm2), self.linear1)
        return linear_add(y, self.linear2, x)


class Heads:
    """Logits [B, K, V] of the residual stream [B, D]: the last norm and the heads of all codebooks."""

    def __init__(self, lm: LM):
        self.norm, self.weights = _norm(lm.norm), [head.weight for head in lm.heads]
        self.joint = joint(self.weights)

    def __call__(self, x: Tensor) -> Tensor:
        x = _normalize(x, self.norm)
        if self.joint is not None:
            return linear(x, self.joint).unflatten(-1, (len(self.weights), -1))
        return torch.stack([linear(x, weight) for weight in self.weights], dim=1)


def _norm(module: nn.LayerNorm) -> Norm:
    return module.weight.float(), module.bias.float()


def _normalize(x: Tensor, norm: Norm) -> Tensor:
    return torch.layer_norm(x, x.shape[-1:], *norm)


class Step:
    """The steps of one window for one batch of conditions, with their cache.

    A call takes the next steps [B, K, S] and gives the logits [B, K, V] after the last of them, float32.
    """

    @torch.no_grad()
    def __init__(self, lm: LM, condition: Condition, length: int, plain: bool = False):
        """The cache has room for `length` positions, prefix included. If `plain`, every step calls `lm`."""
        self.lm, self.condition, config = lm, condition, lm.config
        self.modules = list(lm.modules())
        self._unhooked: int | None = None  # the number of handles of hooks when there was none on the model
        packed = isinstance(getattr(lm.heads[0], "weight", None), Packed)
        plain = plain or lm.device.type != "cpu" or not (packed or lm.dtype == torch.float32)
        if plain or not as_published(self.modules):
            self.cache: list[KVCache] = lm.cache(condition.batch, length)
            return
        layer_step, self._rows, self._text, heads = _ways(lm, condition.batch)
        self._by_torch, text = layer_step is LayerStep, condition.cross is not None
        # Half the memory to read, where the weights are rounded more coarsely already; compiled, a quarter.
        number = torch.float16 if packed else torch.float32
        number = number if self._by_torch else lm.heads[0].weight.dtype
        shape = (condition.batch, config.heads, length, config.dim // config.heads)
        self.rows = [RowCache(shape, number) for _ in lm.layers]
        self.cache = [*self.rows]
        self.layers = [layer_step(layer, text, condition.batch) for layer in lm.layers]
        self.texts: list[Any] = []  # after the first step
        self.heads = heads(lm)
        self.embeddings = [table.weight for table in lm.embeddings]
        self.joint_embeddings = joint(self.embeddings)
        self.first = torch.arange(len(self.embeddings)) * len(self.embeddings[0])
        self.mask = None
        if condition.padding is not None:
            self.mask = _mask(torch.arange(length) >= condition.padding[:, None])
        self.positions = sinusoid(positions(0, length, condition.padding, lm.device), config.dim)

    @property
    def steady(self) -> bool:
        """Whether steps after the first give the same bits in any number of threads."""
        if not isinstance(self.cache[0], RowCache):
            return False
        return self.condition.batch <= STEADY or not self._by_torch

    def __call__(self, steps: Tensor, tap: Tap | None = None) -> Tensor:
        first = self.cache[0].length == 0 or steps.shape[-1] > 1
        if first or tap is not None or not isinstance(self.cache[0], RowCache) or self._hooked():
            return self.lm(steps, self.condition, self.cache, last_only=True, tap=tap)[:, :, 0]
        with torch.no_grad():
            return self._fast(steps[..., 0])

    def _hooked(self) -> bool:
        """Whether a hook is on the model; looks only if any was registered since there was none."""
        if self._unhooked == RemovableHandle.next_id:
            return False
        found = hooked(self.modules)
        self._unhooked = None if found else RemovableHandle.next_id
        return found

    def _fast(self, tokens: Tensor) -> Tensor:
        """The logits [B, K, V] after one step of tokens [B, K]."""
        if self.joint_embeddings is not None:
            embedded = F.embedding(tokens + self.first, self.joint_embeddings)
        else:
            embedded = torch.stack(
                [F.embedding(tokens[:, k], table) for k, table in enumerate(self.embeddings)], dim=1
            )
        x = embedded.sum(dim=1) + self.positions[..., self.cache[0].length, :]
        rows = self._rows(self.rows[0], self.rows[0].length + 1, self.mask)
        for layer, cache, text in zip(self.layers, self.rows, self._texts(), strict=True):
            x = layer(x, cache, rows, text)
        return self.heads(x)

    def _texts(self) -> Sequence[Any]:
        """The keys and values of the text in every layer, which the first step left in the cache."""
        if not self.texts:
            allowed, mask = self.condition.text_mask, torch.zeros(1, 1, 1, dtype=torch.float32)
            if allowed is not None:
                mask = _mask(allowed[:, 0]).repeat_interleave(self.lm.config.heads, dim=0)
            for cache in self.rows:
                text = cache.text and [part.float().flatten(0, 1) for part in cache.text]
                self.texts.append(text and self._text.of(*text, mask))
        return self.texts


def _ways(lm: LM, rows: int) -> tuple[Any, Any, Any, Any]:
    """LayerStep, Rows, Text and Heads for this model: of this file, or of `compiled_step`."""
    if lm.compiled or getattr(lm.heads[0], "weight", lm.norm.weight).dtype == torch.int8:
        # Not above: Numba takes half a second to import.
        from mgkit import compiled_step as step

        if step.usable(lm, rows):
            return step.LayerStep, step.Rows, step.Text, step.Heads
    return LayerStep, Rows, Text, Heads


def _mask(allowed: Tensor) -> Tensor:
    """What to add to scores: 0 where it is allowed to attend, else minus infinity."""
    return torch.zeros(allowed.shape, dtype=torch.float32).masked_fill(~allowed, -torch.inf)


# --- whether anything would notice -------------------------------------------------------------------------

KINDS = (LM, Layer, Attention, FeedForward, Linear, nn.LayerNorm, nn.Embedding, nn.ModuleList)
PUBLISHED = {kind: dict(vars(kind)) for kind in KINDS}
METHODS = {"forward", "hidden", "residuals", "logits", "keys_values"}


def as_published(modules: list[nn.Module]) -> bool:
    """Whether a language model consists of mgkit's own modules, none exchanged and no method replaced."""
    return all(
        type(module) in PUBLISHED
        and not METHODS & vars(module).keys()
        and (type(module) is not Linear or module.bias is None)
        for module in modules
    ) and all(vars(kind) == attributes for kind, attributes in PUBLISHED.items())


def hooked(modules: list[nn.Module]) -> bool:
    """Whether a forward hook is registered on any of the modules, or on all modules."""
    return bool(every_module._global_forward_hooks or every_module._global_forward_pre_hooks) or any(
        module._forward_hooks or module._forward_pre_hooks for module in modules
    )
