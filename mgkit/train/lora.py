"""Training LoRA adapters (arXiv:2106.09685): small matrices beside the frozen layers of a language model.

    W x  becomes  W x + (alpha / r) B A x,    A [r, in] random, B [out, r] zero at first

Only A and B have gradients and optimizer state. The files are those of Hugging Face's PEFT, with the names of
transformers' MusicGen, and mgkit and transformers both load them.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mgkit import adapters, hub
from mgkit.files import replace_files
from mgkit.formats.layouts import hugging_face
from mgkit.model import Model

LR = 1e-3  # the default learning rate, ten times that of full fine-tuning
LABEL = "mgkit_training"


def parse_rank(model: Model, rank: int) -> int:
    """`rank` itself.

    Raises: ValueError unless it is an integer from 1 to the model's width; ImportError without PEFT.
    """
    adapters.require_peft()
    if not isinstance(rank, int) or not 1 <= rank <= model.lm.config.dim:
        raise ValueError(
            f"the rank of the adapter is {rank!r}; give an integer from 1 to {model.lm.config.dim}, the "
            "model's width; 8 is usual"
        )
    return rank


def attach(model: Model, rank: int, layers: int | None, seed: int) -> list[nn.Parameter]:
    """Add matrices of this rank to every linear layer of the last `layers`, None for all; returns them."""
    from peft import LoraConfig

    first = 0 if layers is None else len(model.lm.layers) - layers
    names = [
        f"lm.layers.{number}.{name}"
        for number, layer in enumerate(model.lm.layers)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and number >= first
    ]
    config = LoraConfig(r=parse_rank(model, rank), lora_alpha=rank, target_modules=names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        root = adapters.attach(model, config, LABEL)
    return [parameter for name, parameter in root.named_parameters() if f".{LABEL}." in name]


def save(model: Model, folder: Path, card: str) -> None:
    """Write the adapter in training to `folder`, with a model card."""
    from peft import LoraConfig, get_peft_model_state_dict

    config = model.tuner.peft_config[LABEL]
    state = get_peft_model_state_dict(model.tuner.model, adapter_name=LABEL)
    weights, tensors, norms, names = adapters.matrices(model), {}, {}, set()
    for name, tensor in state.items():
        module, side = name.removesuffix(".weight").rsplit(".", 1)
        theirs = hugging_face(f"{module}.weight").removesuffix(".weight")
        tensors[f"base_model.model.{theirs}.{side}.weight"] = tensor.detach().cpu().contiguous()
        norms[module] = adapters.norm(weights[module])
        names.add(theirs)
    metadata = {"format": "pt", "base_norms": json.dumps(norms)}
    theirs_config = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=sorted(names),
        base_model_name_or_path=hub.PRESETS.get(model.name, model.name),
        inference_mode=True,
    )

    def write(draft: Path) -> None:
        save_file(tensors, draft / "adapter_model.safetensors", metadata)
        theirs_config.save_pretrained(str(draft))
        (draft / "README.md").write_text(card, encoding="utf-8")

    folder.mkdir(parents=True, exist_ok=True)
    replace_files(folder, write)
