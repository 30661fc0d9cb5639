"""Readers of a checkpoint's small files: JSON, configs and tokenizers; `tensor_files` reads the large ones.

Loading catches errors here alone, around each parser: a damaged file becomes a `WeightsError` of one
sentence, a bug in mgkit keeps its traceback. Text is UTF-8, with or without a byte order mark.
"""

import json
import reprlib
import tempfile
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, T5EncoderModel

# Types in config.json and the class of their configuration in transformers.
CONFIGS = {
    "musicgen": "MusicgenConfig",
    "musicgen_melody": "MusicgenMelodyConfig",
    "t5": "T5Config",
    "encodec": "EncodecConfig",
}
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("config.json", "spiece.model"),
)


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
    with reading(file, ValueError, RecursionError):
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds {str(content)[:40]!r}; expected a JSON object")
    return content


def read_config(folder: Path) -> "PretrainedConfig":
    """transformers' config object for the folder's config.json, with its defaults for absent fields.

    Raises: WeightsError for a type that is not in `CONFIGS`, or impossible values.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    content = read_json(folder / "config.json")
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise WeightsError(
            f"{folder} holds a model of type {short(kind)}; expected one of {', '.join(CONFIGS)}"
        )
    kinds = (
        StrictDataclassError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
        RecursionError,
    )
    with reading(folder / "config.json", *kinds):
        return getattr(transformers, CONFIGS[kind]).from_dict(content)


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of the folder, from `tokenizer.json` or `spiece.model`.

    Raises: FileNotFoundError without either; WeightsError for a damaged one.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").exists():
        if not (folder / "spiece.model").exists():
            raise FileNotFoundError(f"{folder} lacks its tokenizer: expected tokenizer.json or spiece.model")
        if find_spec("sentencepiece") is None:
            raise WeightsError(
                f"{folder} has its tokenizer as spiece.model alone, which takes the package sentencepiece to "
                "read: copy tokenizer.json of the same T5 into the folder, or run: pip install sentencepiece "
                "protobuf"
            )
    # The tokenizers library raises `Exception` itself; transformers adds KeyError, TypeError and others.
    with reading(folder / "tokenizer.json", Exception), _without_marks(folder) as clean:
        return AutoTokenizer.from_pretrained(clean, trust_remote_code=False)


@contextmanager
def _without_marks(folder: Path) -> Iterator[Path]:
    """`folder`, or a copy of its tokenizer without byte order marks, which transformers cannot read."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    if not any(file.open("rb").read(3) == BOM_UTF8 for file in files):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for file in files:
            Path(copy, file.name).write_bytes(file.read_bytes().removeprefix(BOM_UTF8))
        yield Path(copy)


def meta_t5(config: "PretrainedConfig", folder: Path) -> "T5EncoderModel":
    """A T5 encoder of the shape in `config`, on the meta device.

    Raises: WeightsError for another architecture, or an impossible shape.
    """
    if config.model_type != "t5":
        raise WeightsError(f"{folder}: the text encoder is of type {config.model_type!r}; expected t5")
    if not isinstance(config.num_layers, int) or not 1 <= config.num_layers <= 512:
        raise WeightsError(
            f"{folder}: the text encoder has {short(config.num_layers)} layers; expected 1 to 512"
        )
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


def short(value: object) -> str:
    """`value` for an error message, shortened even if it is huge."""
    shortener = reprlib.Repr()
    shortener.maxother = shortener.maxstring = 60
    return shortener.repr(value)
