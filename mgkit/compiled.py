"""What a layer does in a step, in loops that Numba compiles: float32, of few rows; for int8 see `rounded`.

Axes: R rows (one for each stream of each sample), D width, H heads, W = D / H, L positions, I and O widths
of a linear layer, weight [O, I].

Every row is computed as if it were alone, and no sum depends on the number of threads. A loop is compiled
when it is first called on a machine (all of them take some five seconds); Numba keeps the results beside this
file, or in the user's cache where that is not allowed.
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


# --- norm, GELU, product -----------------------------------------------------------------------------------


@loop
def norm(x: Array, gain: Array, bias: Array, out: Array) -> None:
    """The LayerNorm of x [D]."""
    mean, variance, width = f32(0), f32(0), f32(x.size)
    for i in range(x.size):
        mean += x[i]
    mean /= width
    for i in range(x.size):
        variance += (x[i] - mean) * (x[i] - mean)
    scale = f32(1) / np.sqrt(variance / width + f32(1e-5))
    for i in range(x.size):
        out[i] = (x[i] - mean) * scale * gain[i] + bias[i]


@loop
def norm_rows(x: Array, gain: Array, bias: Array, out: Array) -> None:
    """The LayerNorm of x [R, D]."""
    for r in range(len(x)):
        norm(x[r], gain, bias, out[r])


@loop
def gelu(x: Array) -> None:
    """Replace x [I] by its exact (erf) GELU."""
    for i in range(x.size):
        # erf to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
        z = abs(x[i]) * f32(sqrt(0.5))
        t = f32(1) / (f32(1) + f32(0.3275911) * z)
        sums = ((f32(1.061405429) * t - f32(1.453152027)) * t + f32(1.421413741)) * t - f32(0.284496736)
        tail = f32(0.5) * (sums * t + f32(0.254829592)) * t * _exp(-z * z)
        x[i] *= tail if x[i] < 0 else f32(1) - tail


@loop
def gelu_rows(x: Array) -> None:
    """Replace x [R, I] by its exact (erf) GELU."""
    for r in range(len(x)):
        gelu(x[r])


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


@parallel
def product(x: Array, weight: Array, out: Array, add: bool) -> None:
    """Set `out` [R, O] to, or `add` to it, x [R, I] times the transpose of weight [O, I].

    The weight is read from memory once, a row of it for two rows of x.
    """
    rows = len(x)
    for o in prange(len(weight)):
        row = weight[o]
        for r in range(0, rows, 2):
            # Of an odd number of rows the last is computed twice.
            s = min(r + 1, rows - 1)
            y, z = x[r], x[s]
            a, b = f32(0), f32(0)
            for i in range(row.size):
                a += row[i] * y[i]
                b += row[i] * z[i]
            first, second = (out[r, o], out[s, o]) if add else (f32(0), f32(0))
            out[r, o] = first + a
            out[s, o] = second + b


# --- float16, which Numba does not know --------------------------------------------------------------------


@loop
def to_half(x: np.float32) -> np.int16:
    """The bits of the float16 nearest to x; of 65504 for anything larger."""
    bits = f32(min(max(x, f32(-65504)), f32(65504)) / EXPONENT).view(np.int32)
    rounded = i32((bits & i32(0x7FFFFFFF)) + i32(0xFFF) + ((bits >> i32(13)) & i32(1))) >> i32(13)
    return np.int16(rounded | ((bits >> i32(16)) & i32(0x8000)))


@loop
def from_half(bits: np.int16) -> np.float32:
    """The number with these bits of a float16, over EXPONENT."""
    # Moved to the left, the sign is spread over four bits, of which three belong to the exponent.
    return u32((i32(bits) << i32(13)) & i32(-0x70002000)).view(np.float32)


@loop
def _read(bits: int, half: bool) -> np.float32:
    """The number with these bits of a float16, over EXPONENT, or of a float32."""
    return from_half(bits) if half else i32(bits).view(np.float32)


@loop
def _bits(x: np.float32, half: bool) -> np.int32:
    """The bits of x as a float16 or float32."""
    return i32(to_half(x)) if half else f32(x).view(np.int32)


# --- attention ---------------------------------------------------------------------------------------------


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
    """Attention of one step to `length` positions of a `RowCache`; the last of them it writes itself.

    qkv [R, 3, H, W]; keys [R, H, blocks, W, BLOCK] and values [R, H, capacity, W], bits of float16 or
    float32; mask [R, L] is added to the scores; out [R, H, W]. W is a multiple of 4.
    """
    _, heads, blocks, width, size = keys.shape
    half = keys.itemsize == 2
    unit = EXPONENT if half else f32(1)
    scale = unit / f32(sqrt(width))
    last, place = divmod(length - 1, size)
    for row in prange(len(qkv) * heads):
        r, h = divmod(np.int64(row), heads)
        query, sums, value = qkv[r, 0, h], out[r, h], values[r, h]
        for d in range(width):
            keys[r, h, last, d, place] = _bits(qkv[r, 1, h, d], half)
            value[length - 1, d] = _bits(qkv[r, 2, h, d], half)
        scores = np.zeros(blocks * size, f32)
        for block in range(last + 1):
            part, key = scores[block * size : (block + 1) * size], keys[r, h, block]
            for d in range(0, width, 4):  # four at a time, so that `part` is read and written less often
                a, b = query[d] * scale, query[d + 1] * scale
                c, e = query[d + 2] * scale, query[d + 3] * scale
                for t in range(size if block < last else place + 1):
                    part[t] += a * _read(key[d, t], half) + b * _read(key[d + 1, t], half)
                    part[t] += c * _read(key[d + 2, t], half) + e * _read(key[d + 3, t], half)
        weights = scores[:length]
        for t in range(length):
            weights[t] += mask[r, t]
        _softmax(weights)
        whole = length - length % 4
        sums[:] = f32(0)
        for t in range(0, whole, 4):
            a, b = weights[t] * unit, weights[t + 1] * unit
            c, e = weights[t + 2] * unit, weights[t + 3] * unit
            for d in range(width):
                sums[d] += a * _read(value[t, d], half) + b * _read(value[t + 1, d], half)
                sums[d] += c * _read(value[t + 2, d], half) + e * _read(value[t + 3, d], half)
        for t in range(whole, length):
            for d in range(width):
                sums[d] += weights[t] * unit * _read(value[t, d], half)


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
    """Whether Numba compiles here, and multiplies right."""
    if config.DISABLE_JIT:
        return False
    x, weight = np.linspace(-1, 1, 128, dtype=f32).reshape(2, 64), np.ones((6, 64), f32)
    out = np.empty((2, 6), f32)
    try:
        product(x, weight, out, False)
    except Exception:
        # Whatever a compiler may lack; torch does the same more slowly.
        return False
    return bool(np.allclose(out, x @ weight.T, atol=1e-4))
