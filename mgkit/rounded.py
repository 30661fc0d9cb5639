"""Loops that Numba compiles, for int8: x rounded row by row, and the product of integers.

Axes: R rows of x, I and O widths of a linear layer, weight [O, I].

    x float32 [R, I]  =  integers int8 [R, I] * sizes [R] / LEVELS      the largest value of a row is its size

A sum of integers is exact, so a row does not depend on the others, nor on which product is used.
"""

import numpy as np
import torch
from numba import prange

from mgkit.compiled import Array, exact, f32, i32, loop, u32

# Integers on either side of 0. Without VNNI instructions oneDNN sums two products in 16 bits.
LEVELS = f32(127 if torch.cpu._is_vnni_supported() else 63)
LEAST = f32(1e-30)  # size of a row, so that a row of zeros can be divided by it


@loop
def round_rows(x: Array, integers: Array, sizes: Array) -> None:
    """Round x [R, I]."""
    for r in range(len(x)):
        bits, most = x[r].view(np.uint32), u32(0)
        for i in range(bits.size):
            # As integers, absolute values are in the same order, and NaN is the largest: it is not lost.
            most = max(most, bits[i] & u32(0x7FFFFFFF))
        sizes[r] = max(u32(most).view(np.float32), LEAST)
        scale = LEVELS / sizes[r]
        for i in range(bits.size):
            integers[r, i] = np.int8(np.rint(x[r, i] * scale))


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
