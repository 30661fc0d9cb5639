"""A folder to a `Model`, strictly, from either published layout.

    Hugging Face   config.json            -> empty modules <- *.safetensors
    audiocraft     xp.cfg, tensor shapes  -> empty modules <- state_dict.bin, compression_state_dict.bin, T5

Modules are built on the meta device, allocated, and filled tensor by tensor.
"""

import math
import os
import re
from pathlib import Path

import psutil
import torch

from mgkit import hub
from mgkit.files import finish, printable
from mgkit.formats.audiocraft_files import language_model, state_of, unwrapped
from mgkit.formats.audiocraft_loader import from_audiocraft
from mgkit.formats.huggingface_loader import from_hugging_face
from mgkit.formats.layouts import Plan, audiocraft, plan
from mgkit.formats.readers import WeightsError, quiet_transformers, short
from mgkit.formats.tensor_files import Stored, read_bin, read_safetensors
from mgkit.model import Model as Model
from mgkit.model import allocate
from mgkit.threads import counted


def load(
    name: str | os.PathLike,
    device: torch.device,
    dtype: torch.dtype,
    lm: str | os.PathLike | None = None,
) -> Model:
    """Load the model `name`: its language model in `dtype`, codec and conditioner in float32.

    `name` is one of `hub.NAMES`, a hub id such as `facebook/musicgen-small`, or a folder in either layout.
    `lm` is a file with the state dict of a fine-tuned language model, under audiocraft's or mgkit's names.

    Raises: ValueError for an unknown name, or files of another model; FileNotFoundError for missing files.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"the model is {name!r}; give a name, a hub id or a folder")
    name = os.fspath(name)
    folder = hub.snapshot(hub.find(name))
    try:
        finish(folder)
    except OSError as error:
        raise WeightsError(
            f"{folder}: writing it was interrupted, and it cannot be finished here "
            f"({error.strerror}); load it once from an account that may write to the folder"
        ) from None
    with quiet_transformers():
        first = _audiocraft_file(folder)
        model, values = (
            from_hugging_face(folder, dtype) if first is None else from_audiocraft(first, folder, dtype)
        )
        if lm is not None:
            values |= _fine_tuned(model, Path(lm))
        if device.type == "cpu":
            _require_memory(model, dtype, name)
        allocate(model, values, device, dtype)
    model.name = name
    if licence := hub.licence(name):
        model.licence = licence
    elif model.licence == Model.licence:
        model.licence = _licence_of_card(folder)
    # from a file that anyone may have written
    model.licence = printable(model.licence)
    return model


def _require_memory(model: Model, dtype: torch.dtype, name: str) -> None:
    """Raises: ValueError if a model of the meta device does not fit into the memory; says what would."""
    free, lm = _free_memory(), sum(parameter.numel() for parameter in model.lm.parameters())
    rest = sum(4 * p.numel() for part in (model.codec, model.conditioner) for p in part.parameters())
    need = {kind: lm * kind.itemsize + rest for kind in (dtype, torch.bfloat16, torch.int8)}
    if need[dtype] <= free:
        return
    fits = next((kind for kind in need if need[kind] <= free), None)
    advice = "close other programs, or take a smaller model"
    raise ValueError(
        f"{name} takes {need[dtype] / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB are free: "
        + (advice if fits is None else f"dtype={fits} takes {need[fits] / 1e9:.1f} GB")
    )


def _free_memory() -> float:
    """Bytes of memory and swap that a process could still take; infinity where the system does not say."""
    return counted(lambda: psutil.virtual_memory().available + psutil.swap_memory().free, math.inf)


def _licence_of_card(folder: Path) -> str:
    """The licence in the front matter of the folder's model card, README.md."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    match = re.search(r"^license: *(\S+)", text, re.MULTILINE)
    if match is None:
        return Model.licence
    return hub.CC_BY_NC if match[1] == "cc-by-nc-4.0" else match[1]


def _audiocraft_file(folder: Path) -> Path | None:
    """The language model of a folder in audiocraft's layout; None for the Hugging Face layout."""
    theirs = (folder / "config.json").exists() and any(folder.glob("pytorch_model*.bin"))
    if theirs or any(folder.glob("*.safetensors")):
        return None
    return language_model(folder)


# --- a language model alone ---------------------------------------------------------------------------------


def _fine_tuned(model: Model, path: Path) -> Plan:
    """The plan for the weights of `model` that a state dict at `path` replaces.

    Raises: FileNotFoundError; WeightsError for any other content, or the shapes of another model.
    """
    if path.suffix == ".safetensors" and path.exists():
        source, _ = read_safetensors(path)
    else:
        content = read_bin(path)
        tensors = content if _is_state(content) else state_of(content) or content.get("state_dict")
        if not isinstance(tensors, dict) or not _is_state(tensors):
            raise WeightsError(f"{path} holds {short(content)}; expected the state dict of a language model")
        source = {unwrapped(str(name)): Stored.of(tensor) for name, tensor in tensors.items()}
    ours = {f"lm.{name}" for name, _ in model.lm.named_parameters()}
    if "embeddings.0.weight" in source:
        source = {f"lm.{name}": tensor for name, tensor in source.items()}
        return plan(((n, p) for n, p in model.named_parameters() if n in ours), source, str, path)
    # audiocraft's language model includes the projections of its conditions.
    parts = ("lm.", "conditioner.text_proj", "conditioner.melody_proj")
    included = ((n, p) for n, p in model.named_parameters() if n.startswith(parts))
    return plan(included, source, audiocraft, path)


def _is_state(content: dict) -> bool:
    return bool(content) and all(isinstance(value, torch.Tensor) for value in content.values())
