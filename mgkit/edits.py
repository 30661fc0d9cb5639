"""Edits: what a forward pass may change, as values given to `generate`, `stream`, `live`, `retrace`, `score`.

Axes: B batch, S steps, D width, H heads, L layers.

    Add(layer, direction, strength)    residual[layer] + strength * direction             [B, S, D]
    ScaleHead(layer, head, factor)     the output of one attention head, times factor     [B, H, S, D / H]
    Patch(layer, source, steps)        residual[layer] replaced by `source` at some steps [B, S, D]
    Edit(function)                     anything, by a function of one's own

The residual stream is numbered as in `LM.residuals`: `layer` 0 to L - 1 is the input of a layer, L the output
of the last. Heads are in layers 0 to L - 1. Step s predicts frame s of codebook 0, frame s - 1 of codebook 1,
and so on; its time in seconds is s / frame rate. All numbers count from the beginning of the piece, an audio
prompt included. What precedes the music in a melody model, chroma and words, is changed by `ScaleHead` only.

`streams` chooses the passes of guidance: "prompt", those given the prompt; "null", the others (the null
condition or the negative prompt, and in double guidance the melody alone); "both", as a forward hook would.
Guidance amplifies the difference between the streams, so an edit of one of them acts more strongly.

A run with edits takes ordinary steps, which in bfloat16 and int8 round otherwise than the fast ones of
`fast.py` do: compare it with a run whose edit is small, not with one without edits.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.brief import brief
from mgkit.lm import LMConfig
from mgkit.schedule import Schedule, parse_schedule, value_at

STREAMS = ("prompt", "null", "both")
LARGEST = 1e6  # strength or factor; far beyond any use, and far below overflow


class At(NamedTuple):
    """The place of an activation in a forward pass; `site` is one of `lm.Tap`'s."""

    layer: int
    site: str
    steps: range


class Change(Protocol):
    """An edit: it changes some activations of the rows of its guidance streams."""

    @property
    def streams(self) -> str:
        """The guidance streams that it changes, one of STREAMS."""

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, whatever the activations."""

    def check(self, config: LMConfig) -> None:
        """Compare the edit with a model. Raises: ValueError if they do not fit."""

    def applies(self, layer: int, site: str) -> bool:
        """Whether it changes this activation."""

    def apply(self, x: Tensor, at: At, frame_rate: int) -> Tensor:
        """The activation changed; the steps are the last positions on its axis -2."""

    def record(self) -> dict[str, Any]:
        """The edit in plain values, for a manifest; a tensor as its digest."""


@dataclass(frozen=True, eq=False)
class Add:
    """Add `strength` times `direction` [D] to the residual stream at `layer`, at every step.

    The strength is a number or a schedule over seconds, [(0, 0.0), (4, 8.0)]; the direction is used as given,
    not normalized. With strength 0, nothing changes.
    """

    layer: int
    direction: Tensor = field(repr=False)
    strength: Schedule = 1.0
    streams: str = "both"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", parse_schedule(self.strength, "strength", -LARGEST, LARGEST))
        _check_streams(self)
        _check_tensor(self.direction, "direction", 1, "[D]")

    @property
    def idle(self) -> bool:
        return self.strength == 0

    def check(self, config: LMConfig) -> None:
        _check_index(self, "layer", self.layer, config.layers)
        _check_width(self, self.direction, "direction", config.dim)

    def applies(self, layer: int, site: str) -> bool:
        return (layer, site) == (self.layer, "residual")

    def apply(self, x: Tensor, at: At, frame_rate: int) -> Tensor:
        strengths = [value_at(self.strength, step / frame_rate) for step in at.steps]
        added = torch.tensor(strengths, device=x.device)[:, None] * self.direction.to(x.device).float()
        return x + F.pad(added, (0, 0, x.shape[-2] - len(added), 0)).to(x.dtype)

    def record(self) -> dict[str, Any]:
        strength = self.strength
        plain = list(map(list, strength)) if isinstance(strength, tuple) else strength
        return _record(self, layer=int(self.layer), strength=plain, direction=digest(self.direction))


@dataclass(frozen=True)
class ScaleHead:
    """Multiply the output of one attention head by `factor`: 0 switches it off, 1 changes nothing.

    `cross` takes a head of the cross-attention to the text, which text models have. The factor applies at
    every position, chroma and words included, as if the weights had been changed.
    """

    layer: int
    head: int
    factor: float
    streams: str = "both"
    cross: bool = False

    def __post_init__(self) -> None:
        if (
            isinstance(self.factor, bool)
            or not isinstance(self.factor, Real)
            or not abs(self.factor) <= LARGEST
        ):
            raise ValueError(
                f"factor is {brief(self.factor)}; it must be a number, such as 0 to switch the head off"
            )
        _check_streams(self)

    @property
    def idle(self) -> bool:
        return self.factor == 1

    def check(self, config: LMConfig) -> None:
        _check_index(self, "layer", self.layer, config.layers - 1)
        _check_index(self, "head", self.head, config.heads - 1)
        if self.cross and not config.cross_attention:
            raise ValueError(
                f"{self} is for a head of the cross-attention, and this model attends to words by "
                "self-attention: leave out cross=True"
            )

    def applies(self, layer: int, site: str) -> bool:
        return (layer, site) == (self.layer, "cross_attention" if self.cross else "attention")

    def apply(self, x: Tensor, at: At, frame_rate: int) -> Tensor:
        factors = torch.ones(x.shape[-3], device=x.device, dtype=x.dtype)
        factors[self.head] = float(self.factor)
        return x * factors[:, None, None]

    def record(self) -> dict[str, Any]:
        return _record(
            self, layer=int(self.layer), head=int(self.head), factor=float(self.factor), cross=self.cross
        )


@dataclass(frozen=True, eq=False)
class Patch:
    """Replace the residual stream at `layer` by that of another piece, `source` [S, D], at `steps`.

    The source is `trace.residual[layer]` of a trace of the prompt's stream, so by default that stream is
    patched; `steps` defaults to all that the source has.
    """

    layer: int
    source: Tensor = field(repr=False)
    steps: Sequence[int] | None = field(default=None, repr=False)
    streams: str = "prompt"

    def __post_init__(self) -> None:
        _check_streams(self)
        _check_tensor(self.source, "source", 2, "[S, D], such as trace.residual[3]")
        steps = range(len(self.source)) if self.steps is None else list(self.steps)
        if not all(isinstance(step, Integral) and 0 <= step < len(self.source) for step in steps):
            raise ValueError(
                f"steps are {brief(self.steps)}; they must be integers from 0 to {len(self.source) - 1}, "
                "steps of the source"
            )
        object.__setattr__(self, "steps", tuple(sorted({int(step) for step in steps})))

    @property
    def idle(self) -> bool:
        return not self.steps

    def check(self, config: LMConfig) -> None:
        _check_index(self, "layer", self.layer, config.layers)
        _check_width(self, self.source, "source", config.dim)

    def applies(self, layer: int, site: str) -> bool:
        return (layer, site) == (self.layer, "residual")

    def apply(self, x: Tensor, at: At, frame_rate: int) -> Tensor:
        assert self.steps is not None
        steps = [step for step in self.steps if step in at.steps]
        if not steps:
            return x
        places = [x.shape[-2] - len(at.steps) + step - at.steps.start for step in steps]
        x = x.clone()
        x[:, places] = self.source[steps].to(x.device, x.dtype)
        return x

    def record(self) -> dict[str, Any]:
        assert self.steps is not None
        return _record(self, layer=int(self.layer), steps=list(self.steps), source=digest(self.source))


@dataclass(frozen=True)
class Edit:
    """Call `function(x, at)` on every activation; it returns one of the same shape to use instead.

    x holds the activations of the steps `at.steps` (see `At`): [B, S, D] at the sites "residual" and
    "mlp", [B, H, S, D / H] at "attention" and "cross_attention". A manifest records the function's name
    alone: to replay, give the same function again.
    """

    function: Callable[[Tensor, At], Tensor]
    streams: str = "both"

    def __post_init__(self) -> None:
        _check_streams(self)
        if not callable(self.function):
            raise ValueError(f"an Edit takes a function of (x, at), not {brief(self.function)}")

    @property
    def idle(self) -> bool:
        return False

    def check(self, config: LMConfig) -> None:
        pass

    def applies(self, layer: int, site: str) -> bool:
        return True

    def apply(self, x: Tensor, at: At, frame_rate: int) -> Tensor:
        before, steps = x.tensor_split([x.shape[-2] - len(at.steps)], dim=-2)
        changed = self.function(steps, at)
        check_returned(changed, steps, f"the function of an Edit, at the {at.site} of layer {at.layer},")
        return torch.cat([before, changed], dim=-2)

    def record(self) -> dict[str, Any]:
        return _record(self, function=name_of(self.function))


def digest(values: Tensor) -> str:
    """A digest of a tensor's shape and its values in float32."""
    plain = values.detach().cpu().float().contiguous()
    return hashlib.sha256(f"{list(plain.shape)}".encode() + plain.numpy().tobytes()).hexdigest()[:32]


def name_of(function: Callable) -> str:
    """The name of a function, for a manifest."""
    return (
        f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
    )


def _record(edit: Change, **values: Any) -> dict[str, Any]:
    return {"edit": type(edit).__name__, **values, "streams": edit.streams}


def check_returned(changed: object, given: Tensor, who: str) -> None:
    """Check that a user's function returned a tensor of the shape that it was given. Raises: ValueError."""
    if not isinstance(changed, Tensor) or changed.shape != given.shape:
        returned = list(changed.shape) if isinstance(changed, Tensor) else brief(changed)
        raise ValueError(f"{who} returned {returned}; it must return a tensor {list(given.shape)}")


def _check_streams(edit: Change) -> None:
    if edit.streams not in STREAMS:
        raise ValueError(f"streams is {brief(edit.streams)}; it must be one of {', '.join(STREAMS)}")


def _check_tensor(value: object, name: str, axes: int, expected: str) -> None:
    if not isinstance(value, Tensor) or value.ndim != axes or not value.is_floating_point():
        seen = f"a tensor {list(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else brief(value)
        raise ValueError(f"{name} is {seen}; it must be a tensor of floats {expected}")
    if not value.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity: compute it again")


def _check_width(edit: Change, value: Tensor, name: str, dim: int) -> None:
    if value.shape[-1] != dim:
        raise ValueError(
            f"the {name} of {edit} has width {value.shape[-1]}, and this model's residual stream has {dim}: "
            "take it from the same model"
        )


def _check_index(edit: Change, name: str, value: object, last: int) -> None:
    # numpy's integers too
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= last:
        raise ValueError(f"the {name} of {edit} must be an integer from 0 to {last} in this model")
