"""Readers of the files of a checkpoint: JSON, safetensors, audiocraft's .bin, configs and tokenizers.

Loading catches errors here alone, around each parser: a damaged file becomes a `WeightsError` of one
sentence, a bug in mgkit keeps its traceback.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, T5EncoderModel

Read = Callable[[], Tensor]
T = TypeVar("T")


class WeightsError(ValueError):
    """A file of a checkpoint is damaged, or does not belong to a MusicGen; the message names both."""


@contextmanager
def reading(file: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn the `errors` of a parser for a damaged `file` into a WeightsError of one line."""
    try:
        yield
    except errors as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise WeightsError(f"{file} cannot be read ({reason}); download or copy it again") from error


def read_json(file: Path) -> dict:
    """The object in a JSON file.

    Raises: WeightsError for anything else.
    """
    with reading(file, json.JSONDecodeError, UnicodeDecodeError):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds {str(content)[:40]!r}; expected a JSON object")
    return content


def read_config(folder: Path) -> "PretrainedConfig":
    """transformers' config object for the folder's config.json, with its defaults for absent fields."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    kinds = (StrictDataclassError, AttributeError, KeyError, OSError, TypeError, ValueError)
    with reading(folder / "config.json", *kinds):
        return AutoConfig.from_pretrained(folder)


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of the folder, from `tokenizer.json` or `spiece.model`.

    Raises: FileNotFoundError without either; WeightsError for a damaged one.
    """
    from transformers import AutoTokenizer

    if not any((folder / file).exists() for file in ("tokenizer.json", "spiece.model")):
        raise FileNotFoundError(f"{folder} lacks its tokenizer: expected tokenizer.json or spiece.model")
    # The tokenizers library raises `Exception` itself; transformers adds KeyError, TypeError and others.
    with reading(folder / "tokenizer.json", Exception):
        return AutoTokenizer.from_pretrained(folder)


def meta_t5(config: "PretrainedConfig", folder: Path) -> "T5EncoderModel":
    """A T5 encoder of the shape in `config`, on the meta device.

    Raises: WeightsError for another architecture, or an impossible shape.
    """
    if config.model_type != "t5":
        raise WeightsError(f"{folder}: the text encoder is of type {config.model_type!r}; expected t5")
    encoder = _t5_encoder()
    kinds = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
    with reading(folder / "config.json", *kinds), torch.device("meta"):
        return encoder(config)


def _t5_encoder() -> "type[T5EncoderModel]":
    """transformers' T5 encoder, even if an installed torchaudio cannot be imported.

    transformers imports torchaudio along with any model class, if it is installed. Built for another version
    of torch, it raises OSError or RuntimeError. MusicGen does not need it: the second attempt hides it from
    transformers.
    """
    try:
        from transformers import T5EncoderModel
    except (ImportError, OSError, RuntimeError):
        from transformers import utils

        available, utils.is_torchaudio_available = utils.is_torchaudio_available, lambda: False
        try:
            from transformers import T5EncoderModel
        finally:
            utils.is_torchaudio_available = available
    return T5EncoderModel


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' warning about the special token, which lies outside the codebook by design."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def read_safetensors(folder: Path) -> tuple[dict[str, Read], dict[str, str]]:
    """Readers of every tensor in the folder's `*.safetensors`, which are mapped, and the files' metadata.

    Raises: WeightsError for a truncated file or one of another format.
    """
    from safetensors import SafetensorError, safe_open

    source: dict[str, Read] = {}
    metadata: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with reading(file, SafetensorError):
            handle = safe_open(file, framework="pt")
            metadata |= handle.metadata() or {}
            for name in handle.keys():  # noqa: SIM118 (a file handle is not a dict)
                source[name] = partial(handle.get_tensor, name)
    return source, metadata


def read_bin(file: Path) -> dict:
    """The dict in a file of `torch.save`, mapped. Code in the file is refused and never run.

    Raises: FileNotFoundError; WeightsError for a truncated file, or anything but tensors and plain values.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing: audiocraft's layout is state_dict.bin with compression_state_dict.bin"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        # Their message is left out: torch's explains how to open the file unsafely.
        raise WeightsError(
            f"{file} was not opened: it is truncated, in an old format, or contains code instead of tensors"
        ) from None
    if not isinstance(content, dict):
        raise WeightsError(
            f"{file} holds a {type(content).__name__}; expected the dict of an audiocraft model"
        )
    return content


@dataclass(frozen=True)
class AudiocraftFile:
    """One of audiocraft's two files: tensors, and the training configuration in `xp.cfg`."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict

    @staticmethod
    def read(path: Path) -> "AudiocraftFile":
        """The file at `path`.

        Raises: FileNotFoundError; WeightsError for a file of another kind.
        """
        import yaml

        content = read_bin(path)
        tensors, text = content.get("best_state"), content.get("xp.cfg")
        if not (isinstance(tensors, dict) and isinstance(text, str)) or not all(
            isinstance(value, Tensor) for value in tensors.values()
        ):
            raise WeightsError(
                f"{path} is not from audiocraft: expected tensors in 'best_state', YAML in 'xp.cfg'"
            )
        with reading(path, yaml.YAMLError):
            config = yaml.safe_load(text)
        return AudiocraftFile(path, tensors, config)

    @property
    def source(self) -> dict[str, Read]:
        """Readers of the tensors, as `fill` takes them."""
        return {name: tensor.detach for name, tensor in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, for sizes missing from the configuration."""
        if name not in self.tensors:
            raise WeightsError(f"{self.path} lacks the tensor {name!r}, which every MusicGen has")
        return self.tensors[name]

    def setting(self, path: str, *kinds: type[T], default: T | None = None) -> T:
        """The value at a dotted `path` of the configuration, such as "transformer_lm.num_heads".

        Raises: WeightsError for an absent value without a default, or one of another type than `kinds`.
        """
        value: object = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and default is not None:
            return default
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise WeightsError(f"{self.path}: {path} is {value!r} in its xp.cfg; expected {expected}")
        return value
