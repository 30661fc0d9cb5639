"""What a step in int8 computes, in loops that Numba compiles; `int8` puts them together.

Axes: R rows (one for each stream of each sample), D width, H heads, W = D / H, L positions, I and O widths
of a linear layer, weight [O, I].

    x float32 [R, I]  =  integers int8 [R, I] * sizes [R] / LEVELS      the largest value of a row is its size

Every row is computed as if it were alone, and no sum depends on the number of threads. A loop is compiled
when it is first called on a machine (all of them take about five seconds); Numba keeps the results beside
this file, or in the user's cache where that is not allowed.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from math import sqrt
from typing import Any, TypeAlias

import numba
import numpy as np
import torch
from numba import prange

Array: TypeAlias = np.ndarray
config: Any = numba.config
f32, i32, u32 = np.float32, np.int32, np.uint32
# Integers on either side of 0. Without VNNI instructions oneDNN sums two products in 16 bits.
LEVELS = f32(127 if torch.cpu._is_vnni_supported() else 63)
LEAST = f32(1e-30)  # size of a row, so that a row of zeros can be divided by it
EXPONENT = f32(2.0**112)  # what the bits of a float16 are worth in the places of a float32


def _threadsafe() -> bool:
    """Whether Numba can divide a loop among threads here; two callers of its `workqueue` end the process."""
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    return config.THREADING_LAYER != "workqueue"


EXACT: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
# Sums in any order. NaN and infinity keep their meaning: they tell that a model overflows.
FREE = EXACT | {"fastmath": {"reassoc", "contract", "nsz"}}
Decorator: TypeAlias = Callable[[Callable], Callable]
loop: Decorator = numba.njit(**FREE)
parallel: Decorator = numba.njit(**FREE, parallel=_threadsafe())
exact: Decorator = numba.njit(**EXACT, parallel=_threadsafe())


def share() -> None:
    """Divide the calling thread's loops among as many threads as its torch operations."""
    numba.set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))


# --- rounding ----------------------------------------------------------------------------------------------


@loop
def _round(x: Array, integers: Array) -> np.float32:
    """Round x [I] to `integers` [I]; its size."""
    bits, most = x.view(np.uint32), u32(0)
    for i in range(x.size):
        # As integers, absolute values are in the same order, and NaN is the largest: it is not lost.
        most = max(most, bits[i] & u32(0x7FFFFFFF))
    size = max(u32(most).view(np.float32), LEAST)
    scale = LEVELS / size
    for i in range(x.size):
        integers[i] = np.int8(np.rint(x[i] * scale))
    return size


@loop
def round_rows(x: Array, integers: Array, sizes: Array) -> None:
    """Round x [R, I]."""
    for r in range(len(x)):
        sizes[r] = _round(x[r], integers[r])


@loop
def norm_rows(x: Array, gain: Array, bias: Array, integers: Array, sizes: Array) -> None:
    """Round the LayerNorm of x [R, D]."""
    width = f32(x.shape[1])
    y = np.empty(x.shape[1], f32)
    for r in range(len(x)):
        mean = f32(0)
        for i in range(y.size):
            mean += x[r, i]
        mean /= width
        variance = f32(0)
        for i in range(y.size):
            variance += (x[r, i] - mean) * (x[r, i] - mean)
        scale = f32(1) / np.sqrt(variance / width + f32(1e-5))
        for i in range(y.size):
            y[i] = (x[r, i] - mean) * scale * gain[i] + bias[i]
        sizes[r] = _round(y, integers[r])


@loop
def gelu_rows(x: Array, integers: Array, sizes: Array) -> None:
    """Round the exact (erf) GELU of x [R, I], which it overwrites."""
    for r in range(len(x)):
        for i in range(x.shape[1]):
            # erf to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
            z = abs(x[r, i]) * f32(sqrt(0.5))
            t = f32(1) / (f32(1) + f32(0.3275911) * z)
            sums = ((f32(1.061405429) * t - f32(1.453152027)) * t + f32(1.421413741)) * t - f32(0.284496736)
            tail = f32(0.5) * (sums * t + f32(0.254829592)) * t * _exp(-z * z)
            x[r, i] *= tail if x[r, i] < 0 else f32(1) - tail
        sizes[r] = _round(x[r], integers[r])


@loop
def _exp(x: np.float32) -> np.float32:
    """e to the power of x <= 0, to 2e-7: a whole power of two times a polynomial for the rest.

    NumPy's would be called once for each number; this is computed for sixteen at a time.
    """
    x = max(x, f32(-87)) * f32(1 / np.log(2))
    whole = np.rint(x)
    y = (x - whole) * f32(np.log(2))
    rest = ((((y / f32(720) + f32(1 / 120)) * y + f32(1 / 24)) * y + f32(1 / 6)) * y + f32(0.5)) * y + f32(1)
    return (rest * y + f32(1)) * u32((i32(whole) + i32(127)) << i32(23)).view(np.float32)


# --- products ----------------------------------------------------------------------------------------------


@exact
def product(integers: Array, sizes: Array, weight: Array, units: Array, out: Array, add: bool) -> None:
    """Set `out` [R, O] to, or `add` to it, rounded rows times the transpose of weight [O, I] * units [O].

    `units` are the scales of the int8 weight over LEVELS. Its rows are read once for two rows of x.
    """
    rows = len(integers)
    for o in prange(len(weight)):
        row, unit = weight[o], units[o]
        for r in range(0, rows, 2):
            # Of an odd number of rows the last is computed twice.
            s = min(r + 1, rows - 1)
            x, y = integers[r], integers[s]
            a, b = i32(0), i32(0)
            for i in range(row.size):
                w = i32(row[i])
                a = i32(a + i32(w * i32(x[i])))
                b = i32(b + i32(w * i32(y[i])))
            first, second = (out[r, o], out[s, o]) if add else (f32(0), f32(0))
            out[r, o] = first + f32(a) * unit * sizes[r]
            out[s, o] = second + f32(b) * unit * sizes[s]


@exact
def scale_rows(products: Array, sizes: Array, out: Array, add: bool) -> None:
    """The end of `product`, for products [R, O] * units that oneDNN made: to the last bit the same."""
    for r in prange(len(products)):
        for o in range(products.shape[1]):
            out[r, o] = (out[r, o] if add else f32(0)) + products[r, o] * sizes[r]


# --- attention ---------------------------------------------------------------------------------------------


@loop
def to_half(x: np.float32) -> np.int16:
    """The bits of the float16 nearest to x; of 65504 for anything larger. Numba does not know the type."""
    bits = f32(min(max(x, f32(-65504)), f32(65504)) / EXPONENT).view(np.int32)
    rounded = i32((bits & i32(0x7FFFFFFF)) + i32(0xFFF) + ((bits >> i32(13)) & i32(1))) >> i32(13)
    return np.int16(rounded | ((bits >> i32(16)) & i32(0x8000)))


@loop
def from_half(bits: np.int16) -> np.float32:
    """The number with these bits of a float16, over EXPONENT."""
    # Moved to the left, the sign is spread over four bits, of which three belong to the exponent.
    return u32((i32(bits) << i32(13)) & i32(-0x70002000)).view(np.float32)


@loop
def _softmax(scores: Array) -> None:
    largest, total = scores.max(), f32(0)
    for t in range(scores.size):
        scores[t] = _exp(scores[t] - largest)
        total += scores[t]
    for t in range(scores.size):
        scores[t] /= total


@parallel
def attend(qkv: Array, keys: Array, values: Array, length: int, mask: Array, out: Array) -> None:
    """Attention of one step to `length` positions of a `fast.RowCache`; the last of them it writes itself.

    qkv [R, 3, H, W]; keys [R, H, blocks, W, BLOCK] and values [R, H, capacity, W], bits of float16; mask
    [R, L] is added to the scores; out [R, H, W]. W is a multiple of 4.
    """
    _, heads, blocks, width, size = keys.shape
    scale = EXPONENT / f32(sqrt(width))
    last, place = divmod(length - 1, size)
    for row in prange(len(qkv) * heads):
        r, h = divmod(np.int64(row), heads)
        query, sums = qkv[r, 0, h], out[r, h]
        for d in range(width):
            keys[r, h, last, d, place] = to_half(qkv[r, 1, h, d])
            values[r, h, length - 1, d] = to_half(qkv[r, 2, h, d])
        scores = np.zeros(blocks * size, f32)
        for block in range(last + 1):
            part, key = scores[block * size : (block + 1) * size], keys[r, h, block]
            for d in range(0, width, 4):  # four at a time, so that `part` is read and written less often
                a, b = query[d] * scale, query[d + 1] * scale
                c, e = query[d + 2] * scale, query[d + 3] * scale
                for t in range(size if block < last else place + 1):
                    part[t] += a * from_half(key[d, t]) + b * from_half(key[d + 1, t])
                    part[t] += c * from_half(key[d + 2, t]) + e * from_half(key[d + 3, t])
        weights = scores[:length]
        for t in range(length):
            weights[t] += mask[r, t]
        _softmax(weights)
        value, whole = values[r, h], length - length % 4
        sums[:] = f32(0)
        for t in range(0, whole, 4):
            a, b = weights[t] * EXPONENT, weights[t + 1] * EXPONENT
            c, e = weights[t + 2] * EXPONENT, weights[t + 3] * EXPONENT
            for d in range(width):
                sums[d] += a * from_half(value[t, d]) + b * from_half(value[t + 1, d])
                sums[d] += c * from_half(value[t + 2, d]) + e * from_half(value[t + 3, d])
        for t in range(whole, length):
            for d in range(width):
                sums[d] += weights[t] * EXPONENT * from_half(value[t, d])


@parallel
def attend_text(query: Array, keys: Array, values: Array, mask: Array, out: Array) -> None:
    """Attention of query [R H, W] to keys [R H, W, L] and values [R H, L, W], float32; out [R H, W].

    mask [R H, L] is added to the scores.
    """
    _, width, length = keys.shape
    scale = f32(1 / sqrt(width))
    for row in prange(len(query)):
        scores, sums = np.zeros(length, f32), out[row]
        for d in range(width):
            for t in range(length):
                scores[t] += query[row, d] * scale * keys[row, d, t]
        for t in range(length):
            scores[t] += mask[row, t]
        _softmax(scores)
        sums[:] = f32(0)
        for t in range(length):
            for d in range(width):
                sums[d] += scores[t] * values[row, t, d]


@cache
def works() -> bool:
    """Whether Numba compiles these loops here, and they multiply right."""
    if config.DISABLE_JIT:
        return False
    x = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    weight = (np.arange(6 * 64) % 255 - 127).astype(np.int8).reshape(6, 64)
    integers, sizes, out = np.empty((2, 64), np.int8), np.empty(2, np.float32), np.empty((2, 6), np.float32)
    try:
        round_rows(x, integers, sizes)
        product(integers, sizes, weight, np.full(6, 1 / LEVELS, np.float32), out, False)
    except Exception:
        # Whatever a compiler may lack; torch does the same more slowly.
        return False
    expected = x @ weight.T
    return bool(np.allclose(out, expected, atol=0.02 * abs(expected).max()))
