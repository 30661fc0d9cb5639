"""Data parallelism: the processes and threads that share a batch, and the precision they compute in.

    accelerate launch --multi_gpu --num_processes 2 -m mgkit train lm …

This command starts two processes, on GPUs if there are any and on the CPU otherwise. (With `--cpu`,
Accelerate starts only one, whatever `--num_processes` says.)
"""

import atexit
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from mgkit.devices import best_device

if TYPE_CHECKING:
    from accelerate import PartialState

Shard = TypeVar("Shard")


class Processes:
    """The processes of a run: this one alone, unless `accelerate launch` started several.

    `size` processes, of which this one has number `rank` and computes on `device`.
    """

    def __init__(self) -> None:
        self.size, self.rank, self.device = 1, 0, best_device()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            state = _group(self.device.type == "cpu")
            self.size, self.rank, self.device = state.num_processes, state.process_index, state.device

    def shards(self, batch: int) -> tuple[slice, ...]:
        """Equal parts of a batch: one per process, or two for the two threads of a single process on the CPU.

        Raises: ValueError if the batch does not divide evenly among the processes.
        """
        count = self.size
        if count == 1 and self.device.type == "cpu" and batch % 2 == 0:
            count = 2
        if batch % count:
            raise ValueError(f"{count} processes cannot share a batch of {batch}; give a multiple of {count}")
        size = batch // count
        return tuple(slice(size * i, size * (i + 1)) for i in range(count))

    def all_reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over all processes."""
        if self.size == 1:
            return list(tensors)
        from accelerate.utils import reduce

        flat = reduce(torch.cat([tensor.flatten().float() for tensor in tensors]), "sum")
        sums = flat.split([tensor.numel() for tensor in tensors])
        return [total.view_as(tensor) for total, tensor in zip(sums, tensors, strict=True)]

    @torch.no_grad()
    def broadcast(self, parameters: Sequence[Tensor]) -> None:
        """Overwrite the parameters of every process with those of process 0."""
        values = self.all_reduce([p if self.rank == 0 else torch.zeros_like(p) for p in parameters])
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)

    def barrier(self) -> None:
        """Wait until every process gets here."""
        self.all_reduce([torch.zeros(1, device=self.device)])


@cache
def _group(cpu: bool) -> "PartialState":
    """This process among those that `accelerate launch` started, until it exits."""
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    # A thread of the group that outlives the interpreter aborts the process, once in twenty runs.
    atexit.register(state.destroy_process_group)
    return state


def backward(
    loss: Callable[[Shard], Tensor],
    shards: Sequence[Shard],
    parameters: Sequence[nn.Parameter],
    processes: Processes,
) -> Tensor:
    """Set `.grad` to the gradient of the mean loss over all shards and return that loss [...].

    Each shard runs in a thread of its own: on a CPU, two threads with separate operations are faster than two
    threads sharing every operation and synchronizing after it. With several processes, each one takes a
    shard, and all of them end up with the same gradients.
    """

    def shard_gradients(shard: Shard) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        value = loss(shard)
        return value.detach(), torch.autograd.grad(value.mean(), parameters, allow_unused=True)

    own = shards[processes.rank :: processes.size]
    if len(shards) == 1:
        # Few operations, whatever the number of parameters: a GPU would wait for them.
        value, gradients = shard_gradients(shards[0])
        present = [i for i, gradient in enumerate(gradients) if gradient is not None]
        # Copies: autograd may return one tensor for two parameters, and gradients are changed in place.
        copies = torch._foreach_mul([gradients[i] for i in present], 1.0)
        for parameter in parameters:
            parameter.grad = None
        for i, gradient in zip(present, copies, strict=True):
            parameters[i].grad = gradient
        return value
    with ThreadPoolExecutor(len(own)) as pool:
        results = list(pool.map(shard_gradients, own))
    with_gradient, sums = [], [torch.stack([value for value, _ in results]).sum(dim=0)]
    for parameter, *grads in zip(parameters, *(grads for _, grads in results), strict=True):
        present = [grad for grad in grads if grad is not None]
        parameter.grad = None
        # The same parameters in every process, because every process has the same graph.
        if present:
            with_gradient.append(parameter)
            sums.append(torch.stack(present).sum(dim=0))
    value, *grads = processes.all_reduce(sums)
    for parameter, grad in zip(with_gradient, grads, strict=True):
        parameter.grad = grad / len(shards)
    return value / len(shards)


def supports_bf16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 matrix multiplication; emulation is slower than float32."""
    supported = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.cpu._is_avx512_bf16_supported}.get(
        device.type
    )
    return supported is not None and supported()


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """Autocast context for bfloat16, disabled unless `bf16` is set and the hardware supports it."""
    enabled = bf16 and supports_bf16(device)
    # Converted weights are not kept: a step uses each of them once, and a CUDA graph must convert them anew.
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
