"""Linear layers for few rows: oneDNN's matrix product, up to 2.5 times as fast as torch's on a CPU.

Axes: M rows of x, I and O widths of a layer, weight [O, I].

A step of generation multiplies a few rows (one for each stream of each sample) with every weight once: its
least time is that of reading the weights from memory. `F.linear` calls MKL, which first copies the weights
into another order. oneDNN reads them where they lie, so they stay ordinary parameters: training, hooks,
`state_dict`, `deepcopy` and `pickle` see nothing of this. The sums differ in their last bits (1e-6).

The product is an operator without a public name in torch, which `torch.compile` uses. Where it is missing,
or does not apply (another device or type, a gradient, autocast), `F.linear` takes its place.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.packed import Packed

ONEDNN: Any = None
if torch.backends.mkldnn.is_available():
    ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


MANY = 8  # rows from which computing takes longer than reading
SMALL = 2**22  # bytes of a weight that is copied for a window
# Rows for which oneDNN is three times as slow as it could be, unless there are fewer outputs than inputs.
SLOW, AT_ONCE = range(13, 33), 8


class Linear(nn.Linear):
    """`nn.Linear` with the product of this file.

    `torch.ao.quantization.quantize_dynamic` leaves it as it is, since it takes modules whose type is
    `nn.Linear` itself; load the model with `dtype=torch.int8` instead.
    """

    weight: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def pack(self, dtype: torch.dtype) -> None:
        """Keep the weight in bfloat16 or int8; see `packed`. `state_dict` still gives its plain values."""
        self.weight = nn.Parameter(Packed.pack(self.weight, dtype), requires_grad=False)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.weight, Packed):
            destination[f"{prefix}weight"] = self.weight.plain()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] times the transpose of weight [O, I], plus bias [O]: [..., O]."""
    if isinstance(weight, Packed):
        return weight.linear(x) if bias is None else weight.linear(x) + bias
    if _applies(x, weight):
        return _by_onednn(x, weight, bias, "none")
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor) -> Tensor:
    """The exact (erf) GELU of `linear`, in one call."""
    if _applies(x, weight):
        return _by_onednn(x, weight, None, "gelu")
    return F.gelu(linear(x, weight))


def linear_add(x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """`other` [..., O] plus `linear`, in one call."""
    if _applies(x, weight) and not _slow(x, weight):
        return ONEDNN.binary(x, other, weight, None, "add")
    if isinstance(weight, Packed):
        return weight.linear(x, other)
    return other + linear(x, weight)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, function: str) -> Tensor:
    if not _slow(x, weight):
        return ONEDNN.default(x, weight, bias, function, [], "none")
    parts = x.reshape(-1, x.shape[-1]).split(AT_ONCE)
    y = torch.cat([ONEDNN.default(part, weight, bias, function, [], "none") for part in parts])
    return y.view(*x.shape[:-1], -1)


def _slow(x: Tensor, weight: Tensor) -> bool:
    rows = x.numel() // x.shape[-1]
    return rows in SLOW and weight.shape[0] >= weight.shape[1] and not weight.is_mkldnn


def _applies(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN is not None
        and x.dtype is weight.dtype is torch.float32
        and weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad))
        and not torch.is_autocast_enabled("cpu")
    )


def reordered(weight: Tensor, rows: int) -> Tensor:
    """For many rows and a small weight a copy in the order that oneDNN multiplies fastest; else the weight.

    Changes of the weight do not reach the copy, which lasts for a window.
    """
    if rows < MANY or weight.nbytes > SMALL or isinstance(weight, Packed) or ONEDNN is None:
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)


# --- several weights in one product ------------------------------------------------------------------------


def adjoin(weights: Sequence[nn.Parameter]) -> None:
    """Move parameters of the same width to adjacent places in memory."""
    packed = [weight for weight in weights if isinstance(weight, Packed)]
    if packed:
        return Packed.adjoin(packed)
    block = torch.cat([weight.detach() for weight in weights])
    for weight, rows in zip(weights, block.split([len(weight) for weight in weights]), strict=True):
        weight.data = rows


def joint(weights: Sequence[Tensor]) -> Tensor | None:
    """The rows of all `weights` as one matrix, a view, if they are adjacent in memory; else None."""
    packed = [weight for weight in weights if isinstance(weight, Packed)]
    if packed:
        return Packed.joint(packed) if len(packed) == len(weights) else None
    first, end = weights[0], weights[0].data_ptr()
    for weight in weights:
        shares = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not shares or not weight.is_contiguous() or weight.data_ptr() != end:
            return None
        end += weight.nbytes
    return first.as_strided((sum(len(weight) for weight in weights), first.shape[1]), (first.shape[1], 1))
