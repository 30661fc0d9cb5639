"""audiocraft's files: tensors, and in `xp.cfg` the configuration of the training, as our configs.

    exported    state_dict.bin, compression_state_dict.bin   best_state: {name: tensor}, xp.cfg: YAML
    training    checkpoint.th, checkpoint_best.th, …_9.th    best_state, ema, model …, xp.cfg: omegaconf

A configuration refers to its own fields, as in `sample_rate: ${encodec.sample_rate}`.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import yaml
from torch import Tensor

from mgkit.formats import variants
from mgkit.formats.readers import WeightsError, reading, short
from mgkit.formats.tensor_files import Node, Stored, read_bin

T = TypeVar("T")

EXPORTED, TRAINING, CODEC = "state_dict.bin", "checkpoint.th", "compression_state_dict.bin"
BEST = "checkpoint_best.th"
# Best weights first, as audiocraft's own export takes them; sharded ones are in no single file.
STATES = ("fsdp_best_state.model", "best_state.model", "best_state", "ema.state.model", "model")
# Parts of names added by wrappers around a module in training: FSDP, checkpointing, torch.compile, DDP.
WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module"}


def language_model(folder: Path) -> Path | None:
    """The file of the language model in `folder`: exported, or the best or newest one of its training."""
    files = [folder / name for name in (EXPORTED, TRAINING, BEST)]
    epochs = [file for file in folder.glob("checkpoint_*.th") if re.fullmatch(r"[^_]+_\d+", file.stem)]
    files += sorted(epochs, key=lambda file: int(file.stem.split("_")[1]))[-1:]
    return next((file for file in files if file.exists()), None)


@dataclass(frozen=True)
class AudiocraftFile:
    """Tensors, and the training configuration in `xp.cfg`."""

    path: Path
    tensors: dict[str, Tensor]
    config: object

    @staticmethod
    def read(path: Path, content: dict | None = None) -> "AudiocraftFile":
        """The file at `path`, or its `content` if it has been read already.

        Raises: FileNotFoundError; WeightsError for a file of another kind.
        """
        content = read_bin(path) if content is None else content
        if "n_bands" in content:
            name = "MultiBandDiffusion"
            raise WeightsError(f"{path} holds n_bands; {name} is another model; mgkit does not run it")
        tensors, config = state_of(content), content.get("xp.cfg")
        if content and all(isinstance(value, Tensor) for value in content.values()):
            raise WeightsError(
                f"{path} holds a state dict without its configuration: give the name of the model that it "
                f"was fine-tuned from, as in get_pretrained('small', lm={str(path)!r})"
            )
        if tensors is None or not isinstance(config, str | Node):
            raise WeightsError(
                f"{path} is not from audiocraft: expected tensors in 'best_state', YAML in 'xp.cfg'"
            )
        if any("_flat_param" in name for name in tensors):
            raise WeightsError(
                f"{path} is one part of a model that FSDP shards over several files; export the whole model "
                "with audiocraft.utils.export.export_lm"
            )
        with reading(path, yaml.YAMLError, RecursionError, ValueError):
            config = config.plain() if isinstance(config, Node) else yaml.safe_load(config)
        return AudiocraftFile(path, tensors, config)

    @cached_property
    def source(self) -> dict[str, Stored]:
        """The tensors as `layouts.plan` takes them."""
        return {name: Stored.of(tensor) for name, tensor in self.tensors.items()}

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Shape of the tensor `name`, for sizes missing from the configuration."""
        if name not in self.tensors:
            raise WeightsError(f"{self.path} lacks the tensor {name!r}, which every MusicGen has")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != axes:
            raise WeightsError(f"{self.path}: {name!r} is {list(shape)}; expected {axes} axes")
        return shape

    def at(self, path: str) -> object:
        """The value at a dotted `path` of the configuration, references followed; None if there is none."""
        value = self.config
        for key in path.split("."):
            value = self._follow(value.get(key)) if isinstance(value, dict) else None
        return value

    def _follow(self, value: object, steps: int = 8) -> object:
        """The target of a reference `${a.b}`; any other value unchanged, `${oc.env:USER}` too."""
        match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if match is None or steps == 0:
            return value
        found = self.config
        for key in match[1].split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return self._follow(found, steps - 1)

    def section(self, path: str) -> dict[str, object]:
        """The settings at `path` by name, references followed; empty if there are none.

        Raises: WeightsError for a single value.
        """
        value = self.at(path)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise WeightsError(f"{self.path}: {path} is {short(value)} in its xp.cfg; expected a section")
        return {str(name): self._follow(inner) for name, inner in value.items()}

    def setting(self, path: str, *kinds: type[T], default: T | None = None) -> T:
        """The value at a dotted `path` of the configuration, such as "transformer_lm.num_heads".

        Raises: WeightsError for an absent value without a default, or one of another type than `kinds`.
        """
        value = self.at(path)
        if value is None and default is not None:
            return default
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise WeightsError(f"{self.path}: {path} is {short(value)} in its xp.cfg; expected {expected}")
        return value

    def require(self, path: str, value: object, default: object = None) -> None:
        """Compare the setting at `path` with `value`; an absent one has the `default`, or else the value.

        Raises: WeightsError for another value.
        """
        section, _, field = path.rpartition(".")
        found = self.at(path)
        settings = {field: default if found is None else found}
        if settings[field] is not None:
            variants.require(self.path, section or "xp.cfg", settings, {field: value})

    def require_sections(self, sections: dict[str, dict[str, object]]) -> None:
        """Compare whole sections with a table of `variants`."""
        for path, required in sections.items():
            variants.require_known(self.path, path, self.section(path), required)


def state_of(content: dict) -> dict[str, Tensor] | None:
    """The weights in a file, exported or from training, without prefixes of wrappers; None without any."""
    for path in STATES:
        state: object = content
        for key in path.split("."):
            state = state.get(key) if isinstance(state, dict) else None
        if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
            return {unwrapped(str(name)): tensor for name, tensor in state.items()}
    return None


def unwrapped(name: str) -> str:
    """Name of a tensor without the parts added by wrappers around its module.

    >>> unwrapped("_fsdp_wrapped_module.transformer._fsdp_wrapped_module.layers.0.norm1.bias")
    'transformer.layers.0.norm1.bias'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
