"""Weights in 16 or 8 bits, in the order in which oneDNN reads them fastest; for steps on a CPU.

Axes: M rows of x, I and O widths of a layer, weight [O, I].

    bfloat16   weight and x rounded to bfloat16, sums in float32
    int8       weight: integers times a scale for each output; x: integers times a scale for each row, found
               at every call, so that a sample does not depend on the rest of its batch; sums in int32

A `Packed` weight is the only copy in memory, and a parameter like others: every operation but the product
sees its plain values, which for bfloat16 are those it was made from, bit for bit. A change in place packs it
again. int8 rounds: it is for generation, from weights that remain elsewhere.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

ROWS = 2  # of x for which weights are arranged: one sample with guidance


def packable(dtype: torch.dtype) -> bool:
    """Whether this machine computes faster with weights packed in `dtype`."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.int8 and hasattr(torch.ops.onednn, "qlinear_pointwise")


class Packed(Tensor):
    """A weight [O, I] in bfloat16 or int8; see above."""

    packed: Tensor
    scales: Tensor | None  # [O], of int8

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, packed: Tensor, scales: Tensor | None) -> "Packed":
        shape = packed.shape if scales is None else packed.shape[::-1]
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=packed.dtype)
        self.packed, self.scales = packed, scales
        self._zeros = torch.zeros(len(self), dtype=torch.long)  # oneDNN's zero points of int8
        return self

    @classmethod
    def pack(cls, weight: Tensor, dtype: torch.dtype) -> "Packed":
        """`weight` [O, I] in `dtype`, bfloat16 or int8."""
        if dtype == torch.bfloat16:
            return cls(torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), ROWS), None)
        scales = weight.detach().float().abs().amax(dim=1).clamp_min(1e-30) / 127
        return cls.from_integers((weight.detach() / scales[:, None]).round().to(torch.int8), scales)

    @classmethod
    def from_integers(cls, integers: Tensor, scales: Tensor) -> "Packed":
        """The int8 weight integers [O, I] * scales [O]."""
        return cls(torch.ops.onednn.qlinear_prepack(integers, [ROWS, integers.shape[1]]), scales)

    def plain(self) -> Tensor:
        """The values [O, I], bfloat16 or, for int8, float32."""
        if self.scales is None:
            return self.packed.to_dense()
        return self.integers() * self.scales[:, None]

    def integers(self) -> Tensor:
        """The integers [O, I] of int8."""
        return self.packed.to_dense().t().contiguous()

    def linear(self, x: Tensor) -> Tensor:
        """x [..., I] times the transpose of this weight: [..., O] in the type of x."""
        if torch.is_grad_enabled() and (x.requires_grad or self.requires_grad):
            weight = self if self.requires_grad else self.plain()
            return F.linear(x.to(weight.dtype), weight).to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        if self.scales is None:
            y = torch.ops.mkldnn._linear_pointwise.default(
                rows.to(torch.bfloat16), self.packed, None, "none", [], ""
            )
        else:
            y = self._integer_linear(rows.float(), self.scales)
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    def _integer_linear(self, rows: Tensor, scales: Tensor) -> Tensor:
        # Without VNNI instructions, sums of two products must fit into 16 bits.
        levels = 127 if torch.cpu._is_vnni_supported() else 63
        size = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp_min_(1e-30) / levels
        integers = (rows / size).add_(levels + 1.5).to(torch.uint8)
        weight, output = (self.packed, scales, self._zeros), (1.0, 0, torch.float32)
        product = torch.ops.onednn.qlinear_pointwise.default(
            integers, 1.0, levels + 1, *weight, None, *output, "none", [], ""
        )
        return product.mul_(size)

    # --- a parameter like others ---------------------------------------------------------------------------

    def requires_grad_(self, requires_grad: bool = True) -> "Packed":
        """As any tensor's. Raises: ValueError for int8."""
        if requires_grad and self.scales is not None:
            raise ValueError("weights in int8 cannot be trained; load the model with dtype=torch.float32")
        return super().requires_grad_(requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].packed, args[0].scales)
        plain_args, plain_kwargs = tree_map_only(Packed, Packed.plain, (args, kwargs or {}))
        result = func(*plain_args, **plain_kwargs)
        if not (func._schema.is_mutable and isinstance(args[0], Packed)):
            return result
        again = cls.pack(plain_args[0], args[0].dtype)
        args[0].packed, args[0].scales = again.packed, again.scales
        return args[0]

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Packed({list(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict) -> "Packed":
        # What is packed is replaced as a whole, never changed: copies may share it.
        copy = Packed(self.packed, self.scales)
        return nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy

    def __reduce_ex__(self, protocol: object) -> tuple:
        values = self.plain() if self.scales is None else self.integers()
        return _unpickled, (values, self.scales, isinstance(self, nn.Parameter), self.requires_grad)


def _unpickled(values: Tensor, scales: Tensor | None, parameter: bool, gradient: bool) -> Packed:
    packed = Packed.pack(values, values.dtype) if scales is None else Packed.from_integers(values, scales)
    return nn.Parameter(packed, gradient) if parameter else packed


def plain(weight: Tensor) -> Tensor:
    """The weight with ordinary values, if it is packed."""
    return weight.plain() if isinstance(weight, Packed) else weight
