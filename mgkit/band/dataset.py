"""The synthetic training set: composed, rendered and captioned clips (`python -m mgkit train data`)."""

import argparse
import functools
import json
from concurrent.futures import Executor
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
from tqdm import tqdm

from mgkit import ranges
from mgkit.band.captions import captions
from mgkit.band.compose import compose
from mgkit.band.stems import write_stems
from mgkit.band.synth import RATE, processes, render, require_synthesizer
from mgkit.files import replace_file

CAPTIONS_PER_CLIP = 6


class Metadata(TypedDict):
    """Content of dataset.json."""

    clips: int
    samples: int  # per clip
    rate: int
    seconds: float
    first_seed: int
    soundfont: str


class ClipRow(TypedDict):
    """A line of pieces.jsonl: the attributes of a piece, and captions of it."""

    seed: int
    style: str
    lead: str
    key: int
    mode: str
    tempo: int
    meter: int
    mood: str
    density: str
    drums: bool
    tune: str | None
    captions: list[str]


def write_dataset(
    folder: str | Path,
    clips: int,
    *,
    first_seed: int = 0,
    seconds: float = 10.0,
    workers: int | None = None,
    soundfont: str = "fluidr3mono",
    stems: bool = False,
) -> None:
    """Render `clips` pieces with seeds from `first_seed` into `folder`, unless they are already there.

    mix.i16, melody.i16   int16 [clips, samples], raw, 32 kHz mono
    pieces.jsonl          one object per clip: seed, attributes, six captions
    dataset.json          clips, samples, rate, seconds, first_seed, soundfont; written last

    With `stems` it renders those too; see `mgkit.band.stems`.

    Raises: FileNotFoundError or ImportError with the package to install.
    """
    folder = Path(folder)
    metadata: Metadata = {
        "clips": clips,
        "samples": round(seconds * RATE),
        "rate": RATE,
        "seconds": seconds,
        "first_seed": first_seed,
        "soundfont": soundfont,
    }
    finished = folder / "dataset.json"
    if _is_finished(finished, metadata) and not stems:
        return
    # A missing sound font or synthesizer is reported here rather than by a worker.
    require_synthesizer(soundfont)
    folder.mkdir(parents=True, exist_ok=True)
    with processes(workers) as pool:
        if not _is_finished(finished, metadata):
            finished.unlink(missing_ok=True)
            _write_clips(folder, metadata, pool)
            text = json.dumps(metadata, indent=1) + "\n"
            replace_file(finished, lambda draft: draft.write_text(text, encoding="utf-8"))
        if stems:
            write_stems(folder, pool)


def _write_clips(folder: Path, metadata: Metadata, pool: Executor) -> None:
    make_clip = functools.partial(_make_clip, seconds=metadata["seconds"], soundfont=metadata["soundfont"])
    seeds = range(metadata["first_seed"], metadata["first_seed"] + metadata["clips"])
    with (
        open(folder / "mix.i16", "wb") as mixes,
        open(folder / "melody.i16", "wb") as melodies,
        open(folder / "pieces.jsonl", "w", encoding="utf-8") as pieces,
    ):
        rendered = pool.map(make_clip, seeds, chunksize=4)
        for mix, melody, row in tqdm(rendered, total=len(seeds), desc=folder.name, unit="clip"):
            mixes.write(mix.tobytes())
            melodies.write(melody.tobytes())
            pieces.write(json.dumps(row) + "\n")


def _is_finished(file: Path, metadata: Metadata) -> bool:
    """Whether the file holds this metadata; a damaged one does not."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) == metadata
    except (ValueError, FileNotFoundError):
        return False


def _make_clip(seed: int, seconds: float, soundfont: str) -> tuple[np.ndarray, np.ndarray, ClipRow]:
    """(mix, melody, row of pieces.jsonl) of one clip, audio as int16."""
    piece = compose(seed, seconds=seconds)
    mix, melody = (np.round(32767 * wave) for wave in render(piece, seconds=seconds, soundfont=soundfont))
    row = {**piece.attributes(), "captions": captions(piece, seed, CAPTIONS_PER_CLIP)}
    return mix.astype(np.int16), melody.astype(np.int16), cast(ClipRow, row)


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train data`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train data",
        description="Compose, render and caption a training set of synthetic music.",
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--clips", type=ranges.count, required=True, help="number of clips")
    parser.add_argument(
        "--first-seed", type=ranges.index, default=0, help="seed of the first clip (default 0)"
    )
    parser.add_argument("--seconds", type=ranges.amount, default=10.0, help="length of a clip (default 10)")
    parser.add_argument(
        "--workers", type=ranges.count, default=None, help="processes (default: one per core)"
    )
    parser.add_argument(
        "--soundfont", default="fluidr3mono", help="fluidr3mono, or musescore for evaluation sets"
    )
    parser.add_argument("--stems", action="store_true", help="render single instruments too, for the codec")
    args = parser.parse_args(argv)
    write_dataset(
        args.out,
        args.clips,
        first_seed=args.first_seed,
        seconds=args.seconds,
        workers=args.workers,
        soundfont=args.soundfont,
        stems=args.stems,
    )


if __name__ == "__main__":
    main()
