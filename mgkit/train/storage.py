"""Files of a training run: tensors and plain values, which are read without running code.

A pickle may hold any code. `torch.load` refuses all but tensors and plain values with `weights_only`, but not
every number of NumPy; `save` turns those into Python's own, bit for bit.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgkit import audio


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write dicts, lists, tensors and plain values as one file, completely or not at all."""
    content = plain(state)
    audio.replace_file(path, lambda draft: torch.save(content, draft))


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a file written by `save`; code in a file is refused, not run.

    Raises: FileNotFoundError; ValueError for a damaged file, or one with other content.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    # Damaged bytes fail anywhere in torch's reader; its message advises to open them unsafely.
    except Exception:
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} was not opened: it is damaged, or holds something else than tensors and plain values; "
            "remove it, or copy it again"
        )
    return content


def plain(value: Any) -> Any:
    """The same dicts, lists and tuples with NumPy's values as Python's.

    >>> plain({"step": np.int64(3), "loss": [np.float64(0.1)]})
    {'step': 3, 'loss': [0.1]}
    """
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, np.generic) else value


def read_array(path: str | Path) -> np.ndarray:
    """The array in a .npy file of a run.

    Raises: FileNotFoundError; ValueError for a damaged file, or one with Python objects.
    """
    try:
        content = np.load(path, allow_pickle=False)
    # numpy's message names the option that runs code
    except (ValueError, EOFError):
        content = None
    if not isinstance(content, np.ndarray):
        raise ValueError(
            f"{path} is damaged: it holds no array of numbers; remove it, and start the step again"
        )
    return content


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file of a run.

    Raises: FileNotFoundError; ValueError for a damaged file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is damaged: it holds no JSON object; remove it or its folder, and start the step again"
        )
    return content


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects in a JSON Lines file, which only line feeds separate: U+2028 and U+0085 belong to texts.

    Raises: FileNotFoundError; ValueError for a damaged line, by its number.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is {line.strip()[:40]!r}; it must be a JSON object")
        rows.append(row)
    return rows
