"""A codec's training sounds: band, single instruments, strokes, recordings and silence, cut into crops.

Axes: B batch, N samples.

The band, its melody, and single instruments with the note starts of all clips are files of a rendered folder
(`mgkit.band.dataset`, `mgkit.band.stems`).

Most of a note's information lies in its first tenth of a second, so half of the crops contain an onset near
the start.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgkit import audio
from mgkit.band.stems import ONSETS
from mgkit.train import storage

AT_ONSET = 0.5  # share of the crops with a note start in their first half


def read_recordings(folder: str | Path, rate: int) -> list[np.ndarray]:
    """The recordings in `folder` as int16 [1, N], mono at `rate`, without those under two seconds."""
    found = []
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in audio.READABLE):
        wave, own = audio.read(path)
        mono = audio.resample(wave.mean(dim=0, keepdim=True), own, rate).clamp(-1, 1)
        pcm = (mono * 32767).round().short().numpy()
        found += [pcm] if pcm.shape[1] >= 2 * rate else []
    return found


class Source:
    """Clips of one kind, one after another in `flat` [samples]: clip i is `lengths[i]` long from `begins[i]`.

    `onsets` [clips, ONSETS] are note starts within each clip, if they are known.
    """

    def __init__(self, flat: np.ndarray | Tensor, lengths: np.ndarray, onsets: np.ndarray | None = None):
        self.flat, self.lengths, self.onsets = flat, lengths, onsets
        self.begins = np.concatenate([[0], lengths.cumsum()[:-1]])

    def crops(self, rng: np.random.Generator, count: int, samples: int) -> Tensor:
        """int16 [count, samples] from random places, half of them with a note start in their first half."""
        clips = rng.integers(len(self.lengths), size=count)
        last = self.lengths[clips] - samples
        starts = rng.integers(last + 1)
        if self.onsets is not None:
            onsets = self.onsets[clips, rng.integers(ONSETS, size=count)] - rng.integers(
                samples // 2, size=count
            )
            starts = np.where(rng.random(count) < AT_ONSET, np.clip(onsets, 0, last), starts)
        starts = starts + self.begins[clips]
        if isinstance(self.flat, Tensor):
            places = torch.from_numpy(starts).to(self.flat.device)[:, None]
            return self.flat[places + torch.arange(samples, device=places.device)]
        rows = [self.flat[start : start + samples] for start in starts]
        return torch.from_numpy(np.array(rows, np.int16).reshape(count, samples))


class Sounds:
    """All sources of crops. On a GPU the clips are copied to its memory once, as int16."""

    SHARES = {"mix": 0.6, "stems": 0.23, "melody": 0.1, "recordings": 0.07}
    SILENT = 0.04  # share of the crops in which one half is silence
    FADE = 320  # samples of the edge of that silence

    def __init__(self, clips: Any, folder: str | Path, recordings: list[np.ndarray], device: torch.device):
        self.device, folder = device, Path(folder)
        count, samples = clips.mix.shape
        lengths, waves, onsets = np.full(count, samples), {"mix": clips.mix, "melody": clips.melody}, {}
        if (folder / "stems.json").is_file():
            waves["stems"] = np.memmap(folder / "stems.i16", np.int16, "r", shape=clips.mix.shape)
            onsets = dict(zip(("mix", "stems"), storage.read_array(folder / "onsets.npy"), strict=True))
        self.sources = {
            name: Source(self._flat(wave), lengths, onsets.get(name)) for name, wave in waves.items()
        }
        if recordings:
            flat = self._flat(np.concatenate(recordings, axis=1))
            self.sources["recordings"] = Source(flat, np.array([part.shape[1] for part in recordings]))
        shares = np.array([self.SHARES[name] for name in self.sources])
        self.shares = shares / shares.sum()

    def _flat(self, wave: np.ndarray) -> np.ndarray | Tensor:
        flat = wave.reshape(-1)
        if self.device.type != "cuda":
            return flat
        return torch.from_numpy(np.array(flat)).to(self.device)

    def crops(self, rng: np.random.Generator, count: int, samples: int) -> Tensor:
        """Waves [count, 1, samples] on the device, at -14 to +2 dB, grouped by source; the same for the same
        `rng`."""
        counts = rng.multinomial(count, self.shares)
        parts = [
            source.crops(rng, int(part), samples)
            for source, part in zip(self.sources.values(), counts, strict=True)
        ]
        scale = 10 ** (rng.uniform(-14, 2, count) / 20) * rng.choice((-1.0, 1.0), count) / 32768
        wave = torch.cat(parts).float() * self._column(scale)
        # 0 before and 1 after a random place in the middle half of the crop, or the other way round
        places = torch.arange(samples, device=self.device) - self._column(
            rng.uniform(samples / 4, 3 * samples / 4, count)
        )
        edge = (places / self.FADE * self._column(rng.choice((-1.0, 1.0), count)) + 0.5).clamp(0, 1)
        kept = self._column(rng.random(count) >= self.SILENT)
        return (wave * edge.maximum(kept)).clamp(-1, 1)[:, None]

    def _column(self, values: np.ndarray) -> Tensor:
        """[count] as float32 [count, 1] on the device."""
        return torch.from_numpy(values.astype(np.float32)).to(self.device)[:, None]
