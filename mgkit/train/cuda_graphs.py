"""CUDA graphs of parts of a training step: one launch in place of hundreds of small kernels.

A step of the codec consists of some three thousand kernels of a few microseconds each, less than Python takes
to launch them. A captured part replays all of its kernels, forward and backward, at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Part(nn.Module):
    """`function` of tensors as a module; `modules` hold the parameters that it uses."""

    def __init__(self, function: Callable[..., Any], modules: tuple[nn.Module, ...]):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


class Captured:
    """`function` of tensors with the parameters of `modules`, captured at its first call on a GPU, to be
    followed by one backward pass each time.

    Later calls must have the same shapes; their results are overwritten by the next call. The function must
    neither copy to the CPU nor draw random numbers. Without gradients, or on another device, it is called
    plainly.
    """

    def __init__(self, function: Callable[..., Any], *modules: nn.Module):
        self.function, self.modules = function, modules
        self.replay: Callable[..., Any] | None = None

    def __call__(self, *tensors: Tensor) -> Any:
        """The function's results: a tensor, or tensors in a tuple or dict."""
        if tensors[0].device.type != "cuda" or not torch.is_grad_enabled():
            return self.function(*tensors)
        if self.replay is None:
            samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in tensors)
            part = _Part(self.function, self.modules)
            self.replay = torch.cuda.make_graphed_callables(part, samples, allow_unused_input=True)
        return self.replay(*tensors)


class Replayed:
    """`function` of tensors, captured at its second call on a GPU. It may change tensors in place, and
    differentiate within itself; its results have no gradients. Otherwise as `Captured`."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.called = function, False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.results: Any = None

    def __call__(self, *tensors: Tensor) -> Any:
        """The function's results."""
        if tensors[0].device.type != "cuda":
            return self.function(*tensors)
        if not self.called:
            self.called = True
            return self._first(tensors)
        if self.graph is None:
            self.inputs = [tensor.detach().clone() for tensor in tensors]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.results = self.function(*self.inputs)
        torch._foreach_copy_(self.inputs, [tensor.detach() for tensor in tensors])
        self.graph.replay()
        return self.results

    def _first(self, tensors: tuple[Tensor, ...]) -> Any:
        """A plain call on a stream of its own, as a capture needs it: libraries set themselves up in it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = self.function(*tensors)
        torch.cuda.current_stream().wait_stream(stream)
        return results


class Readback:
    """Metrics on their way from the device. On a GPU a step gets those of the step before: waiting for its
    own would leave the GPU without work until the next step is launched."""

    def __init__(self) -> None:
        self.waiting: tuple[list[str], Tensor, torch.cuda.Event] | None = None

    def __call__(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """The values of `metrics`, scalars on one device; on a GPU those given to the previous call."""
        names, values = list(metrics), torch.stack([value.detach().float() for value in metrics.values()])
        if values.device.type != "cuda":
            return dict(zip(names, values.tolist(), strict=True))
        host = torch.empty(values.shape, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        (names, host, copied), self.waiting = self.waiting or (names, host, copied), (names, host, copied)
        copied.synchronize()
        return dict(zip(names, host.tolist(), strict=True))
