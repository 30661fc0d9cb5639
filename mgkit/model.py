"""The three parts of a MusicGen as one `Model`: built on the meta device, then allocated and filled.

configs -> on_meta: shapes alone -> layouts.plan: all shapes compared -> allocate: memory, values
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mgkit import hub
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.fast import Step, as_published
from mgkit.formats.layouts import Plan, fill
from mgkit.formats.readers import meta_t5, read_tokenizer
from mgkit.linear import Linear, adjoin, joint
from mgkit.lm import LM, Condition, LMConfig
from mgkit.packed import packable
from mgkit.text import TextEncoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter loaded into a model; once it is `merged`, it is part of the weights."""

    name: str
    digest: str
    strength: float
    merged: bool = False

    @property
    def label(self) -> str:
        """Its name within PEFT."""
        return f"mgkit_{self.digest}"


@dataclass
class Model:
    """The three parts of a MusicGen; `window` is the length of its training clips in seconds."""

    codec: Codec
    lm: LM
    conditioner: Conditioner
    name: str = ""
    window: float = 30.0
    licence: str = "unknown: ask who made these weights"
    adapters: tuple[Adapter, ...] = ()
    tuner: Any = None  # PEFT's LoraModel, while there are adapters that are not merged

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Let a copy by `copy.deepcopy` or `pickle` take the same steps as the original, in the same time."""
        self.__dict__.update(state)
        if as_published(list(self.lm.modules())):
            join(self.lm)

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.codec.config.sample_rate

    @property
    def frame_rate(self) -> int:
        """Frames of tokens per second."""
        return self.codec.config.frame_rate

    @property
    def channels(self) -> int:
        """1, or 2 for stereo."""
        return self.lm.config.channels

    @property
    def window_frames(self) -> int:
        """Frames of a window."""
        return round(self.window * self.frame_rate)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter but those of adapters, by its full name: `codec.…`, `lm.…` or `conditioner.…`."""
        for part in ("codec", "lm", "conditioner"):
            for name, parameter in getattr(self, part).named_parameters(prefix=part):
                if ".mgkit_" not in name:
                    yield name.replace(".base_layer.", "."), parameter

    def memory(self, seconds: float = 0.0) -> float:
        """Approximate bytes of weights and KV cache for `seconds` of music on a CPU; see `hub.memory`."""
        weights = sum(p.numel() * p.element_size() for _, p in self.named_parameters())
        steps = min(seconds, self.window) * self.codec.config.frame_rate
        return weights + hub.kv_cache(self.lm.config.layers, self.lm.config.dim, steps)


def empty_text_encoder(folder: Path, config: "PretrainedConfig") -> TextEncoder:
    """The folder's tokenizer with a T5 encoder on the meta device."""
    return TextEncoder(read_tokenizer(folder), meta_t5(config, folder))


def on_meta(
    codec: CodecConfig, lm: LMConfig, text: TextEncoder, melody_frames: int | None, dtype: torch.dtype
) -> Model:
    """A model around `text` on the meta device, which has shapes and no memory."""
    with torch.device("meta"):
        # Whatever torch's default dtype is.
        conditioner = Conditioner(text, lm.dim, melody_frames).float()
        network = LM(lm).to(dtype if dtype.is_floating_point else torch.float32)
        return Model(Codec(codec).float(), network, conditioner)


def allocate(model: Model, values: Plan, device: torch.device, dtype: torch.dtype) -> None:
    """Allocate a model of the meta device and fill it; it is in inference mode, without gradients.

    On a CPU, linear layers of the language model in bfloat16 or int8 are packed, one after the other, so that
    their plain weights are never in memory together.
    """
    for module in (model.codec, model.lm, model.conditioner):
        module.to_empty(device=device)
    # `to_empty` separates these two names of one tensor.
    t5 = model.conditioner.text.t5
    t5.encoder.embed_tokens.weight = t5.shared.weight
    if not narrow(device, dtype):
        arrange(model.lm, dtype)
    linears = {f"lm.{name}.weight": part for name, part in model.lm.named_modules() if type(part) is Linear}
    fill(((name, p) for name, p in model.named_parameters() if name not in linears), values)
    for name, part in linears.items():
        fill([(name, part.weight)], values)
        if narrow(device, dtype):
            part.pack(dtype)
    if narrow(device, dtype):
        join(model.lm)
    if dtype == torch.int8:
        warm_up(dtype)
    for module in (model.codec, model.lm, model.conditioner):
        module.eval().requires_grad_(False)


def narrow(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether linear layers are packed in this type on this device."""
    return device.type == "cpu" and packable(dtype)


def arrange(lm: LM, dtype: torch.dtype) -> None:
    """Convert a language model to `dtype`, its weights where its step on a CPU finds them fastest."""
    if dtype.is_floating_point:
        lm.to(dtype)
    if narrow(lm.device, dtype):
        for part in lm.modules():
            if type(part) is Linear:
                part.pack(dtype)
    join(lm)


def join(lm: LM) -> None:
    """Move weights that a step reads together to adjacent places: one product, one look-up."""
    projections = [(own.q_proj, own.k_proj, own.v_proj) for own in (layer.attention for layer in lm.layers)]
    for modules in (lm.embeddings, lm.heads, *projections):
        weights = [module.weight for module in modules]
        if joint(weights) is None:
            adjoin(weights)


def compile_steps(lm: LM) -> None:
    """Let steps in float32 use the loops of `compiled_step`.

    Raises:
        ValueError: a model that has none.
    """
    dtype = lm.heads[0].weight.dtype
    if lm.device.type != "cpu" or dtype not in (torch.float32, torch.int8):
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"compile() is for float32 and int8 on a CPU, and this model is in {kind} on {lm.device.type}"
            + ("; load it with dtype=torch.int8 or without dtype" if lm.device.type == "cpu" else "")
        )
    lm.compiled = True
    warm_up(dtype)


@cache
def warm_up(dtype: torch.dtype) -> None:
    """Compile the loops of a step, or load what was compiled: not only when the music is to begin."""
    with torch.random.fork_rng(devices=[]):
        lm = LM(LMConfig(dim=8, layers=1, heads=2, feed_forward=8, codebooks=1, codebook_size=2))
    lm.requires_grad_(False).compiled = True
    arrange(lm, dtype)
    step = Step(lm, Condition(cross=torch.zeros(2, 1, 8)), length=2)
    for _ in range(2):
        step(torch.zeros(2, 1, 1, dtype=torch.long))
