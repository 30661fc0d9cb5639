"""Muon: momentum SGD with orthogonalized updates for weight matrices (Keller Jordan and others, 2024).

    gradient [M, N] -> momentum -> orthogonalize: all singular values near 1 -> step

An orthogonalized update moves a matrix equally in every direction, not only in the few with a large gradient.
torch.optim.Muon always computes in bfloat16, which a CPU without bfloat16 instructions emulates: a training
step of two seconds took eighteen. This version computes in a dtype of the caller's choice and updates
matrices in parallel.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby, repeat
from typing import TypedDict

import torch
from torch import Tensor

from mgkit.train.cuda_graphs import Replayed

# Newton-Schulz iteration: a x + b x³ + c x⁵ takes singular values in (0, 1] close to 1 in few steps.
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
# The number of threads that `parallel.backward` uses on one CPU.
THREADS = 2


class ParamGroup(TypedDict):
    params: list[Tensor]
    lr: float
    weight_decay: float
    momentum: float


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """`matrix` [M, N] with singular values between 0.7 and 1.2, by Newton-Schulz iterations in `dtype`.

    Several matrices of one shape can be given as [count, M, N].
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if tall else matrix).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    multiply_add = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Optimizer for matrices and convolution kernels.

    Like torch.optim.Muon with adjust_lr_fn="match_rms_adamw": the RMS of an update is 0.2 `lr`, as with
    AdamW, so both can share a learning rate.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype,
        momentum: float = 0.95,
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        self.replayed: Replayed | None = None

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if matrices and matrices[0].is_cuda:
                self._update_together(matrices, group)
            else:
                with ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(self._update, matrices, repeat(group)))

    @torch.no_grad()
    def _update_together(self, matrices: list[Tensor], group: ParamGroup) -> None:
        """Update all matrices on a GPU, those of one shape together; at every step the same ones must have
        gradients."""
        if self.replayed is None:
            for matrix in matrices:
                if not self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
            self.replayed = Replayed(partial(self._update_shapes, matrices, group))
        lr = torch.full((), group["lr"], device=matrices[0].device)
        self.replayed(lr, *(matrix.grad for matrix in matrices))

    def _update_shapes(self, matrices: list[Tensor], group: ParamGroup, lr: Tensor, *grads: Tensor) -> None:
        places = sorted(range(len(matrices)), key=lambda i: matrices[i].shape)
        for _, same in groupby(places, key=lambda i: matrices[i].shape):
            chosen = list(same)
            own, gradients = [matrices[i] for i in chosen], [grads[i] for i in chosen]
            means = [self.state[matrix]["momentum_buffer"] for matrix in own]
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            mixed = torch.stack(torch._foreach_lerp(gradients, means, group["momentum"])).flatten(2)
            updates = orthogonalize(mixed, self.dtype)
            scale = 0.2 * math.sqrt(max(updates.shape[1:]))
            steps = updates.to(own[0].dtype).view(len(own), *own[0].shape) * (-scale * lr)
            torch._foreach_mul_(own, 1 - lr * group["weight_decay"])
            torch._foreach_add_(own, list(steps.unbind()))

    # Not around `step`: gradient mode belongs to a thread, and each update runs in a thread of the pool.
    @torch.no_grad()
    def _update(self, matrix: Tensor, group: ParamGroup) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean = state["momentum_buffer"]
        mean.lerp_(matrix.grad, 1 - group["momentum"])
        # The kernel of a convolution [out, in, taps] counts as a matrix [out, in * taps].
        update = orthogonalize(matrix.grad.lerp(mean, group["momentum"]).flatten(1), self.dtype)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        scale = 0.2 * math.sqrt(max(update.shape))
        matrix.add_(update.view_as(matrix), alpha=-group["lr"] * scale)
