"""A matrix in int8, which packed weights share, and the products of float32 rows with it.

Axes: M rows of x, I and O widths, matrix [O, I].

    matrix = values int8 * scales [O]        x = integers int8 * sizes [M] / LEVELS, each row by itself

Few rows of x are multiplied by the values as they lie (`rounded.product`). For more, oneDNN is faster; its
copy in another order is made when it is first needed, and takes as much memory again.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mgkit import compiled, rounded
from mgkit.rounded import LEVELS

FEW = 4  # rows of x, up to which `rounded.product` is as fast as oneDNN's
ONEDNN_ROWS = 2  # a hint to oneDNN when it reorders the values


class Integers:
    """A matrix [O, I] in int8."""

    dtype = torch.int8

    def __init__(self, values: Tensor, scales: Tensor):
        self.values, self.scales = values, scales
        self.units = scales / LEVELS.item()  # what 1 is worth in each output

    @classmethod
    def of(cls, weight: Tensor) -> "Integers":
        """`weight` [O, I], rounded."""
        # What stays is allocated before what is freed, which then leaves no holes between.
        values = torch.empty(weight.shape, dtype=torch.int8)
        low, high = weight.aminmax(dim=1)
        scales = torch.maximum(-low, high).float().clamp_min(1e-30) / 127
        values.copy_((weight / scales[:, None]).round_())
        return cls(values, scales)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [M, I] over its sizes, times the transpose of this matrix [M, O]; and the sizes [M, 1]."""
        sizes = x.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30)
        integers = torch.quantize_per_tensor(x / sizes, 1 / LEVELS.item(), 0, torch.qint8).int_repr()
        return self.multiply(integers), sizes

    def multiply(self, integers: Tensor) -> Tensor:
        """Integers [M, I] over LEVELS, times the transpose of this matrix: [M, O], float32."""
        if few(len(integers)):
            compiled.share()
            product, sizes = torch.empty(len(integers), len(self.values)), np.ones(len(integers), np.float32)
            rows, values, units = (part.numpy() for part in (integers, self.values, self.units))
            rounded.product(rows, sizes, values, units, product.numpy(), False)
            return product
        # oneDNN has fast kernels for unsigned rows only: the same numbers around a zero point of 128.
        x, output = (integers.view(torch.uint8) ^ 128, 1.0, 128), (1.0, 0, torch.float32)
        return torch.ops.onednn.qlinear_pointwise.default(*x, *self._in_onednn, None, *output, "none", [], "")

    @cached_property
    def _in_onednn(self) -> tuple[Tensor, Tensor, Tensor]:
        """The values in oneDNN's order, what 1 is worth in each output, and zero points."""
        values = torch.ops.onednn.qlinear_prepack(self.values, [ONEDNN_ROWS, self.shape[1]])
        return values, self.units, torch.zeros(len(self.values), dtype=torch.long)


def few(rows: int) -> bool:
    """Whether `rounded.product` is used for this number of rows, and not oneDNN."""
    return rows <= FEW and compiled.works()
