"""Muon: gradient descent in which the update of a matrix is turned into a rotation (Keller Jordan and others, 2024).

    gradient [M, N] -> with the former ones -> all singular values become nearly 1 -> step

A rotation moves a matrix in every direction that it has, and not only in the few where its gradient is large. torch has
one too, `torch.optim.Muon`, which always computes in bfloat16: a CPU without instructions for it imitates them, and a
step of training that takes two seconds took eighteen. This one computes as the rest of training does, and some
matrices side by side.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch
from torch import Tensor

# a x + b x³ + c x⁵ takes singular values in (0, 1] to about 1: soon, not exactly
QUINTIC = 3.4445, -4.7750, 2.0315
TIMES = 5
THREADS = 2  # as many as the halves of a batch


def rotation(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """`matrix` [M, N] with singular values between 0.7 and 1.2 instead of its own: Newton-Schulz steps in `dtype`."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(TIMES):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices only. A step changes their entries by 0.2 `lr` on average, as AdamW's do, so that both can share a
    learning rate; `weight_decay` and Nesterov's `momentum` are those of `torch.optim.Muon`."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95):  # fmt: skip
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every matrix that has a gradient."""
        for group in self.param_groups:
            moving = [matrix for matrix in group["params"] if matrix.grad is not None]
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(self._move, moving, repeat(group)))

    @torch.no_grad()  # here and not around `step`: it holds for one thread
    def _move(self, matrix: Tensor, group: dict) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean = state["momentum_buffer"]
        mean.lerp_(matrix.grad, 1 - group["momentum"])
        update = rotation(matrix.grad.lerp(mean, group["momentum"]), self.dtype)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))
