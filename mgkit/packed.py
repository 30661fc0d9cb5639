"""Weights in 16 or 8 bits, in the order in which they are read fastest; for steps on a CPU.

Axes: M rows of x, I and O widths of a layer, weight [O, I].

    bfloat16   weight and x rounded to bfloat16, sums in float32
    int8       weight: integers times a scale for each output; x: integers times a scale for each row, found
               at every call, so that a sample does not depend on the rest of its batch; sums in int32

A `Packed` weight takes the place of the plain one (for int8 see also `integers`), and is a parameter like
others: every operation but the product sees its plain values, which for bfloat16 are those it was made from,
bit for bit. A change in place packs it again. int8 rounds: it is for generation, from weights that remain
elsewhere.

Weights that always multiply the same x (queries, keys and values of a layer) are packed as one matrix, of
which each is some rows: one product, and x is rounded once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from mgkit.integers import Integers

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

    packed: "Tensor | Integers"  # a matrix, of which this weight is the rows from `start`
    start: int

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, packed: "Tensor | Integers", start: int = 0, rows: int | None = None) -> "Packed":
        shape = (packed.shape[0] if rows is None else rows, packed.shape[1])
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=packed.dtype)
        self.packed, self.start = packed, start
        return self

    @classmethod
    def pack(cls, weight: Tensor, dtype: torch.dtype) -> "Packed":
        """`weight` [O, I] in `dtype`, bfloat16 or int8."""
        if dtype == torch.int8:
            return cls(_integers().of(weight.detach()))
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), ROWS))

    @classmethod
    def adjoin(cls, weights: Sequence["Packed"]) -> None:
        """Pack weights of the same type and width as one matrix, of which each becomes some rows."""
        if weights[0].dtype == torch.bfloat16:
            one = cls.pack(torch.cat([weight.plain() for weight in weights]), torch.bfloat16)
        else:
            parts = [weight.integers() for weight in weights]
            one = cls(_integers()(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))))
        start = 0
        for weight in weights:
            weight._become(cls(one.packed, start, len(weight)))
            start += len(weight)

    @classmethod
    def joint(cls, weights: Sequence["Packed"]) -> "Packed | None":
        """The matrix that consists of these weights, in this order; None if there is none."""
        one, end = cls(weights[0].packed), 0
        for weight in weights:
            if weight.packed is not one.packed or weight.start != end:
                return None
            end += len(weight)
        return one if len(one) == end else None

    def plain(self) -> Tensor:
        """The values [O, I], bfloat16 or, for int8, float32."""
        if self.dtype == torch.int8:
            values, scales = self.integers()
            return values * scales[:, None]
        return self._rows(cast(Tensor, self.packed).to_dense()).contiguous()

    def integers(self) -> tuple[Tensor, Tensor]:
        """Of int8, integers [O, I] and scales [O]."""
        matrix = cast("Integers", self.packed)
        return self._rows(matrix.values), self._rows(matrix.scales)

    def linear(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x [..., I] times the transpose of this weight, plus `other`: [..., O] in the type of x."""
        if torch.is_grad_enabled() and (x.requires_grad or self.requires_grad):
            weight = self if self.requires_grad else self.plain()
            y = F.linear(x.to(weight.dtype), weight).to(x.dtype)
            return y if other is None else other + y
        if x.ndim != 2 or x.dtype != torch.float32:
            rows = x.reshape(-1, x.shape[-1]).float()
            added = None if other is None else other.reshape(-1, len(self)).float()
            return self._linear(rows, added).to(x.dtype).reshape(*x.shape[:-1], len(self))
        return self._linear(x, other)

    def _linear(self, rows: Tensor, other: Tensor | None) -> Tensor:
        """`linear` of rows [M, I] in float32."""
        if self.dtype == torch.bfloat16:
            narrow = rows.to(torch.bfloat16)
            y = torch.ops.mkldnn._linear_pointwise.default(narrow, self.packed, None, "none", [], "")
            return self._own(y).float() if other is None else other + self._own(y)
        product, sizes = cast("Integers", self.packed).product(rows)
        product = self._own(product)
        return product.mul_(sizes) if other is None else torch.addcmul(other, product, sizes)

    def _own(self, product: Tensor) -> Tensor:
        """Of the matrix's outputs those of this weight."""
        whole = product.shape[1] == self.shape[0]
        return product if whole else product.narrow(1, self.start, self.shape[0])

    def _rows(self, matrix: Tensor) -> Tensor:
        return matrix.narrow(0, self.start, len(self))

    # --- a parameter like others ---------------------------------------------------------------------------

    def requires_grad_(self, requires_grad: bool = True) -> "Packed":
        """As any tensor's. Raises: ValueError for int8."""
        if requires_grad and self.dtype == torch.int8:
            raise ValueError("weights in int8 cannot be trained; load the model with dtype=torch.float32")
        return super().requires_grad_(requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]._alias()
        plain_args, plain_kwargs = tree_map_only(Packed, Packed.plain, (args, kwargs or {}))
        result = func(*plain_args, **plain_kwargs)
        if not (func._schema.is_mutable and isinstance(args[0], Packed)):
            return result
        args[0]._become(cls.pack(plain_args[0], args[0].dtype))
        return args[0]

    def _alias(self) -> "Packed":
        return Packed(self.packed, self.start, len(self))

    def _become(self, other: "Packed") -> None:
        """Take the values of another weight of this shape and type."""
        self.packed, self.start = other.packed, other.start

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Packed({list(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict) -> "Packed":
        # What is packed is replaced as a whole, never changed: copies may share it.
        copy = self._alias()
        return nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy

    def __reduce_ex__(self, protocol: object) -> tuple:
        # Copies: a view would take the whole matrix with it.
        values = [part.clone() for part in self.integers()] if self.dtype == torch.int8 else [self.plain()]
        return _unpickled, (values, isinstance(self, nn.Parameter), self.requires_grad)


def _unpickled(values: list[Tensor], parameter: bool, gradient: bool) -> Packed:
    packed = Packed(_integers()(*values)) if len(values) > 1 else Packed.pack(values[0], torch.bfloat16)
    return nn.Parameter(packed, gradient) if parameter else packed


def plain(weight: Tensor) -> Tensor:
    """The weight with ordinary values, if it is packed."""
    return weight.plain() if isinstance(weight, Packed) else weight


def _integers() -> "type[Integers]":
    # Not above: it needs Numba, which takes half a second to import.
    from mgkit.integers import Integers

    return Integers
