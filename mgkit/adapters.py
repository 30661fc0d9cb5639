"""LoRA adapters in a model: loaded at a strength, several at once, merged into its weights.

    load("runs/mine/adapter", 0.7)    every adapted module computes W x + 0.7 s B A x, next to other adapters
    merge                             W + 0.7 s B A takes the place of W: no adapters, and the same speed

The modules that do this are PEFT's. Without adapters, and once they are merged, the model has none of them.
"""

import math
import os
import re
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mgkit import hub
from mgkit.brief import brief
from mgkit.files import finish
from mgkit.formats import adapter_files
from mgkit.formats.adapter_files import Lora
from mgkit.formats.readers import WeightsError
from mgkit.model import Adapter, Model

if TYPE_CHECKING:
    from peft import LoraConfig

TOLERANCE = 1e-3  # relative, of the norm of base weights: far above the rounding of bfloat16


def load(model: Model, path: str | os.PathLike, strength: float = 1.0) -> None:
    """Add the adapter in the folder or hub repository `path`, or set the strength of one loaded before.

    Strength 0 removes it. Nothing changes if the adapter is refused.

    Raises: ImportError without PEFT; FileNotFoundError without an adapter; WeightsError for one of another
    kind or another model; ValueError for a strength that is not a number, or an adapter merged before.
    """
    if not isinstance(strength, Real) or not math.isfinite(strength):
        raise ValueError(f"the strength is {brief(strength)}; it must be a number: 1 as trained, 0 for none")
    require_peft()
    name = os.fspath(path)
    folder = Path(name) if Path(name).is_dir() else hub.download(hub.hub_id(name))
    finish(folder)
    weights = matrices(model)
    lora = adapter_files.read(folder, weights)
    _require_base(model, lora, weights, folder)
    adapter = Adapter(Path(name).resolve().name, lora.digest, float(strength))
    same = [other for other in model.adapters if other.digest == adapter.digest]
    if any(other.merged for other in same):
        raise ValueError(f"{name} is merged into the model already: load the model again to change that")
    if strength and not same:
        _inject(model, lora, adapter.label)
    others = [replace(one, strength=adapter.strength) if one in same else one for one in model.adapters]
    _set_strengths(model, others if same else [*others, adapter])


def merge(model: Model) -> None:
    """Add all adapters to the weights of the model, at their strengths; its modules are as before any.

    Raises: ValueError without adapters.
    """
    if model.tuner is None:
        raise ValueError("the model has no adapters to merge: load one with load_adapter")
    from peft.tuners.lora import LoraLayer

    labels = [adapter.label for adapter in model.adapters if not adapter.merged]
    layers: list[Any] = [part for part in model.tuner.model.modules() if isinstance(part, LoraLayer)]
    with torch.no_grad():
        for layer in layers:
            for label in labels:
                if label in layer.r:
                    # PEFT's own merge assigns to `weight.data`, which has no effect on packed weights.
                    layer.get_base_layer().weight.add_(layer.get_delta_weight(label))
    model.tuner.unload()
    model.tuner = None
    model.adapters = tuple(replace(adapter, merged=True) for adapter in model.adapters)


def attach(model: Model, config: "LoraConfig", label: str) -> nn.Module:
    """Add new matrices to the modules that PEFT's `config` names, B = 0; returns the root of all modules."""
    from peft import LoraModel

    if model.tuner is None:
        root = nn.ModuleDict({"lm": model.lm, "conditioner": model.conditioner})
        model.tuner = LoraModel(root, config, label)
    else:
        model.tuner.peft_config[label] = config
        model.tuner.inject_adapter(model.tuner.model, label)
    return model.tuner.model


def matrices(model: Model) -> dict[str, Tensor]:
    """The weights of the modules that an adapter may adapt: the matrices of everything but the codec."""
    return {
        name.removesuffix(".weight"): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and not name.startswith("codec.")
    }


def norm(weight: Tensor) -> float:
    """The norm of a module's weights, by which an adapter recognizes the model it was trained on."""
    return float(weight.float().norm())


def require_peft() -> None:
    """Raises: ImportError without PEFT, with the command that installs it."""
    if find_spec("peft") is None:
        raise ImportError("adapters need Hugging Face's PEFT: pip install peft")


def _require_base(model: Model, lora: Lora, weights: dict[str, Tensor], folder: Path) -> None:
    """Raises: WeightsError if the adapter was trained on another model, as far as its files tell."""
    published = {"nano", *hub.PRESETS.values()}
    base, ours = (hub.PRESETS.get(name, name) for name in (lora.base, model.name))
    if base != ours and {base, ours} <= published:
        raise WeightsError(
            f"{folder} was trained on {lora.base!r}, and this is {model.name!r}: an adapter belongs to the "
            "weights that it was trained on; load those"
        )
    for name in lora.modules.keys() & lora.norms.keys():
        expected, found = lora.norms[name], norm(weights[name])
        if not math.isclose(expected, found, rel_tol=TOLERANCE):
            raise WeightsError(
                f"{folder} was trained on other weights than those of {model.name!r} here: the norm of "
                f"{name} was {expected:.5g} and is {found:.5g}; load the weights that it was trained on"
            )


def _inject(model: Model, lora: Lora, label: str) -> None:
    """Put the adapter into the model's modules."""
    from peft import LoraConfig, set_peft_model_state_dict

    ranks = {name: module.rank for name, module in lora.modules.items()}
    alphas = {name: module.alpha for name, module in lora.modules.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(ranks),
        rank_pattern={re.escape(name): r for name, r in ranks.items() if r != rank},
        alpha_pattern={re.escape(name): a for name, a in alphas.items() if a != alpha},
        use_rslora=lora.rank_stabilized,
    )
    # PEFT draws matrices at first, which must not advance the generator of a user's random seeds.
    with torch.random.fork_rng(devices=[]):
        root = attach(model, config, label)
    tensors: dict[str, Tensor] = {}
    for name, module in lora.modules.items():
        kind, end = ("lora_embedding_", "") if module.embedding else ("lora_", ".weight")
        tensors |= {f"{name}.{kind}A{end}": module.a, f"{name}.{kind}B{end}": module.b}
    set_peft_model_state_dict(root, tensors, adapter_name=label)


def _commonest(values: dict[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _set_strengths(model: Model, adapters: list[Adapter]) -> None:
    """Make these the adapters of the model, without those of strength 0."""
    from peft.tuners.lora import LoraLayer

    model.adapters = tuple(adapter for adapter in adapters if adapter.strength)
    if model.tuner is None:
        return
    active = {adapter.label: adapter.strength for adapter in model.adapters if not adapter.merged}
    if not active:
        model.tuner.unload()
        model.tuner = None
        return
    for label in model.tuner.peft_config.keys() - active.keys():
        model.tuner.delete_adapter(label)
    for module in model.tuner.model.modules():
        if isinstance(module, LoraLayer):
            for label, strength in active.items():
                module.set_scale(label, strength)
    model.tuner.set_adapter(list(active), inference_mode=True)
