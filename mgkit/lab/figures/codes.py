"""Plots of codes: tokens, their delay pattern, when each is generated, and how often each occurs.

Axes: C channels, N samples, K codebooks, T frames, S delayed steps, V codebook size.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mgkit.delay import delays
from mgkit.lab.drawing import (
    LINES,
    NEW,
    Picture,
    draw_cells,
    draw_frames,
    draw_wave,
    new_picture,
    set_legend,
    set_title,
    to_samples,
)


def tokens(codes: Tensor, title: str = "", size: int = 2048) -> Picture:
    """Codes [K, T] as an image, one row per codebook; colour is the token's index out of `size`.

    Raises: ValueError for another shape.
    """
    codes = _one_sample(codes)
    alt = f"{len(codes)} codebooks, {codes.shape[1]} frames of tokens"
    figure = new_picture(0.9 + 0.22 * len(codes), alt, title)
    axes = figure.subplots()
    colors = draw_cells(axes, codes, size, "turbo")
    axes.set_xlabel("frames")
    figure.colorbar(colors, ax=axes, label="token", aspect=12, pad=0.01)
    return figure


def pattern(codes: Tensor, frames: int = 10, channels: int = 1, step: int | None = None) -> Picture:
    """The first `frames` of codes [K, T], and their delay pattern [K, S], the transformer's order.

    The colour shows the frame; grey is the special token. With `step`, only the tokens generated up to that
    step are shown, and the step is outlined. Raises: ValueError for another shape.
    """
    codes = _one_sample(codes)[:, :frames]
    alt = f"{len(codes)} codebooks of tokens, and their delay pattern"
    figure = new_picture(1.2 + 0.45 * len(codes), alt)
    above, below = figure.subplots(2, 1, sharex=True)
    draw_frames(above, below, codes, channels, step)
    return figure


def schedule(items: Sequence[tuple[str, Tensor]]) -> Picture:
    """Tables (title, steps [K, T]) of the step at which each token is generated, on one colour scale.

    Raises: ValueError for another shape, or no items.
    """
    if not items:
        raise ValueError("schedule needs at least one (title, steps [K, T]); got none")
    tables = [(title, _one_sample(steps)) for title, steps in items]
    last = max(int(steps.max()) for _, steps in tables)
    height = sum(0.6 + 0.2 * len(steps) for _, steps in tables)
    alt = f"step at which each token is generated: {', '.join(title for title, _ in tables)}"
    figure = new_picture(height, alt)
    panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for axes, (title, steps) in zip(panels, tables, strict=True):
        draw_cells(axes, steps, last + 1, "Blues")
        set_title(axes, title)
        for (k, t), step in np.ndenumerate(steps.numpy()):
            color = "white" if step > 0.6 * last else "black"
            axes.text(t, k, step, ha="center", va="center", fontsize=6.5, color=color)
        axes.set_xticks(range(steps.shape[1]))
    axes.set_xlabel("frames")
    return figure


def usage(items: Sequence[tuple[str, Tensor]], title: str = "") -> Picture:
    """Token frequencies (title, counts [K, V]), one panel each, one line per codebook, by rank.

    A flat line means a codebook is used evenly, a steep one that a few tokens dominate.
    Raises: ValueError for no items or another shape.
    """
    if not items or any(counts.ndim != 2 or 0 in counts.shape for _, counts in items):
        raise ValueError(f"usage needs (title, counts [K, V]); got {[list(c.shape) for _, c in items]}")
    figure = new_picture(3.0, f"token frequencies: {', '.join(name for name, _ in items)}", title)
    panels = figure.subplots(1, len(items), sharey=True, squeeze=False)[0]
    for axes, (name, counts) in zip(panels, items, strict=True):
        ranked = counts.float().sort(dim=1, descending=True).values
        for k, row in enumerate(ranked):
            line = LINES[k % len(LINES)]
            axes.plot(np.arange(1, len(row) + 1), row.numpy(), line, label=f"codebook {k}")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xlabel("token rank")
        set_title(axes, name)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("occurrences")
    set_legend(panels[-1])
    return figure


def overview(prompt: str, codes: Tensor, wave: Tensor | np.ndarray, rate: int, channels: int = 1) -> Picture:
    """The whole way from a prompt to `wave` [C, N], with the first 8 frames of its codes [K, T].

    Raises: ValueError for other shapes.
    """
    codes, samples = _one_sample(codes)[:, :8], to_samples(wave)
    figure = new_picture(4.6, f"a prompt, its delayed tokens, its frames and its waveform: {prompt}")
    steps = codes.shape[1] + 1 + max(delays(len(codes), channels))
    widths = (steps, codes.shape[1])
    part = figure.subplot_mosaic("tt;sf;ww", height_ratios=(0.6, 1, 1), width_ratios=widths)
    quoted = f"“{textwrap.fill(textwrap.shorten(prompt, 160, placeholder=' …'), 80)}”"
    box = {"boxstyle": "round,pad=0.5", "facecolor": "#eef4fa", "edgecolor": NEW}
    part["t"].text(0.5, 0.4, quoted, ha="center", va="center", fontsize=12, bbox=box, parse_math=False)
    part["t"].axis("off")
    draw_frames(part["f"], part["s"], codes, channels)
    part["f"].set_yticks([])
    draw_wave(part["w"], samples.mean(axis=0), rate, None)
    part["w"].set_xlabel("seconds")
    set_title(part["t"], "1. a text prompt, encoded by T5")
    set_title(part["s"], f"2. the transformer generates {len(codes)} tokens per step")
    set_title(part["f"], "3. delay undone: a column is a frame")
    set_title(part["w"], f"4. EnCodec decodes the frames to audio, {rate} samples per second")
    return figure


def _one_sample(codes: Tensor) -> Tensor:
    """Codes [K, T] of one sample, on the CPU."""
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"expected one sample's codes [K, T], got {list(codes.shape)}: pick one, codes[0]")
    return codes.detach().cpu()
