"""One step of a window after another: by ordinary calls of the model, or as a CUDA graph captured once.

Axes: B batch, K codebooks, S delayed steps, P prefix positions, D width, H heads, V codebook size.

    ordinary   lm(new steps, condition, cache)      a cache that grows; any model, hook and device
    static     the same modules, one new position   a cache of fixed length and a mask, nothing read back
               |                                    few rows in half precision: `kernels` in their place
               +- CUDA: captured after its first run, then replayed, a single launch a step

A GPU finishes a step of `small` long before Python has launched its 500 kernels one by one. A graph launches
them together, but it repeats exactly the recorded ones: shapes are fixed, positions are tensors, and no
Python runs. So the first step of a window, which reads the prompt, is ordinary, and so are all steps of a
model whose forward hooks have to run (`capturable`), and all steps with edits. Sampling is in the graph; its
noise is drawn on the CPU by each sample's own generator, as without a GPU, and uploaded ahead.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mgkit.fast import Step, as_published, hooked
from mgkit.lm import LM, Condition, KVCache, Tap
from mgkit.positions import sinusoid
from mgkit.threads import Threads, using

if TYPE_CHECKING:
    from mgkit.kernels import Decoder

UNKNOWN = -1  # a token still to be generated
STATIC_ON = {"cuda"}  # device types; elsewhere a growing cache is faster
KERNELS_ON = {"cuda"}
SMALL = 5e9  # products of a first step that one thread of a CPU makes in about 0.1 s
WORTHWHILE = 16  # steps; capturing costs about as much as that many ordinary ones
AHEAD = 8  # replays in flight; progress and stops lag behind by no more
ALIGNED = 16  # positions; attention kernels want a multiple
CAPTURE = threading.Lock()  # CUDA captures one graph at a time

Choose = Callable[[int, Tensor, Tensor | None], Tensor]
"""Tokens [B, K] of a column, from the logits [n B, K, V] of n streams, and from noise [B, K, V] if drawn."""


class Steps:
    """The steps of one window, written into the delayed `steps` [B, K, S] column by column.

    `taps` gives the tap of each condition's pass over some columns. Edits, and a choice that is not the same
    function in all columns (not `fixed`), need ordinary steps.
    """

    def __init__(
        self,
        lm: LM,
        conditions: Sequence[Condition],
        steps: Tensor,
        choose: Choose,
        taps: Sequence[Callable[[range], Tap | None]] | None = None,
        fixed: bool = True,
    ):
        self.lm, self.conditions, self.steps, self.choose = lm, conditions, steps, choose
        self.taps, self.fixed = taps, fixed and taps is None
        positions = [c.prefix_length + steps.shape[-1] - 1 for c in conditions]
        plain = taps is not None or lm.device.type in STATIC_ON
        with using(1):  # short work; see `threads`
            self.runs = [
                Step(lm, c, -(-n // ALIGNED) * ALIGNED, plain)
                for c, n in zip(conditions, positions, strict=True)
            ]
        self.threads = Threads() if all(run.steady for run in self.runs) else None
        self.done = 0  # columns that the caches hold
        self._static: StaticStep | None = None

    @torch.no_grad()
    def fill(self, column: int, noise: Tensor | None) -> None:
        """Generate the unknown tokens of a column from those before it."""
        first = self.done == 0
        # Whatever the caller's autocast says: the same request gives the same tokens.
        with torch.autocast(self.lm.device.type, enabled=False):
            if self._static is not None and self._static.current():
                self._static.fill(column, noise)
            else:
                with self._threads(column):
                    self._fill(column, noise)
        if first and self.fixed and self.steps.shape[-1] - column > WORTHWHILE and capturable(self.lm):
            caches, pick = [run.cache for run in self.runs], partial(self.choose, column)
            self._static = StaticStep(self.lm, self.conditions, caches, self.steps, pick)
        self.done = column

    def _threads(self, column: int) -> AbstractContextManager:
        """The number of threads of a step: measured, but for a step whose sums depend on it."""
        if self.done == 0:
            parameters = sum(parameter.numel() for parameter in self.lm.parameters())
            rows = sum(run.condition.batch * (run.condition.prefix_length + column) for run in self.runs)
            return using(1) if rows * parameters < SMALL and self.lm.device.type == "cpu" else nullcontext()
        return nullcontext() if self.threads is None else self.threads.step()

    def _fill(self, column: int, noise: Tensor | None) -> None:
        new = self.steps[..., self.done : column]
        each = []
        for i, run in enumerate(self.runs):
            tap = self.taps[i](range(self.done, column)) if self.taps else None
            each.append(run(new.repeat(run.condition.batch // len(new), 1, 1), tap))
        logits = each[0] if len(each) == 1 else torch.cat(each)
        if self.done == 0 or self.lm.device.type == "cpu":
            _check_finite(logits, self.lm)
        known, tokens = self.steps[..., column], self.choose(column, logits, noise)
        self.steps[..., column] = torch.where(known == UNKNOWN, tokens, known)


class StaticStep:
    """The step of a window with fixed shapes, after the first; on CUDA, captured once and replayed."""

    def __init__(
        self,
        lm: LM,
        conditions: Sequence[Condition],
        caches: Sequence[list[KVCache]],
        steps: Tensor,
        choose: Callable[[Tensor, Tensor | None], Tensor],
    ):
        self.lm, self.conditions, self.steps, self.choose = lm, conditions, steps, choose
        self.caches = caches
        # Of each condition: the position of the next step, after those in the cache.
        self.positions = [torch.tensor([own[0].length], device=lm.device) for own in caches]
        self.static = [
            [StaticCache(cache, position) for cache in own]
            for own, position in zip(caches, self.positions, strict=True)
        ]
        self.decoders = [
            _decoder(lm, condition, own, position)
            for condition, own, position in zip(conditions, caches, self.positions, strict=True)
        ]
        self.column = torch.zeros(1, dtype=torch.long, device=lm.device)
        self.noise: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._hooks = RemovableHandle.next_id
        self._in_flight: deque[torch.cuda.Event] = deque()

    def current(self) -> bool:
        """Whether the model is still as it was captured; a new hook anywhere leads to a closer look."""
        if self._hooks == RemovableHandle.next_id:
            return True
        if capturable(self.lm):
            self._hooks = RemovableHandle.next_id
            return True
        return False

    def fill(self, column: int, noise: Tensor | None) -> None:
        """Generate the unknown tokens of the next `column`; `noise` [B, K, V] is on the CPU."""
        cuda = self.lm.device.type == "cuda"
        if noise is not None:
            if self.noise is None:
                self.noise = torch.empty_like(noise, device=self.lm.device)
            self.noise.copy_(noise.pin_memory() if cuda else noise, non_blocking=True)
        if self._graph is None:
            self.column.fill_(column)
            for position, own in zip(self.positions, self.caches, strict=True):
                position.fill_(own[0].length)
            self.run()
            if cuda:
                self._capture()
        else:
            self._graph.replay()
            self._wait()
        for own in self.caches:
            for cache in own:
                cache.length += 1

    def run(self) -> None:
        """One step, from tensors to tensors, without a look at their values."""
        new = self.steps.index_select(2, self.column - 1)
        logits = torch.cat([self._logits(new, i) for i in range(len(self.conditions))])
        tokens = self.choose(logits, self.noise)[..., None]
        known = self.steps.index_select(2, self.column)
        self.steps.index_copy_(2, self.column, torch.where(known == UNKNOWN, tokens, known))
        self.column += 1
        for position in self.positions:
            position += 1

    def _logits(self, new: Tensor, i: int) -> Tensor:
        """Logits [B, K, V] under condition i, as `LM.forward` computes them, at a position in a tensor."""
        lm, condition, position = self.lm, self.conditions[i], self.positions[i]
        new = new.repeat(condition.batch // len(new), 1, 1)
        decoder = self.decoders[i]
        if decoder is not None:
            return decoder.logits(new[..., 0])
        x = torch.stack([embed(new[:, k]) for k, embed in enumerate(lm.embeddings)]).sum(dim=0)
        padding = condition.padding
        place = position if padding is None else (position - padding[:, None]).clamp(min=0)
        x = x + sinusoid(place, lm.config.dim).to(x.dtype)

        key = torch.arange(self.static[i][0].storage.shape[3], device=x.device)
        allowed = (key <= position)[None, None, None]
        if padding is not None:
            allowed = allowed & (key >= padding[:, None, None, None])
        # Added to the scores; the kernels would convert a mask of booleans in every layer.
        mask = torch.zeros_like(allowed, dtype=x.dtype).masked_fill(~allowed, -math.inf)
        for layer, cache in zip(lm.layers, self.static[i], strict=True):
            x = layer(x, condition, cache, mask, False)
        return lm.logits(lm.norm(x))[:, :, 0]

    def _capture(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with CAPTURE, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.run()

    def _wait(self) -> None:
        """Let at most AHEAD replays be in flight."""
        event = torch.cuda.Event()
        event.record()
        self._in_flight.append(event)
        if len(self._in_flight) > AHEAD:
            self._in_flight.popleft().synchronize()


class StaticCache(KVCache):
    """A cache that returns its whole storage, the new keys and values written at a position in a tensor."""

    def __init__(self, cache: KVCache, position: Tensor):
        super().__init__(cache.storage)
        self.position, self.text = position, cache.text

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values [B, H, capacity, D / H]; a mask has to hide those after the position."""
        self.storage[0].index_copy_(2, self.position, keys)
        self.storage[1].index_copy_(2, self.position, values)
        return self.storage[0], self.storage[1]


def _decoder(lm: LM, condition: Condition, caches: list[KVCache], position: Tensor) -> "Decoder | None":
    """The kernels for this condition; None if they cannot be used here."""
    if lm.device.type not in KERNELS_ON:
        return None
    try:
        from mgkit import kernels
    except ImportError:
        # Triton comes with torch's CUDA wheels for Linux only.
        return None
    return kernels.Decoder(lm, condition, caches, position) if kernels.usable(lm, condition) else None


def capturable(lm: LM) -> bool:
    """Whether a graph of this model does all that its modules do: they are ours and without hooks."""
    modules = list(lm.modules())
    return lm.device.type in STATIC_ON and as_published(modules) and not hooked(modules)


def _check_finite(logits: Tensor, lm: LM) -> None:
    # The sum shows any NaN or infinity, in a quarter of the time; it may also overflow itself.
    if torch.isfinite(logits.sum()) or torch.isfinite(logits).all():
        return
    if all(torch.isfinite(parameter).all() for parameter in lm.parameters()):
        raise ValueError(
            f"the logits are not finite: the model overflows in {lm.dtype}; load it with dtype=torch.float32"
        )
    raise ValueError(
        "the logits are not finite: the language model's weights hold NaN or infinity; load it again"
    )
