"""Keys and values for steps on a CPU: tables whose rows an attention adds up.

Axes: B batch, S steps, D width, H heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mgkit.lm import KVCache

BLOCK = 256  # positions whose keys are stored together in float32; half as many in half precision


class RowCache(KVCache):
    """A `KVCache` in which the attention of a single step adds up rows of two tables.

    A single query is bound by memory as a single row of a linear layer is, and general kernels reach half of
    its speed or less. `torch.embedding_bag`, a weighted sum of a table's rows, reaches all of it:

        values  [B, H, capacity, D / H]          sum over positions of weight * row
        keys    [B, H, blocks, D / H, BLOCK]     sum over features of query * row: the scores of a block

    In int8, for the loops of `compiled` alone, each row of D / H numbers is rounded by itself; `units`
    [2, B, H, capacity] are what 1 is worth in keys and values.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype):
        """`shape` is B, H, capacity, D / H; `dtype` float32, float16 or int8."""
        batch, heads, capacity, width = self.shape = tuple(shape)
        self.block = BLOCK if dtype == torch.float32 else BLOCK // 2
        self.keys = torch.zeros(batch, heads, -(-capacity // self.block), width, self.block, dtype=dtype)
        self.values = torch.zeros(self.shape, dtype=dtype)
        self.units = torch.ones(2, batch, heads, capacity if dtype == torch.int8 else 0)
        self.arrays = self.keys.numpy(), self.values.numpy(), self.units.numpy()
        self.length = 0
        self.text: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys (a copy) and values so far [B, H, length + S, D / H], the new ones included."""
        (batch, heads, capacity, width), start, end = self.shape, self.length, self.length + keys.shape[2]
        assert end <= capacity, f"the cache holds {capacity} positions; {end} are needed"
        dtype, rounded = keys.dtype, self.values.dtype == torch.int8
        if rounded:
            both = torch.stack([keys, values]).float()
            units = both.abs().amax(dim=-1).clamp_min(1e-30) / 127
            self.units[..., start:end] = units
            keys, values = (both / units[..., None]).round()
        self.values[:, :, start:end] = values
        while self.length < end:
            block, place = divmod(self.length, self.block)
            new = keys[:, :, self.length - start :][:, :, : self.block - place]
            self.keys[:, :, block, :, place : place + new.shape[2]] = new.transpose(2, 3)
            self.length += new.shape[2]
        all_keys = self.keys.transpose(3, 4).reshape(batch, heads, -1, width)[:, :, :end].to(dtype)
        all_values = self.values[:, :, :end].to(dtype)
        if rounded:
            key_units, value_units = self.units[..., :end, None]
            return all_keys * key_units, all_values * value_units
        return all_keys, all_values

    def put(self, key: Tensor, value: Tensor) -> None:
        """Store the key and value [B, H, D / H] of the next position, not in int8."""
        block, place = divmod(self.length, self.block)
        self.keys[:, :, block, :, place] = key
        self.values[:, :, self.length] = value
        self.length += 1
