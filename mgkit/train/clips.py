"""Rendered clips on disk, as `mgkit.band.dataset` writes them."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mgkit.band.dataset import ClipRow, Metadata
from mgkit.train import storage


class Clips:
    """A rendered dataset: `mix` and `melody` int16 [clips, N], memory-mapped, and `pieces`, a row per clip.

    Raises: FileNotFoundError if the folder is missing or unfinished; ValueError if its sample rate is not
    `rate` or its files do not match its metadata.
    """

    def __init__(self, folder: str | Path, rate: int):
        folder = Path(folder)
        file = folder / "dataset.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} has no dataset.json: finish rendering it first (python -m mgkit train data)"
            )
        metadata = cast(Metadata, storage.read_json(file))
        if metadata["rate"] != rate:
            raise ValueError(
                f"{folder} was rendered at {metadata['rate']} Hz, but the codec works at {rate} Hz: "
                "render it again or use another codec"
            )
        self.pieces = cast(list[ClipRow], storage.read_lines(folder / "pieces.jsonl"))
        if not self.pieces or len(self.pieces) != metadata["clips"]:
            raise ValueError(
                f"{folder}/pieces.jsonl has {len(self.pieces)} rows, but dataset.json lists "
                f"{metadata['clips']} clips: render it again"
            )
        self.mix, self.melody = (
            _memory_map(folder / name, metadata["clips"], metadata["samples"])
            for name in ("mix.i16", "melody.i16")
        )
        self.samples = metadata["samples"]

    def __len__(self) -> int:
        return len(self.pieces)


def _memory_map(path: Path, clips: int, samples: int) -> np.ndarray:
    expected = clips * samples * 2
    if path.stat().st_size != expected:
        raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {expected}: render it again")
    return np.memmap(path, np.int16, "r", shape=(clips, samples))


def to_float(pcm: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """float32 waves [..., N] in [-1, 1) on `device` from int16 samples [..., N], which are half to copy."""
    return torch.from_numpy(np.array(pcm)).to(device).float() / 32768
