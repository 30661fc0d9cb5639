"""What a layer does in a step, in loops that Numba compiles: float32, of few rows; for int8 see `rounded`.

Axes: R rows (one for each stream of each sample), D width, H heads, W = D / H, L positions, I and O widths
of a linear layer, weight [O, I].

Every row is computed as if it were alone, and no sum depends on the number of threads. A loop is compiled
when it is first called on a machine (all of them take some five seconds); Numba keeps the results beside this
file, or in the user's cache where that is not allowed. It compiles them again if this file changes, but not
if a loop of another file does: so loops call loops of their own file only.
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


def _threadsafe() -> bool:
    """Whether Numba can divide a loop among threads here; two callers of its `workqueue` end the process."""
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    return config.THREADING_LAYER != "workqueue"


def _keeps() -> bool:
    """Whether Numba finds a folder in which it may keep what it compiled."""
    try:
        numba.njit(cache=True)(_keeps)
    except RuntimeError:
        return False
    return True


EXACT: dict[str, Any] = {"cache": _keeps(), "nogil": True, "error_model": "numpy"}
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
def norm_rows(x: Array, gain: Array, bias: Array, out: Array) -> None:
    """The LayerNorm of x [R, D]."""
    width = f32(x.shape[1])
    for r in range(len(x)):
        mean, variance = f32(0), f32(0)
        for i in range(x.shape[1]):
            mean += x[r, i]
        mean /= width
        for i in range(x.shape[1]):
            variance += (x[r, i] - mean) * (x[r, i] - mean)
        scale = f32(1) / np.sqrt(variance / width + f32(1e-5))
        for i in range(x.shape[1]):
            out[r, i] = (x[r, i] - mean) * scale * gain[i] + bias[i]


@loop
def gelu_rows(x: Array) -> None:
    """Replace x [R, I] by its exact (erf) GELU."""
    for r in range(len(x)):
        for i in range(x.shape[1]):
            # erf to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
            z = abs(x[r, i]) * f32(sqrt(0.5))
            t = f32(1) / (f32(1) + f32(0.3275911) * z)
            sums = ((f32(1.061405429) * t - f32(1.453152027)) * t + f32(1.421413741)) * t - f32(0.284496736)
            tail = f32(0.5) * (sums * t + f32(0.254829592)) * t * _exp(-z * z)
            x[r, i] *= tail if x[r, i] < 0 else f32(1) - tail


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


# --- attention ---------------------------------------------------------------------------------------------


@loop
def _softmax(scores: Array) -> None:
    largest, total = scores.max(), f32(0)
    for t in range(scores.size):
        scores[t] = _exp(scores[t] - largest)
        total += scores[t]
    for t in range(scores.size):
        scores[t] /= total


@loop
def _unit(x: Array) -> np.float32:
    """What 1 is worth if x [W] is rounded to int8."""
    most = f32(1e-30)
    for d in range(x.size):
        most = max(most, abs(x[d]))
    return most / f32(127)


@parallel
def attend(
    qkv: Array, keys: Array, values: Array, units: Array, length: int, mask: Array, out: Array
) -> None:
    """Attention of one step to `length` positions of a `RowCache`; the last of them it writes itself.

    qkv [R, 3, H, W]; keys [R, H, blocks, W, BLOCK] and values [R, H, capacity, W] in float32 or int8, whose
    `units` [2, R, H, capacity] are what 1 is worth; mask [R, L] is added to the scores; out [R, H, W]. W is a
    multiple of 4.
    """
    _, heads, blocks, width, size = keys.shape
    rounded = keys.itemsize == 1
    scale = f32(1 / sqrt(width))
    last, place = divmod(length - 1, size)
    for row in prange(len(qkv) * heads):
        r, h = divmod(np.int64(row), heads)
        query, key, value, sums = qkv[r, 0, h], keys[r, h], values[r, h], out[r, h]
        key_unit, value_unit = f32(1), f32(1)
        if rounded:
            key_unit, value_unit = _unit(qkv[r, 1, h]), _unit(qkv[r, 2, h])
            units[0, r, h, length - 1], units[1, r, h, length - 1] = key_unit, value_unit
        for d in range(width):
            x, y = qkv[r, 1, h, d] / key_unit, qkv[r, 2, h, d] / value_unit
            key[last, d, place] = np.rint(x) if rounded else x
            value[length - 1, d] = np.rint(y) if rounded else y

        scores = np.zeros(blocks * size, f32)
        for block in range(last + 1):
            part, table = scores[block * size : (block + 1) * size], key[block]
            for d in range(0, width, 4):  # four at a time, so that `part` is read and written less often
                a, b = query[d] * scale, query[d + 1] * scale
                c, e = query[d + 2] * scale, query[d + 3] * scale
                for t in range(size if block < last else place + 1):
                    part[t] += a * f32(table[d, t]) + b * f32(table[d + 1, t])
                    part[t] += c * f32(table[d + 2, t]) + e * f32(table[d + 3, t])
        weights = scores[:length]
        for t in range(length):
            weights[t] = weights[t] * (units[0, r, h, t] if rounded else f32(1)) + mask[r, t]
        _softmax(weights)
        if rounded:
            for t in range(length):
                weights[t] *= units[1, r, h, t]
        whole = length - length % 4
        sums[:] = f32(0)
        for t in range(0, whole, 4):
            a, b, c, e = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
            for d in range(width):
                sums[d] += a * f32(value[t, d]) + b * f32(value[t + 1, d])
                sums[d] += c * f32(value[t + 2, d]) + e * f32(value[t + 3, d])
        for t in range(whole, length):
            for d in range(width):
                sums[d] += weights[t] * f32(value[t, d])


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
