"""The transformer's step in eight Triton kernels a layer, for a few rows in half precision on CUDA.

Axes: R rows (samples times streams of guidance), K codebooks, D width, H heads, V codebook size.

    x -> norm, q k v -> attention, cache -> out + x -> norm, q -> text -> out + x -> norm, up -> down + x

A step of few rows reads every weight once and computes little, so its time is the memory's plus that of
starting kernels. Norms, GELU and additions are done by the matrix product beside them; attention reads the
keys so far, not the whole cache, and writes the new ones. Sums are in float32, rounded as in the modules.
"""

from functools import cache
from math import sqrt

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from mgkit.linear import joint
from mgkit.lm import LM, Condition, KVCache, Layer
from mgkit.positions import sinusoid

MOST_ROWS = 8  # beyond it the matrix units of cuBLAS are faster
WIDEST = 8192  # inputs of a linear layer, which one program holds
TILE = 4096  # weights that a program reads
PROGRAMS = 256  # of attention, about two for each multiprocessor
KEYS = 64  # that a program of attention reads at once


@triton.jit
def _linear(  # type: ignore[no-untyped-def]
    x,
    weight,
    gain,
    bias,
    out,
    outputs,
    inputs,
    R: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    NORM: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
):
    """OUTPUTS columns of `out` [R, outputs] = (out +) gelu(weight [outputs, inputs] norm(x [R, inputs]))."""
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, INPUTS)
    inside, kept = k < inputs, n < outputs
    both = kept[:, None] & inside[None, :]
    w = tl.load(weight + n[:, None] * inputs + k[None, :], mask=both, other=0.0)
    if NORM:
        g = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(bias + k, mask=inside, other=0.0).to(tl.float32)
    for r in tl.static_range(R):
        row = tl.load(x + r * inputs + k, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            centred = tl.where(inside, row - tl.sum(row, axis=0) / inputs, 0.0)
            variance = tl.sum(centred * centred, axis=0) / inputs
            row = (centred / tl.sqrt(variance + 1e-5) * g + b).to(w.dtype).to(tl.float32)
        y = tl.sum(w.to(tl.float32) * row[None, :], axis=1).to(w.dtype).to(tl.float32)
        if GELU:
            y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
        place = out + r * outputs + n
        if ADD:
            y = y.to(w.dtype).to(tl.float32) + tl.load(place, mask=kept, other=0.0).to(tl.float32)
        tl.store(place, y.to(w.dtype), mask=kept)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query,
    stride,
    keys,
    values,
    begin,
    end,
    out,
    part,
    heads,
    capacity,
    scale,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    NEW: tl.constexpr,
):
    """Attention of one query to keys `begin`..`end`, a part of them per split; see `_join`.

    With NEW, queries, keys and values of the step are beside each other in `query` [R, 3, H, SIZE]; split 0
    attends to the new key too, and writes it into the cache at `end`. Without, `end` is one for each row.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    r = head // heads
    d = tl.arange(0, SIZE)
    at = query + r * stride + (head % heads) * SIZE + d
    q = tl.load(at).to(tl.float32) * scale
    first = tl.load(begin + r)
    if NEW:
        last = tl.load(end)
    else:
        last = tl.load(end + r)
    span = (last - first + SPLITS - 1) // SPLITS
    low = first + split * span
    high = tl.minimum(low + span, last)
    base = head.to(tl.int64) * capacity * SIZE

    top = tl.full((), -1e30, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    sums = tl.zeros((SIZE,), tl.float32)
    if NEW:  # noqa: SIM102, decided when it is compiled
        if split == 0:
            k = tl.load(at + heads * SIZE)
            v = tl.load(at + 2 * heads * SIZE)
            tl.store(keys + base + last * SIZE + d, k)
            tl.store(values + base + last * SIZE + d, v)
            top = tl.sum(q * k.to(tl.float32), axis=0)
            total += 1.0
            sums += v.to(tl.float32)
    for start in range(low, high, BLOCK):
        t = start + tl.arange(0, BLOCK)
        inside = t < high
        places = base + t[:, None] * SIZE + d[None, :]
        k = tl.load(keys + places, mask=inside[:, None], other=0.0).to(tl.float32)
        v = tl.load(values + places, mask=inside[:, None], other=0.0).to(tl.float32)
        score = tl.where(inside, tl.sum(k * q[None, :], axis=1), -1e30)
        higher = tl.maximum(top, tl.max(score, axis=0))
        weight = tl.where(inside, tl.exp(score - higher), 0.0)
        fade = tl.exp(top - higher)
        total = total * fade + tl.sum(weight, axis=0)
        sums = sums * fade + tl.sum(weight[:, None] * v, axis=0)
        top = higher
    if SPLITS == 1:
        tl.store(out + head * SIZE + d, (sums / total).to(out.dtype.element_ty))
    else:
        slot = part + (head * SPLITS + split) * (SIZE + 2)
        tl.store(slot + d, sums)
        tl.store(slot + SIZE, top)
        tl.store(slot + SIZE + 1, total)


@triton.jit
def _join(part, out, SIZE: tl.constexpr, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One head of `out` [R, H * SIZE] from the sums, largest scores and totals of its splits."""
    head = tl.program_id(0)
    d, s = tl.arange(0, SIZE), tl.arange(0, SPLITS)
    slot = part + (head * SPLITS + s) * (SIZE + 2)
    sums = tl.load(slot[:, None] + d[None, :])
    top = tl.load(slot + SIZE)
    fade = tl.exp(top - tl.max(top, axis=0))
    total = tl.sum(tl.load(slot + SIZE + 1) * fade, axis=0)
    tl.store(out + head * SIZE + d, (tl.sum(sums * fade[:, None], axis=0) / total).to(out.dtype.element_ty))


def linear(
    x: Tensor,
    weight: Tensor,
    out: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
    gelu: bool = False,
) -> Tensor:
    """gelu(norm(x) @ weight.T) [R, outputs] of x [R, inputs], added to `out` in place if there is one."""
    outputs, inputs = weight.shape
    add = out is not None
    if out is None:
        out = x.new_empty(len(x), outputs)
    wide = triton.next_power_of_2(inputs)
    columns = max(1, TILE // wide)
    _linear[(triton.cdiv(outputs, columns),)](
        x,
        weight,
        weight if norm is None else norm.weight,
        weight if norm is None else norm.bias,
        out,
        outputs,
        inputs,
        R=len(x),
        OUTPUTS=columns,
        INPUTS=wide,
        NORM=norm is not None,
        GELU=gelu,
        ADD=add,
        num_warps=max(4, columns * wide // 1024),
    )
    return out


class Decoder:
    """A model's layers and heads for one condition, at a position in a tensor, on the model's cache."""

    def __init__(self, lm: LM, condition: Condition, caches: list[KVCache], position: Tensor):
        self.lm, self.caches, self.position = lm, caches, position
        self.rows, self.size = condition.batch, lm.config.dim // lm.config.heads
        device, capacity = lm.device, caches[0].storage.shape[3]
        # The products of one input are one product.
        attentions = [layer.attention for layer in lm.layers]
        self.qkv = [_rows([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]) for a in attentions]
        self.heads = _rows([head.weight for head in lm.heads])
        self.embeddings = _rows([embed.weight for embed in lm.embeddings])
        self.offsets = torch.arange(len(lm.embeddings), device=device) * len(lm.embeddings[0].weight)
        self.positions = sinusoid(torch.arange(capacity, device=device), lm.config.dim).to(lm.dtype)
        self.padding = condition.padding
        zeros = torch.zeros(self.rows, dtype=torch.long, device=device)
        self.begin, self.zeros = zeros if self.padding is None else self.padding, zeros
        text = [cache.text for cache in caches if cache.text is not None]
        self.text = [(keys.contiguous(), values.contiguous()) for keys, values in text]
        mask = condition.cross_mask
        if self.text and mask is None:
            mask = torch.ones(self.rows, self.text[0][0].shape[2], dtype=torch.bool, device=device)
        self.text_end = None if mask is None else mask.sum(dim=1)
        self.splits = max(1, triton.next_power_of_2(PROGRAMS // (self.rows * lm.config.heads) + 1) // 2)

    def logits(self, new: Tensor) -> Tensor:
        """Logits [R, K, V], float32, of the tokens `new` [R, K] at the position; the cache grows by them."""
        x = F.embedding(new + self.offsets, self.embeddings).sum(dim=1)
        place = self.position if self.padding is None else (self.position - self.padding).clamp(min=0)
        x = x + self.positions.index_select(0, place)
        for i, layer in enumerate(self.lm.layers):
            x = self._layer(x, i, layer)
        return linear(x, self.heads, norm=self.lm.norm).view(self.rows, len(self.lm.heads), -1).float()

    def _layer(self, x: Tensor, i: int, layer: Layer) -> Tensor:
        qkv = linear(x, self.qkv[i], norm=layer.norm1)
        keys, values = self.caches[i].storage
        y = self._attend(qkv, keys, values, self.begin, self.position, self.splits, new=True)
        linear(y, layer.attention.out_proj.weight, x)
        if self.text:
            cross = layer.cross_attention
            query = linear(x, cross.q_proj.weight, norm=layer.norm_cross)
            y = self._attend(query, *self.text[i], self.zeros, self.text_end, splits=1, new=False)
            linear(y, cross.out_proj.weight, x)
        wide = linear(x, layer.feed_forward.linear1.weight, norm=layer.norm2, gelu=True)
        return linear(wide, layer.feed_forward.linear2.weight, x)

    def _attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        begin: Tensor,
        end: Tensor,
        splits: int,
        new: bool,
    ) -> Tensor:
        heads = self.lm.config.heads
        out = query.new_empty(self.rows, heads * self.size)
        part = out.new_empty(self.rows * heads * splits, self.size + 2, dtype=torch.float32)
        _attend[(self.rows * heads, splits)](
            query,
            query.shape[1],
            keys,
            values,
            begin,
            end,
            out,
            part,
            heads,
            keys.shape[2],
            1 / sqrt(self.size),
            SIZE=self.size,
            BLOCK=KEYS,
            SPLITS=splits,
            NEW=new,
        )
        if splits > 1:
            _join[(self.rows * heads,)](part, out, SIZE=self.size, SPLITS=splits)
        return out


def _rows(weights: list[Tensor]) -> Tensor:
    """The rows of all weights as one matrix, a copy if they are not adjacent."""
    whole = joint(weights)
    return torch.cat(weights) if whole is None else whole


def usable(lm: LM, condition: Condition) -> bool:
    """Whether these kernels compute this model's step here."""
    size = lm.config.dim // lm.config.heads
    return (
        lm.dtype in (torch.float16, torch.bfloat16)
        and condition.batch <= MOST_ROWS
        and max(lm.config.dim, lm.config.feed_forward) <= WIDEST
        and size >= 16
        and size == triton.next_power_of_2(size)
        and compiles(lm.device)
    )


@cache
def compiles(device: torch.device) -> bool:
    """Whether Triton works on the device: it needs a C compiler, and the kernel has to be right."""
    x, weight = torch.randn(2, 64, device=device).half(), torch.randn(32, 64, device=device).half()
    try:
        found = linear(x, weight)
    except Exception:
        # Any failure of a compiler that may not be installed; the modules do the same more slowly.
        return False
    return torch.allclose(found, F.linear(x, weight), rtol=1e-2, atol=1e-2)
