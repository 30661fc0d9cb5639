"""Tensors in files: safetensors, torch's .bin and .th, whole or in shards. Nothing in them is ever run.

    folder -> weight_files: its files -> read_tensors: {name: Stored} -> layouts.plan -> parameters

A `Stored` tensor knows its shape before it is read: the plan compares all shapes first.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgkit.formats.readers import WeightsError, read_json, reading

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, whether it holds floating-point numbers, and its reader."""

    shape: tuple[int, ...]
    floating: bool
    read: Callable[[], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> "Stored":
        """A tensor in memory or mapped; sparse, quantized and scaled ones do not count as floating."""
        plain = tensor.layout is torch.strided and tensor.dtype in FLOATS
        return Stored(tuple(tensor.shape), plain, tensor.detach)


def read_tensors(folder: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Every tensor of a folder in the Hugging Face layout, and the metadata of its files.

    Raises: FileNotFoundError without weights or one of their shards; WeightsError for a damaged file, files
    of two models, or a tensor in two files.
    """
    source: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in weight_files(folder):
        tensors, more = read_safetensors(file) if file.suffix == ".safetensors" else (_read_pt(file), {})
        if twice := next(iter(source.keys() & tensors.keys()), None):
            raise WeightsError(
                f"{folder} has {twice!r} in two files, one of them {file.name}: they belong to two models; "
                "delete the files of one"
            )
        source |= tensors
        metadata |= more
    return source, metadata


def weight_files(folder: Path) -> list[Path]:
    """The files of the folder's weights: those in the index of the shards, if there is one.

    `model.safetensors` or its shards, else `pytorch_model.bin` or its shards: transformers' order.

    Raises: FileNotFoundError without weights or one of their shards; WeightsError for both kinds at once.
    """
    for whole, pattern in (
        ("model.safetensors", "*.safetensors"),
        ("pytorch_model.bin", "pytorch_model*.bin"),
    ):
        index, files = folder / f"{whole}.index.json", sorted(folder.glob(pattern))
        if index.exists() and (folder / whole).exists():
            raise WeightsError(
                f"{folder} has {whole} and also {index.name} of shards; delete the older of the two"
            )
        if index.exists():
            names = read_json(index).get("weight_map")
            values = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
            if not values or any(Path(name).name != name for name in values):
                raise WeightsError(f"{index} lists no files of this folder in its weight_map; copy it again")
            files = [folder / name for name in values]
        else:
            files += [file for shards in _shards(files).values() for file in shards if file not in files]
        for file in files:
            if not file.exists():
                raise FileNotFoundError(f"{file} is missing, a part of the model's weights; copy it again")
        if files:
            return files
    raise FileNotFoundError(f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin")


def _shards(files: list[Path]) -> dict[str, list[Path]]:
    """Complete lists of shards, from the names of `files`: `model-00001-of-00003.safetensors`, …"""
    complete: dict[str, list[Path]] = {}
    for file in files:
        if match := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", file.stem):
            stem, count = match[1], min(int(match[2]), 9999)
            names = [f"{stem}-{i:05}-of-{match[2]}{file.suffix}" for i in range(1, count + 1)]
            complete[f"{stem} of {count}"] = [file.with_name(name) for name in names]
    return complete


def read_safetensors(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors in a safetensors file, each read from it when asked for, and its metadata.

    Not mapped: pages of a mapped file that have been read count as memory of the process, as much again as
    the model.

    Raises: WeightsError for a truncated file or one of another format.
    """
    from safetensors import SafetensorError, safe_open

    with reading(file, SafetensorError, ValueError, LookupError):
        with safe_open(file, framework="pt") as handle:  # checks the whole header
            metadata = handle.metadata() or {}
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        return {name: _slice(file, 8 + size, **entry) for name, entry in header.items()}, metadata


# The names of types of floating-point numbers in a safetensors file.
STORED_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def _slice(file: Path, data: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
    """One tensor of a safetensors file, whose tensors begin at byte `data`."""
    start, end = data_offsets

    def read() -> Tensor:
        with file.open("rb") as opened:
            opened.seek(data + start)
            content = bytearray(opened.read(end - start))
        if len(content) != end - start:
            raise WeightsError(f"{file} was cut while it was read; copy it again")
        return torch.frombuffer(content, dtype=STORED_FLOATS[dtype]).view(shape)

    return Stored(tuple(shape), dtype in STORED_FLOATS, read)


def _read_pt(file: Path) -> dict[str, Stored]:
    """The tensors in a state dict of torch."""
    content = read_bin(file)
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{file} holds more than tensors; expected the state dict of a model")
    return {str(name): Stored.of(tensor) for name, tensor in content.items()}


def read_bin(file: Path) -> dict:
    """The dict in a file of `torch.save`, mapped if torch can. Code in the file is refused and never run.

    Raises: FileNotFoundError; WeightsError for a truncated file, or anything but tensors and plain values.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing")
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
    ):
        # Their message is left out: torch's explains how to open the file unsafely.
        raise WeightsError(
            f"{file} was not opened: it is truncated, or contains code instead of tensors; download it again"
        ) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds a {type(content).__name__}; expected the dict of a model")
    return content


class Node:
    """A value of omegaconf, in which audiocraft's training stores `xp.cfg`, without running omegaconf's code.

    Its pickle is a dict of attributes: `_content` is the value, a dict of nodes or a list of nodes.
    """

    def plain(self) -> object:
        """The value as dicts, lists and scalars; a missing one is None."""
        content = self.__dict__.get("_content", self.__dict__.get("_val"))
        if isinstance(content, dict):
            return {
                key: value.plain() if isinstance(value, Node) else value for key, value in content.items()
            }
        if isinstance(content, list):
            return [value.plain() if isinstance(value, Node) else value for value in content]
        return None if content == "???" else content


def _default_dict(*factory: object) -> dict:
    """An empty dict in place of a `defaultdict`, which torch does not fill."""
    return {}


def _stand_ins() -> list[Callable | tuple[Callable, str]]:
    """Classes named in the pickles of an audiocraft training: plain ones, and `Node` for omegaconf's."""
    nodes = ("Any", "String", "Integer", "Float", "Boolean", "Path", "Bytes", "InterpolationResult")
    names = [
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "typing.Any"),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
        *(f"omegaconf.nodes.{node}Node" for node in nodes),
    ]
    plain = {"dict": dict, "list": list, "int": int, "long": int, "float": float, "bool": bool, "str": str}
    return [
        (_default_dict, "collections.defaultdict"),
        *((type(name.rpartition(".")[2], (Node,), {}), name) for name in names),
        *(
            (kind, f"{module}.{name}")
            for name, kind in plain.items()
            for module in ("builtins", "__builtin__")
        ),
    ]
