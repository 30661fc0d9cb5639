"""Previews of composed pieces: piano rolls, captions and players, in notebooks or on one HTML page."""

import argparse
from pathlib import Path

import torch
from matplotlib.patches import Rectangle

from mgkit import ranges
from mgkit.band.captions import captions
from mgkit.band.compose import compose
from mgkit.band.piece import Piece
from mgkit.band.synth import RATE, render
from mgkit.lab import figures
from mgkit.melody import PITCH_CLASSES

ROLES = {"melody": "#c2410c", "chords": "#2a7fbf", "bass": "#3f3f46", "pad": "#9db8cc", "drums": "#8a8f98"}
CAPTIONS = 3  # shown per piece


def piano_roll(piece: Piece, seconds: float = 10.0) -> figures.Picture:
    """Piano roll: MIDI pitch over seconds, one colour per role, drums below; opacity shows velocity."""
    figure = figures.Picture(figsize=(9, 3.2), layout="constrained")
    figure.alt = f"piano roll: {piece.style} with {piece.lead}, {piece.tempo} beats per minute"
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    pitches = [note[2] for track in piece.tracks if not track.percussion for note in track.notes]
    kit = sorted({note[2] for track in piece.tracks if track.percussion for note in track.notes})
    for track in piece.tracks:
        axes, color = (below if track.percussion else above), ROLES[track.role]
        for start, duration, pitch, velocity in track.notes:
            y = kit.index(pitch) if track.percussion else pitch
            width = min(0.06 if track.percussion else duration, seconds - start)
            axes.add_patch(
                Rectangle((start, y - 0.45), width, 0.9, color=color, alpha=velocity / 127, linewidth=0)
            )
        if track.notes and not track.percussion:
            axes.plot([], [], color=color, linewidth=5, label=track.role)
    # Six semitones of room for the legend.
    above.set_ylim(min(pitches) - 1, max(pitches) + 6)
    tonics = [pitch for pitch in range(min(pitches), max(pitches) + 1) if pitch % 12 == piece.key]
    above.set_yticks(tonics, [f"{PITCH_CLASSES[piece.key]}{pitch // 12 - 1}" for pitch in tonics])
    above.grid(axis="y", linewidth=0.5)
    above.legend(loc="upper right", ncols=4, fontsize=7)
    below.set_ylim(-0.8, max(0.8, len(kit) - 0.2))
    below.set_yticks([])
    below.set_ylabel("drums" if kit else "no drums", fontsize=8)
    below.set_xlim(0, seconds)
    for bar in range(int(seconds * piece.tempo / 60 / piece.meter) + 1):
        for axes in (above, below):
            axes.axvline(bar * piece.meter * 60 / piece.tempo, color="#d9dce1", linewidth=0.7, zorder=0)
    below.set_xlabel("seconds, with bar lines")
    return figure


def play(piece: Piece, title: str = "", seconds: float = 10.0) -> figures.Player | str:
    """Players of the piece and of its melody alone, or a sentence if no synthesizer is installed."""
    try:
        mix, melody = render(piece, seconds=seconds)
    except (ImportError, FileNotFoundError) as error:
        return f"This cannot be played here, but data/melodies has four rendered melodies: {error}"
    waves = [
        (title or "the whole piece", torch.from_numpy(mix)),
        ("the melody alone", torch.from_numpy(melody)),
    ]
    return figures.players(waves, RATE)


def page(path: str | Path, pieces: int = 10, first_seed: int = 0) -> Path:
    """HTML page at `path` with attributes, captions, piano roll and players of each of `pieces` pieces."""
    items: list[str | figures.Player | figures.Picture] = []
    for seed in range(first_seed, first_seed + pieces):
        piece = compose(seed)
        key = f"{PITCH_CLASSES[piece.key]} {piece.mode}"
        tune = f", the tune {piece.tune}" if piece.tune else ""
        drums = "with drums" if piece.drums else "no drums"
        items.append(
            f"{seed}. {piece.style}, {piece.lead}, {key}, {piece.tempo} beats per minute in {piece.meter}/4, "
            f"{piece.mood}, {piece.density}, {drums}{tune}."
        )
        items += [f"“{text}”" for text in captions(piece, seed, CAPTIONS)]
        items += [piano_roll(piece), play(piece)]
    return figures.page(items, path, "Composed pieces")


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train preview`."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train preview",
        formatter_class=form,
        description="Write an HTML page with composed pieces: players, piano rolls, captions.",
    )
    parser.add_argument("--out", default="runs/preview.html", help="page to write")
    parser.add_argument("--pieces", type=ranges.count, default=10, help="number of pieces")
    parser.add_argument("--first-seed", type=ranges.index, default=0, help="seed of the first piece")
    args = parser.parse_args(argv)
    if args.pieces < 1:
        raise ValueError(f"--pieces is {args.pieces}; give at least 1")
    print(page(args.out, args.pieces, args.first_seed))


if __name__ == "__main__":
    main()
