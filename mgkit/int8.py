"""A layer's step in int8, by the loops of `compiled`: the same as `fast.LayerStep`, in a third of the time.

Axes: R rows of x (one for each stream of each sample), D width, H heads, W = D / H, L positions so far.

    x -> norm, round -> product -> attention -> round -> product, + x -> the same for the text, up and down

In torch such a layer takes 75 small operations, which read and write the same few kilobytes over and over:
together they take as long as reading the weights. Here one loop does what belongs together.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from mgkit import compiled
from mgkit.compiled import Array
from mgkit.integers import Integers, few
from mgkit.linear import joint
from mgkit.lm import LM, Layer
from mgkit.packed import Packed
from mgkit.row_cache import RowCache

Rounded: TypeAlias = tuple[Array, Array]
"""Integers [R, I] and the sizes [R] of the rows."""


class Rows:
    """The first `length` positions of a cache; `mask` [R, capacity] is added to the scores."""

    def __init__(self, cache: RowCache, length: int, mask: Tensor | None):
        self.length = length
        self.mask = np.zeros((cache.shape[0], length), np.float32) if mask is None else mask.numpy()
        compiled.share()


class Text(NamedTuple):
    """What a layer attends to of the texts, as `attend_text` takes it."""

    keys: Array
    values: Array
    mask: Array

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, mask: Tensor) -> "Text":
        """From keys and values [R, H, L, W] and their mask [R H or 1, 1, L or 1]."""
        keys, values = keys.float().flatten(0, 1), values.float().flatten(0, 1)
        mask = mask[:, 0].expand(keys.shape[:2])
        return cls(*(part.contiguous().numpy() for part in (keys.transpose(1, 2), values, mask)))


class LinearStep:
    """A linear layer for a few rows."""

    def __init__(self, weight: Tensor | None):
        assert isinstance(weight, Packed) and isinstance(weight.packed, Integers)
        self.matrix = weight.packed
        self.values, self.units = self.matrix.values.numpy(), self.matrix.units.numpy()

    def __call__(self, x: Rounded) -> Array:
        """x times the transpose of the weight [R, O]."""
        out = np.empty((len(x[0]), len(self.values)), np.float32)
        self._into(out, x, False)
        return out

    def add(self, x: Rounded, out: Array) -> None:
        """Add x times the transpose of the weight to `out` [R, O]."""
        self._into(out, x, True)

    def _into(self, out: Array, x: Rounded, add: bool) -> None:
        integers, sizes = x
        if few(len(integers)):
            compiled.product(integers, sizes, self.values, self.units, out, add)
        else:
            compiled.scale_rows(self.matrix.multiply(torch.from_numpy(integers)).numpy(), sizes, out, add)


class NormStep:
    """A LayerNorm, its result rounded."""

    def __init__(self, norm: nn.LayerNorm):
        self.gain, self.bias = (part.detach().float().numpy() for part in (norm.weight, norm.bias))

    def __call__(self, x: Array) -> Rounded:
        """For x [R, D]."""
        integers, sizes = _empty(x)
        compiled.norm_rows(x, self.gain, self.bias, integers, sizes)
        return integers, sizes


class LayerStep:
    """A layer's forward pass for one step of generation, after the first; see `fast.LayerStep`."""

    def __init__(self, layer: Layer, text: bool, rows: int):
        own = layer.attention
        in_proj = joint([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])
        self.in_proj, self.out_proj = LinearStep(in_proj), LinearStep(own.out_proj.weight)
        self.linear1 = LinearStep(layer.feed_forward.linear1.weight)
        self.linear2 = LinearStep(layer.feed_forward.linear2.weight)
        self.norm1, self.norm2 = NormStep(layer.norm1), NormStep(layer.norm2)
        if text:
            self.norm_cross = NormStep(layer.norm_cross)
            self.cross_q_proj = LinearStep(layer.cross_attention.q_proj.weight)
            self.cross_out_proj = LinearStep(layer.cross_attention.out_proj.weight)

    def __call__(self, x: Tensor, cache: RowCache, rows: Rows, text: Text | None) -> Tensor:
        """The residual stream [R, D] after this layer: x itself, changed."""
        stream, (batch, heads, _, width) = x.numpy(), cache.shape
        y = np.empty((batch, heads, width), np.float32)
        qkv = self.in_proj(self.norm1(stream)).reshape(batch, 3, heads, width)
        compiled.attend(qkv, *cache.bits, rows.length, rows.mask, y)
        cache.length += 1
        self.out_proj.add(_rounded(y.reshape(batch, -1)), stream)
        if text is not None:
            query = self.cross_q_proj(self.norm_cross(stream))
            compiled.attend_text(query.reshape(-1, width), *text, y.reshape(-1, width))
            self.cross_out_proj.add(_rounded(y.reshape(batch, -1)), stream)
        wide = self.linear1(self.norm2(stream))
        integers, sizes = _empty(wide)
        compiled.gelu_rows(wide, integers, sizes)
        self.linear2.add((integers, sizes), stream)
        return x


def _empty(x: Array) -> Rounded:
    return np.empty(x.shape, np.int8), np.empty(len(x), np.float32)


def _rounded(x: Array) -> Rounded:
    integers, sizes = _empty(x)
    compiled.round_rows(x, integers, sizes)
    return integers, sizes


def usable(lm: LM) -> bool:
    """Whether this model's steps can be computed here: Numba works, and each weight is a whole matrix."""
    return compiled.works() and lm.config.dim // lm.config.heads % 4 == 0 and all(map(_whole, lm.layers))


def _whole(layer: Layer) -> bool:
    own, forward = layer.attention, layer.feed_forward
    weights = [own.out_proj.weight, forward.linear1.weight, forward.linear2.weight]
    weights.append(joint([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]))
    if hasattr(layer, "cross_attention"):
        weights += [layer.cross_attention.q_proj.weight, layer.cross_attention.out_proj.weight]
    return all(
        isinstance(weight, Packed)
        and isinstance(weight.packed, Integers)
        and weight.shape == weight.packed.shape
        for weight in weights
    )
