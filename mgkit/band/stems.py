"""Single instruments of rendered clips, and where their notes begin (`python -m mgkit train stems`).

stems.i16     int16 [clips, samples]: of each clip one instrument, or two, in a room or dry
onsets.npy    int32 [2, clips, ONSETS]: where notes begin, in samples, in the mix and in the stem
stems.json    clips, samples and rate; written last
"""

import argparse
import json
import random
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mgkit import ranges
from mgkit.band.compose import compose
from mgkit.band.piece import Piece
from mgkit.band.synth import processes, render
from mgkit.files import replace_file

ONSETS = 32  # note starts kept of each clip, drawn with replacement


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


def write_stems(folder: str | Path, pool: Executor) -> None:
    """Render a stem of every clip in `folder` by `pool`, and list the onsets of both, unless they exist."""
    folder = Path(folder)
    plan = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    done, about = folder / "stems.json", {name: plan[name] for name in ("clips", "samples", "rate")}
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == about:
        return
    seeds = range(plan["first_seed"], plan["first_seed"] + plan["clips"])
    make = partial(_stem, seconds=plan["seconds"], rate=plan["rate"], soundfont=plan["soundfont"])
    starts = []
    with open(folder / "stems.i16", "wb") as stems:
        made = pool.map(make, seeds, chunksize=4)
        for wave, found in tqdm(made, total=len(seeds), desc=f"{folder.name}: stems", unit="clip"):
            stems.write(wave.tobytes())
            starts.append(found)
    np.save(folder / "onsets.npy", np.array(starts, np.int32).transpose(1, 0, 2))
    replace_file(done, lambda path: path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8"))


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
    with processes(args.workers) as pool:
        write_stems(args.data, pool)


if __name__ == "__main__":
    main()
