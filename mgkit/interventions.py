"""All that a request changes inside the model: its edits, and a hook on its logits.

Axes: B batch, K codebooks, V codebook size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mgkit.brief import brief
from mgkit.edits import Add, At, Change, Edit, Patch, ScaleHead, check_returned, name_of
from mgkit.lm import LMConfig, Tap
from mgkit.settings import Settings

LogitsHook: TypeAlias = Callable[[Tensor, int], Tensor]
"""Changes logits [B, K, V] after guidance, given the number of the step; returns those to draw from.

Steps count from the beginning of the piece (`mgkit.edits`); at the beginning of a later window, the last few
numbers come again. The B samples are those of the request whose windows are the same.
"""


@dataclass(frozen=True)
class Interventions:
    """The edits and the hook of a request; the frame rate turns steps into seconds."""

    edits: Sequence[Change] = ()
    logits: LogitsHook | None = None
    frame_rate: int = 50

    def record(self) -> dict[str, Any]:
        """The entries of a manifest: the edits, and the name of the hook."""
        name = None if self.logits is None else name_of(self.logits)
        return {"edits": [edit.record() for edit in self.edits], "logits": name}

    @property
    def active(self) -> Sequence[Change]:
        """The edits that may change something; without any, a run is as fast as without edits."""
        return [edit for edit in self.edits if not edit.idle]

    @property
    def one_sided(self) -> bool:
        """Whether the guidance streams differ by an edit."""
        return any(edit.streams != "both" for edit in self.active)

    def tap(self, prompts: int, start: int, columns: range) -> Tap | None:
        """The tap of a pass over `columns` of a window from frame `start`.

        The first `prompts` rows of its batch are those of the stream "prompt".
        """
        steps = range(start + columns.start, start + columns.stop)
        return EditedPass(self.active, prompts, steps, self.frame_rate) if self.active else None

    def change_logits(self, logits: Tensor, step: int) -> Tensor:
        """The logits [B, K, V] to draw from."""
        if self.logits is None:
            return logits
        changed = self.logits(logits, step)
        check_returned(changed, logits, f"the function logits, at step {step},")
        if not changed.amax(dim=-1).isfinite().all():
            raise ValueError(
                f"the function logits, at step {step}, left no token, or returned NaN or infinity: keep at "
                "least one finite logit for each sample and codebook"
            )
        return changed.float()


NONE = Interventions()


@dataclass(frozen=True)
class EditedPass:
    """The edits of one forward pass; an `lm.Tap`."""

    edits: Sequence[Change]
    prompts: int  # the first rows of the batch, those of the stream "prompt"
    steps: range
    frame_rate: int

    def __call__(self, layer: int, site: str, x: Tensor) -> Tensor:
        for edit in self.edits:
            if edit.applies(layer, site):
                first = self.prompts if edit.streams == "null" else 0
                last = self.prompts if edit.streams == "prompt" else len(x)
                if first < last:
                    changed = edit.apply(x[first:last], At(layer, site, self.steps), self.frame_rate)
                    x = torch.cat([x[:first], changed, x[last:]])
        return x


def parse_interventions(
    edits: Sequence[Change],
    logits: LogitsHook | None,
    config: LMConfig,
    frame_rate: int,
    settings: Settings,
) -> Interventions:
    """The edits and the hook of a request, compared with the model and the settings.

    Raises:
        ValueError: another type, an edit that does not fit the model, or one that cannot have an effect.
    """
    if not isinstance(edits, list | tuple):
        raise ValueError(f"edits is {brief(edits)}; it must be a list, such as edits=[ScaleHead(3, 5, 0)]")
    for edit in edits:
        if not isinstance(edit, Add | ScaleHead | Patch | Edit):
            raise ValueError(
                f"edits holds {brief(edit)}; it must hold Add, ScaleHead, Patch or Edit of mgkit.edits"
            )
        edit.check(config)
        if edit.streams == "null" and settings.cfg_coef == 1 and settings.cfg_coef_beta is None:
            raise ValueError(
                f"{brief(edit)} has no effect without guidance: set a cfg_coef other than 1, or "
                "streams='prompt'"
            )
    if logits is not None and not callable(logits):
        raise ValueError(f"logits is {brief(logits)}; it must be a function of logits [B, K, V] and the step")
    return Interventions(tuple(edits), logits, frame_rate)
