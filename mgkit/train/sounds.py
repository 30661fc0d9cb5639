"""A codec's training sounds: band, single instruments, strokes, recordings and silence, cut into crops.

Axes: B batch, N samples.

    mix.i16, melody.i16    the rendered clips (see `mgkit train data`): the band, and the lead alone
    stems.i16              int16 [clips, samples]: of each clip one instrument, or two, in a room or dry
    onsets.npy             int32 [2, clips, ONSETS]: where notes begin, in samples, in the mix and in the stem
    stems.json             clips, samples and rate; written last

Most of a note's information lies in its first tenth of a second, so half of the crops contain an onset near
the start.
"""

import argparse
import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mgkit import audio, ranges
from mgkit.band.compose import compose
from mgkit.band.piece import Piece
from mgkit.band.synth import render
from mgkit.train import storage

ONSETS = 32  # note starts kept of each clip, drawn with replacement
AT_ONSET = 0.5  # share of the crops with a note start in their first half


def solo(piece: Piece, rng: random.Random) -> tuple[Piece, bool]:
    """`piece` with one or two of its tracks, and whether it is to be rendered dry, without a room."""
    tracks = [track for track in piece.tracks if track.notes]
    drums = [track for track in tracks if track.percussion]
    draw = rng.random()
    if drums and draw < 0.25:
        return replace(piece, tracks=tuple(drums)), False
    if draw < 0.45 and len(tracks) > 1:
        return replace(piece, tracks=tuple(rng.sample(tracks, 2))), False
    track = rng.choice(tracks)
    # `render` returns the melody dry, so an instrument that poses as the melody comes back dry too
    dry = draw > 0.7 and not track.percussion
    return replace(piece, tracks=(replace(track, role="melody") if dry else track,)), dry


def onsets(piece: Piece, samples: int, rate: int, rng: random.Random) -> list[int]:
    """ONSETS note starts of `piece` in samples, drawn with replacement; random positions if it has none."""
    starts = [round(note[0] * rate) for track in piece.tracks for note in track.notes]
    starts = [start for start in starts if 0 <= start < samples]
    return [rng.choice(starts) if starts else rng.randrange(samples) for _ in range(ONSETS)]


def _stem(seed: int, seconds: float, rate: int, soundfont: str) -> tuple[np.ndarray, list[list[int]]]:
    rng, piece = random.Random(f"stem {seed}"), compose(seed, seconds=seconds)
    part, dry = solo(piece, rng)
    wave = render(part, seconds=seconds, rate=rate, soundfont=soundfont)[1 if dry else 0]
    starts = [onsets(p, len(wave), rate, rng) for p in (piece, part)]
    return np.round(32767 * wave).astype(np.int16), starts


def write_stems(folder: str | Path, workers: int | None = None) -> None:
    """Render a stem and list the onsets of every clip of the rendered `folder`, unless they exist."""
    folder = Path(folder)
    plan = storage.read_json(folder / "dataset.json")
    done, about = folder / "stems.json", {name: plan[name] for name in ("clips", "samples", "rate")}
    if done.is_file() and storage.read_json(done) == about:
        return
    seeds = [row["seed"] for row in storage.read_lines(folder / "pieces.jsonl")]
    make = partial(_stem, seconds=plan["seconds"], rate=plan["rate"], soundfont=plan["soundfont"])
    starts = []
    with (
        open(folder / "stems.i16", "wb") as stems,
        ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool,
    ):
        made = pool.map(make, seeds, chunksize=4)
        for wave, found in tqdm(made, total=len(seeds), desc=f"{folder.name}: stems", unit="clip"):
            stems.write(wave.tobytes())
            starts.append(found)
    np.save(folder / "onsets.npy", np.array(starts, np.int32).transpose(1, 0, 2))
    audio.replace_file(
        done, lambda path: path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    )


def read_recordings(folder: str | Path, rate: int) -> list[np.ndarray]:
    """The recordings in `folder` as int16 [1, N], mono at `rate`, without those under two seconds."""
    found = []
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in audio.FORMATS):
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
        return torch.from_numpy(np.ascontiguousarray(flat)).to(self.device)

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


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train stems`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train stems", description="Render single instruments for the codec."
    )
    parser.add_argument("--data", default="runs/band", help="rendered clips to add stems and onsets to")
    parser.add_argument(
        "--workers", type=ranges.count, default=None, help="processes (default: one per core)"
    )
    args = parser.parse_args(argv)
    write_stems(args.data, args.workers)


if __name__ == "__main__":
    main()
