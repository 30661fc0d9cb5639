"""A layer's step in loops that Numba compiles, in float32 or int8: `fast.LayerStep` in less time.

Axes: R rows of x (one for each stream of each sample), D width, H heads, W = D / H, L positions so far.

    x -> norm -> product -> attention -> product, + x -> the same for the text -> norm -> up, GELU, down, + x

In torch such a layer takes 30 small operations in float32 and 75 in int8, where x is rounded before each
product. They read and write the same few kilobytes over and over, and for nano and for int8 take as long as
reading the weights. Here one loop does what belongs together.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mgkit import compiled, rounded
from mgkit.compiled import Array
from mgkit.integers import FEW, Integers, few
from mgkit.linear import joint
from mgkit.lm import LM, Layer
from mgkit.packed import Packed
from mgkit.row_cache import RowCache


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
        """From keys and values [R H, L, W] and their mask [R H or 1, 1, L or 1]."""
        mask = mask[:, 0].expand(keys.shape[:2])
        return cls(*(part.contiguous().numpy() for part in (keys.transpose(1, 2), values, mask)))


class FloatLinear:
    """A linear layer in float32."""

    def __init__(self, weight: Tensor):
        self.weight = weight.detach().numpy()

    def __call__(self, x: Array, add_to: Array | None = None) -> Array:
        """x [R, I] times the transpose of the weight [R, O], added to an array in place if there is one."""
        out = np.empty((len(x), len(self.weight)), np.float32) if add_to is None else add_to
        compiled.product(x, self.weight, out, add_to is not None)
        return out


class Int8Linear:
    """A linear layer in int8, which rounds x."""

    def __init__(self, weight: Tensor):
        assert isinstance(weight, Packed) and isinstance(weight.packed, Integers)
        self.matrix = weight.packed
        self.values, self.units = self.matrix.values.numpy(), self.matrix.units.numpy()

    def __call__(self, x: Array, add_to: Array | None = None) -> Array:
        """As in `FloatLinear`."""
        out = np.empty((len(x), len(self.values)), np.float32) if add_to is None else add_to
        integers, sizes = np.empty(x.shape, np.int8), np.empty(len(x), np.float32)
        rounded.round_rows(x, integers, sizes)
        if few(len(x)):
            rounded.product(integers, sizes, self.values, self.units, out, add_to is not None)
        else:
            products = self.matrix.multiply(torch.from_numpy(integers)).numpy()
            rounded.scale_rows(products, sizes, out, add_to is not None)
        return out


def _linear(weight: Tensor | None) -> FloatLinear | Int8Linear:
    assert weight is not None
    return Int8Linear(weight) if weight.dtype == torch.int8 else FloatLinear(weight)


class Norm:
    """A LayerNorm."""

    def __init__(self, norm: nn.LayerNorm):
        self.gain, self.bias = (part.detach().float().numpy() for part in (norm.weight, norm.bias))

    def __call__(self, x: Array) -> Array:
        """For x [R, D]."""
        out = np.empty_like(x)
        compiled.norm_rows(x, self.gain, self.bias, out)
        return out


class LayerStep:
    """A layer's forward pass for one step of generation, after the first; see `fast.LayerStep`."""

    def __init__(self, layer: Layer, text: bool, rows: int):
        own, forward = layer.attention, layer.feed_forward
        self.norm1, self.norm2 = Norm(layer.norm1), Norm(layer.norm2)
        self.in_proj = _linear(joint([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]))
        self.out_proj = _linear(own.out_proj.weight)
        self.linear1, self.linear2 = _linear(forward.linear1.weight), _linear(forward.linear2.weight)
        if text:
            self.norm_cross = Norm(layer.norm_cross)
            self.cross_q_proj = _linear(layer.cross_attention.q_proj.weight)
            self.cross_out_proj = _linear(layer.cross_attention.out_proj.weight)

    def __call__(self, x: Tensor, cache: RowCache, rows: Rows, text: Text | None) -> Tensor:
        """The residual stream [R, D] after this layer: x itself, changed."""
        stream, (batch, heads, _, width) = x.numpy(), cache.shape
        y = np.empty_like(stream)
        qkv = self.in_proj(self.norm1(stream)).reshape(batch, 3, heads, width)
        compiled.attend(qkv, *cache.arrays, rows.length, rows.mask, y.reshape(batch, heads, width))
        cache.length += 1
        self.out_proj(y, add_to=stream)
        if text is not None:
            query = self.cross_q_proj(self.norm_cross(stream)).reshape(-1, width)
            compiled.attend_text(query, *text, y.reshape(-1, width))
            self.cross_out_proj(y, add_to=stream)
        wide = self.linear1(self.norm2(stream))
        compiled.gelu_rows(wide)
        self.linear2(wide, add_to=stream)
        return x


class Heads:
    """Logits [R, K, V] of the residual stream [R, D]: the last norm and the heads of all codebooks."""

    def __init__(self, lm: LM):
        self.norm, self.count = Norm(lm.norm), len(lm.heads)
        self.linear = _linear(joint([head.weight for head in lm.heads]))

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.linear(self.norm(x.numpy()))
        return torch.from_numpy(logits).unflatten(-1, (self.count, -1))


def usable(lm: LM, rows: int) -> bool:
    """Whether this model's steps are computed here: in int8 by default, in float32 if asked to, of few rows.

    Numba has to work, and weights that multiply the same x have to be one matrix.
    """
    size, dtype = lm.config.dim // lm.config.heads, lm.heads[0].weight.dtype
    if not (dtype == torch.int8 or dtype == torch.float32 and lm.compiled and rows <= FEW):
        return False
    return size % 4 == 0 and compiled.works() and _whole(lm.heads) and all(map(_whole_layer, lm.layers))


def _whole_layer(layer: Layer) -> bool:
    own, forward = layer.attention, layer.feed_forward
    parts = [own.out_proj, forward.linear1, forward.linear2]
    if hasattr(layer, "cross_attention"):
        parts += [layer.cross_attention.q_proj, layer.cross_attention.out_proj]
    return _whole([own.q_proj, own.k_proj, own.v_proj]) and all(_whole([part]) for part in parts)


def _whole(modules: Iterable[nn.Module]) -> bool:
    """Whether the weights of these modules are one matrix."""
    one = joint([module.weight for module in modules])
    if one is None or one.dtype == torch.float32:
        return one is not None
    return isinstance(one, Packed) and isinstance(one.packed, Integers) and one.shape == one.packed.shape
