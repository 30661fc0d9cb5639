"""Pictures and players that need no kernel: they work in a saved page and in a notebook nobody has trusted yet.

Letters: C channels, N samples, K codebooks, T frames, S delayed steps, F chroma frames, V codebook size, H heads,
W words, R rows.

    player, players, plain, grid      waves to listen to, at their own level
    waveform, mel, chroma             waves to look at
    tokens, pattern, overview         what the model writes: codes, delayed codes, the whole way to a wave
    schedule, usage                   when each token is written, and how often
    windows, race                     how a long piece is made, and whether in time
    bars, curves, attention, table    what a trace tells: the choice of one step, values over time, who looks where
    page                              any of these in one HTML file that fetches nothing

Pictures are matplotlib figures made without pyplot, so they may be drawn in any thread and are never shown twice.
"""

import base64
import html
import io
import json
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Rectangle
from torch import Tensor

from mgkit import audio
from mgkit.delay import delay, delays
from mgkit.generate import Window, lengths
from mgkit.melody import HOP, PITCH_CLASSES

GIVEN, NEW = "#8a8f98", "#2a7fbf"  # before and after a seam; both readable on white and on black
FLOOR = 80.0  # dB below the loudest, where a mel picture turns black
N_FFT, MEL_HOP, BANDS = 2048, 512, 96  # of a mel picture: samples of a window and between windows; rows


class Picture(Figure):
    """A matplotlib figure that a notebook shows as PNG, whatever its backend is; `alt` says what it shows."""

    alt = "picture"

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return _png(self), {"alt": self.alt}


@dataclass(frozen=True)
class Player:
    """A piece of HTML with its sound inside; a notebook shows it as it is."""

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


# --- players ---------------------------------------------------------------------------------------------------


def player(
    wave: Tensor | np.ndarray,
    rate: int,
    title: str = "",
    seam: float | None = None,
    level: float | None = None,
    loop: bool = False,
    manifest: dict | None = None,
) -> Player:
    """Player of one wave [C, N] (or [N]) in [-1, 1] at `rate` Hz: every sample, at its own level.

    The sound is 16-bit FLAC: half the size of WAV, no sample more or less, and in every browser since 2017.
    `seam` in seconds is where a given prompt ends and new music starts; the small picture marks it. `level` is
    the amplitude that fills the picture's height (default: the wave's own peak). Samples beyond 1 clip, and
    the caption says so. `title` may be any text; it is escaped. `loop` repeats it. The browser's own menu of the
    player (three dots, or a right click) downloads the file; a `manifest` of the run travels in it, and
    `audio.read_manifest` reads it.

    Errors: those of `audio.check`: ValueError for another shape, no samples, NaN or infinity.
    """
    samples = _samples(wave)
    peak = float(np.abs(samples).max())
    facts = [f"{samples.shape[1] / rate:.2f} s"]
    if len(samples) == 2:
        facts.append("stereo")
    facts.append(f"peak {20 * np.log10(peak):.1f} dBFS" if peak > 0 else "silent")
    if peak > 1:
        facts.append("clipped")
    if seam is not None:
        facts.append(f"new after {seam:.2f} s")
    name = html.escape(title)
    thumbnail = _uri(_thumbnail(samples, rate, seam, level or peak or 1), "image/png")
    return Player(
        '<figure style="display: inline-block; width: 400px; margin: 0px 16px 12px 0px; vertical-align: top">'
        f"<figcaption><b>{name}</b><br><small>{' · '.join(facts)}</small></figcaption>"
        f'<img alt="waveform of {name or "the sound"}" width="400" height="48" src="{thumbnail}">'
        f'<audio controls{" loop" if loop else ""} style="width: 400px" '
        f'src="{_uri(_flac(samples, rate, manifest), "audio/flac")}"></audio></figure>'
    )


def players(
    items: Iterable[tuple[str, Tensor | np.ndarray]],
    rate: int,
    seam: float | Sequence[float | None] | None = None,
) -> Player:
    """Players of several (title, wave [C, N]) side by side, their pictures on one level scale.

    Nothing is normalised: what looks and sounds louder here is louder. `seam` is one for all, or one for each.
    Errors: as `player`, and ValueError for another number of seams.
    """
    pairs = [(title, _samples(wave)) for title, wave in items]
    level = max((float(np.abs(samples).max()) for _, samples in pairs), default=0.0)
    each = [
        player(samples, rate, title, at, level).html
        for (title, samples), at in zip(pairs, _seams(seam, len(pairs)), strict=True)
    ]
    return Player(f"<div>{''.join(each)}</div>")


def plain(wave: Tensor | np.ndarray, rate: int, title: str) -> Player:
    """Player of one wave [C, N] with its title and nothing else to see, for ears that must not be told.

    Errors: as `player`.
    """
    source = _uri(_flac(_samples(wave), rate), "audio/flac")
    return Player(
        '<figure style="display: inline-block; width: 400px; margin: 0px 16px 12px 0px">'
        f'<figcaption><b>{html.escape(title)}</b></figcaption><audio controls style="width: 400px" src="{source}">'
        "</audio></figure>"
    )


def grid(
    cells: Sequence[Sequence[Tensor | np.ndarray]], rate: int, rows: Sequence[str], columns: Sequence[str]
) -> Player:
    """Table of waves, `cells[row][column]` each [C, N], with a mel picture and a player in each cell.

    All pictures are on one dB scale, whose top is the loudest spot of all; nothing is normalised. Errors: as
    `player`, and ValueError where the headings are not one for each row and column.
    """
    if len(cells) != len(rows) or any(len(row) != len(columns) for row in cells) or not rows or not columns:
        raise ValueError(
            f"expected a row of cells for each of {list(rows)}, with a wave for each of {list(columns)}; got rows of "
            f"{[len(row) for row in cells]}"
        )
    bands = _bands(rate)
    waves = [[_samples(wave) for wave in row] for row in cells]
    powers = [[_mel(samples, bands) for samples in row] for row in waves]
    top = max(float(power.max()) for row in powers for power in row) or 1.0
    wide = 'style="width: 190px; height: {}px; display: block"'
    head = "".join(f'<th style="text-align: left">{html.escape(name)}</th>' for name in ("", *columns))
    body = []
    for name, samples, row in zip(rows, waves, powers, strict=True):
        body.append(f"<tr><th>{html.escape(name)}</th>")
        for column, one, power in zip(columns, samples, row, strict=True):
            alt = html.escape(f"mel spectrogram of {name}, {column}")
            picture, sound = (
                _uri(_mel_thumbnail(power / top), "image/png"),
                _uri(_flac(one, rate), "audio/flac"),
            )
            body.append(f'<td><img alt="{alt}" {wide.format(64)} src="{picture}">')
            body.append(f'<audio controls {wide.format(36)} src="{sound}"></audio></td>')
        body.append("</tr>")
    return Player(f"<table><tr>{head}</tr>{''.join(body)}</table>")


# --- pictures of sound -----------------------------------------------------------------------------------------


def waveform(wave: Tensor | np.ndarray, rate: int, title: str = "", seam: float | None = None) -> Picture:
    """Picture of wave [C, N] over seconds, one row a channel, full scale is ±1; a dashed line marks `seam`.

    Errors: as `player`.
    """
    samples = _samples(wave)
    figure = _figure(1.0 + 0.9 * len(samples), f"waveform, {samples.shape[1] / rate:.2f} s", title)
    rows = figure.subplots(len(samples), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, channel in zip(rows, samples, strict=True):
        _draw_wave(axes, channel, rate, seam)
    rows[-1].set_xlabel("seconds")
    return figure


def mel(
    items: Sequence[tuple[str, Tensor | np.ndarray]],
    rate: int,
    seam: float | Sequence[float | None] | None = None,
) -> Picture:
    """Mel spectrograms of (title, wave [C, N]), one row each, channels averaged, all on one dB scale.

    0 dB is the loudest spot of all of them; 80 dB below it is black. `seam` is one for all, or one for each.
    Errors: as `players`, and ValueError for no items.
    """
    if not items:
        raise ValueError("mel needs at least one (title, wave); got none")
    bands = _bands(rate)
    powers = [_mel(_samples(wave), bands) for _, wave in items]
    top = max(float(power.max()) for power in powers) or 1.0
    figure = _figure(0.6 + 1.5 * len(items), f"mel spectrograms: {', '.join(title for title, _ in items)}")
    rows = figure.subplots(len(items), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, _), power, at in zip(rows, items, powers, _seams(seam, len(items)), strict=True):
        decibels = 10 * torch.log10(power.clamp(min=1e-12) / top)
        edges = (0, power.shape[1] * MEL_HOP / rate, 0, len(bands))
        image = axes.imshow(decibels.numpy(), origin="lower", aspect="auto", cmap="magma", extent=edges)
        image.set_clim(-FLOOR, 0)
        _title(axes, title)
        marks = [hertz for hertz in (250, 1000, 4000) if hertz < rate / 2]
        peaks = [int(bands[:, round(hertz * N_FFT / rate)].argmax()) for hertz in marks]
        axes.set_yticks(peaks, [f"{hertz} Hz" for hertz in marks])
        if at is not None:
            axes.axvline(at, color="white", linestyle="--", linewidth=1)
    rows[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=list(rows), label="dB", aspect=15 * len(items), pad=0.01)
    return figure


def chroma(items: Sequence[tuple[str, Tensor]], rate: int) -> Picture:
    """Pictures of chroma [12, F] with titles, such as a given melody's above the made music's, one row each.

    `rate` in Hz is that of the waves the chroma is of; F frames stand mgkit.melody.HOP samples apart. A dot marks
    each frame's loudest class: it is all that the model is told. Errors: ValueError for another shape or no items.
    """
    if not items:
        raise ValueError("chroma needs at least one (title, chroma [12, F]); got none")
    figure = _figure(0.4 + 1.9 * len(items), f"chroma: {', '.join(title for title, _ in items)}")
    rows = figure.subplots(len(items), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, energy) in zip(rows, items, strict=True):
        if energy.ndim != 2 or len(energy) != 12:
            raise ValueError(f"expected chroma [12, F], got {list(energy.shape)}: see mgkit.melody.chroma")
        seconds = np.arange(energy.shape[1]) * HOP / rate
        edges = (seconds[0] - HOP / rate / 2, seconds[-1] + HOP / rate / 2, -0.5, 11.5)
        axes.imshow(energy.numpy(), origin="lower", aspect="auto", cmap="Blues", extent=edges)
        axes.plot(seconds, energy.argmax(dim=0).numpy(), ".", color="#c2410c", markersize=4)
        axes.set_yticks(range(12), PITCH_CLASSES, fontsize=7)
        _title(axes, title)
    rows[-1].set_xlabel("seconds")
    return figure


# --- pictures of tokens ----------------------------------------------------------------------------------------


def tokens(codes: Tensor, title: str = "", size: int = 2048) -> Picture:
    """Picture of codes [K, T], one row a codebook; each of the `size` token values has its colour.

    Errors: ValueError for another shape.
    """
    codes = _grid(codes)
    figure = _figure(
        0.9 + 0.22 * len(codes), f"{len(codes)} codebooks, {codes.shape[1]} frames of tokens", title
    )
    axes = figure.subplots()
    _draw_cells(axes, codes, size, "turbo")
    axes.set_xlabel("frames")
    return figure


def pattern(codes: Tensor, frames: int = 10, channels: int = 1, step: int | None = None) -> Picture:
    """Picture of the first `frames` of codes [K, T], and of the same delayed [K, S], as the transformer writes them.

    A colour is a frame, so the delay is what happens to the colours; grey is the special token. With `step`, what is
    known once that step is written, and the step itself framed. Errors: ValueError for another shape.
    """
    codes = _grid(codes)[:, :frames]
    figure = _figure(1.2 + 0.45 * len(codes), f"{len(codes)} codebooks of tokens, and the same delayed")
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_frames(above, below, codes, channels, step)
    return figure


def schedule(items: Sequence[tuple[str, Tensor]]) -> Picture:
    """Grids [K, T] with titles of the step at which each token is written, one scale of colour for all.

    Errors: ValueError for another shape, or no items.
    """
    if not items:
        raise ValueError("schedule needs at least one (title, steps [K, T]); got none")
    grids = [(title, _grid(steps)) for title, steps in items]
    last = max(int(steps.max()) for _, steps in grids)
    height = sum(0.6 + 0.2 * len(steps) for _, steps in grids)
    figure = _figure(
        height, f"the step at which each token is written: {', '.join(title for title, _ in grids)}"
    )
    for axes, (title, steps) in zip(figure.subplots(len(grids), 1, squeeze=False)[:, 0], grids, strict=True):
        _draw_cells(axes, steps, last + 1, "Blues")
        _title(axes, title)
        for (k, t), step in np.ndenumerate(steps.numpy()):
            color = "white" if step > 0.6 * last else "black"
            axes.text(t, k, step, ha="center", va="center", fontsize=6.5, color=color)
        axes.set_xticks(range(steps.shape[1]))
    axes.set_xlabel("frames")
    return figure


def windows(plan: Sequence[Window], rate: int, prompts: Sequence[tuple[float, str]] = ()) -> Picture:
    """The windows of `mgkit.generate.windows`, one row each: what it knows, what it makes, and what it never came to.

    `rate` is frames a second. `prompts` are written where they begin, in seconds. Errors: ValueError for no windows.
    """
    if not plan:
        raise ValueError("the plan has no windows: ask for more frames than the prompt has")
    texts = "; ".join(f"{text} from {seconds:g} s" for seconds, text in prompts)
    figure = _figure(1.2 + 0.3 * len(plan) + 0.3 * bool(prompts), f"{len(plan)} windows {texts}".strip())
    axes = figure.subplots()
    for row, (window, length) in enumerate(zip(plan, lengths(plan), strict=True)):
        left = window.start + window.known + length
        for label, first, last, color in (
            ("known", window.start, window.start + window.known, GIVEN),
            ("made", window.start + window.known, left, NEW),
            ("left before", left, window.end, "#d9dce1"),
        ):
            new = label not in axes.get_legend_handles_labels()[1]
            if last > first:
                axes.barh(
                    row, (last - first) / rate, 0.7, first / rate, color=color, label=label if new else None
                )
    for seconds, text in prompts:
        axes.axvline(seconds, color="black", linestyle="--", linewidth=1)
        said = textwrap.shorten(text, 45, placeholder=" …")
        axes.text(seconds, -0.65, f" {said}", fontsize=8, va="bottom", parse_math=False)
    axes.set_ylim(len(plan) - 0.4, -0.6 - 0.9 * bool(prompts))
    axes.set_yticks(range(len(plan)), [f"window {row + 1}" for row in range(len(plan))], fontsize=8)
    axes.set_xlim(0, plan[-1].end / rate)
    axes.set_xlabel("seconds")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def race(ready: Sequence[tuple[float, float]]) -> Picture:
    """Seconds of music that are `ready` after so many seconds of work, [(work, music), ...], beside its playing.

    The dashed line is an ear that begins with the first sound. Errors: ValueError for nothing ready.
    """
    if not ready:
        raise ValueError("race needs at least one (seconds of work, seconds of music); got none")
    work, music = zip(*ready, strict=True)
    figure = _figure(3.0, "seconds of music made, and heard, over seconds of work")
    axes = figure.subplots()
    axes.step((0, *work), (0, *music), where="post", color=NEW, label="made")
    axes.plot(
        (work[0], work[0] + music[-1]),
        (0, music[-1]),
        "--",
        color=GIVEN,
        label="heard, from the first sound on",
    )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("seconds of music")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def overview(prompt: str, codes: Tensor, wave: Tensor | np.ndarray, rate: int, channels: int = 1) -> Picture:
    """Picture of the whole way from a sentence to `wave` [C, N] through its own codes [K, T], of which 10 are drawn.

    Errors: ValueError for other shapes.
    """
    codes, samples = _grid(codes)[:, :10], _samples(wave)
    figure = _figure(4.6, f"a sentence, its delayed tokens, its frames and its waveform: {prompt}")
    part = figure.subplot_mosaic("tt;sf;ww", height_ratios=(0.6, 1, 1))
    said = f"“{textwrap.fill(textwrap.shorten(prompt, 160, placeholder=' …'), 80)}”"
    box = {"boxstyle": "round,pad=0.5", "facecolor": "#eef4fa", "edgecolor": NEW}
    part["t"].text(0.5, 0.4, said, ha="center", va="center", fontsize=12, bbox=box, parse_math=False)
    part["t"].axis("off")
    _draw_frames(part["f"], part["s"], codes, channels)
    part["f"].set_yticks([])
    _draw_wave(part["w"], samples.mean(axis=0), rate, None)
    part["w"].set_xlabel("seconds")
    _title(part["t"], "1. a sentence, which T5 turns into vectors")
    _title(part["s"], f"2. a transformer writes {len(codes)} tokens a step")
    _title(part["f"], "3. the delay undone: a column is a frame")
    _title(part["w"], f"4. EnCodec's decoder turns frames into sound, {rate} samples a second")
    return figure


# --- pictures of a trace ---------------------------------------------------------------------------------------


def bars(before: Tensor, after: Tensor, chosen: int, title: str = "", count: int = 40) -> Picture:
    """The `count` likeliest tokens of probabilities `before` [V], with those of `after` [V] in front of them.

    `before` is what the model says, `after` what the settings make of it; the `chosen` token is marked where it is
    among them. Errors: ValueError for other shapes.
    """
    if before.ndim != 1 or before.shape != after.shape:
        raise ValueError(
            f"expected the probabilities [V] of one token, got {list(before.shape)}, {list(after.shape)}"
        )
    order = before.argsort(descending=True, stable=True)[:count]
    figure = _figure(2.6, f"probabilities of the {len(order)} likeliest tokens", title)
    axes = figure.subplots()
    axes.bar(range(len(order)), before[order].numpy(), width=0.9, color="#c9cdd3", label="the model says")
    left = f"drawn from: {int((after > 0).sum())} of {len(after)} tokens"
    axes.bar(range(len(order)), after[order].numpy(), width=0.45, color=NEW, label=left)
    if chosen in order:
        place = order.tolist().index(chosen)
        axes.plot(place, float(after[chosen]), "v", color="#c2410c", label=f"written: token {chosen}")
    axes.set_xlabel("tokens, the likeliest first")
    axes.set_ylabel("probability")
    axes.legend(fontsize=8)
    return figure


def curves(items: Sequence[tuple[str, Tensor]], rate: float, label: str, title: str = "") -> Picture:
    """Values [T] with titles over time, `rate` of them a second: each as it is, pale, and its mean over half a second.

    `label` says what they are, with their unit. Errors: ValueError for no items, another shape or no values.
    """
    if not items or any(values.ndim != 1 or not len(values) for _, values in items):
        raise ValueError(
            f"curves needs (title, values [T]); got {[list(values.shape) for _, values in items]}"
        )
    figure = _figure(3.0, f"{label} over time: {', '.join(title for title, _ in items)}", title)
    axes = figure.subplots()
    for i, (name, values) in enumerate(items):
        near = np.ones(max(1, round(rate / 2)))
        padded = [
            np.convolve(x, near)[len(near) // 2 :][: len(values)]
            for x in (values.numpy(), np.ones(len(values)))
        ]
        seconds = np.arange(len(values)) / rate
        axes.plot(seconds, values.numpy(), color=f"C{i}", alpha=0.25, linewidth=0.8)
        axes.plot(seconds, padded[0] / padded[1], color=f"C{i}", label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def usage(items: Sequence[tuple[str, Tensor]], title: str = "") -> Picture:
    """How often each token was used: counts [K, V] with titles, one panel each, a line a codebook, the commonest first.

    A flat line is a codebook whose words are used alike, a steep one lives on a few. Errors: ValueError for no items
    or another shape.
    """
    if not items or any(counts.ndim != 2 or 0 in counts.shape for _, counts in items):
        raise ValueError(f"usage needs (title, counts [K, V]); got {[list(c.shape) for _, c in items]}")
    figure = _figure(3.0, f"how often each token was used: {', '.join(name for name, _ in items)}", title)
    panels = figure.subplots(1, len(items), sharey=True, squeeze=False)[0]
    for axes, (name, counts) in zip(panels, items, strict=True):
        ranked = counts.float().sort(dim=1, descending=True).values
        for k, row in enumerate(ranked):
            axes.plot(np.arange(1, len(row) + 1), row.numpy(), label=f"codebook {k}")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xlabel("tokens, the commonest first")
        _title(axes, name)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("times used")
    panels[-1].legend(fontsize=8)
    return figure


def attention(weights: Tensor, names: Sequence[str], rate: float, title: str = "") -> Picture:
    """Attention `weights` [H, S, W] to what is named, W rows over time, one panel a head and one scale for all.

    `rate` is that of the steps, a second. Colour goes with the square root, or what is faint would not show; all that
    is over 99.5 % of the weights is brightest. Errors: ValueError for another shape or number of names.
    """
    if weights.ndim != 3 or weights.shape[-1] != len(names) or 0 in weights.shape:
        raise ValueError(f"expected attention [H, S, {len(names)}] of one layer, got {list(weights.shape)}")
    across = min(len(weights), 2 if len(weights) <= 4 else 4)
    down = -(-len(weights) // across)
    every = -(-len(names) // 16)
    figure = _figure(
        0.6 + down * max(1.2, 0.17 * len(names[::every])), f"attention of {len(weights)} heads", title
    )
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    colors = PowerNorm(0.5, 0, float(np.quantile(weights.numpy(), 0.995)) or 1.0)
    for axes, head in zip(panels.flat, weights, strict=False):
        edges = (0, head.shape[0] / rate, len(names) - 0.5, -0.5)
        image = axes.imshow(
            head.T.numpy(), aspect="auto", interpolation="nearest", cmap="viridis", norm=colors, extent=edges
        )
    for h, axes in enumerate(panels.flat):
        axes.set_visible(h < len(weights))
        _title(axes, f"head {h}")
    for axes in panels[:, 0]:
        axes.set_yticks(range(0, len(names), every), names[::every], fontsize=8, parse_math=False)
    for axes in panels[-1]:
        axes.set_xlabel("seconds")
    figure.colorbar(image, ax=panels, label="attention", extend="max", aspect=15 * down, pad=0.01)
    return figure


def table(
    values: Tensor, rows: Sequence[str], columns: Sequence[str], title: str = "", form: str = ".2f"
) -> Picture:
    """Numbers [R, columns] written as `form` says, the darker the larger. Errors: ValueError for another shape."""
    if tuple(values.shape) != (len(rows), len(columns)) or not values.numel():
        raise ValueError(f"expected {len(rows)} rows of {len(columns)} values, got {list(values.shape)}")
    figure = _figure(0.7 + 0.28 * len(rows), title or "table", title)
    axes = figure.subplots()
    axes.imshow(values.numpy(), aspect="auto", cmap="Blues")
    dark = values.min() + 0.6 * (values.max() - values.min())
    for (r, c), value in np.ndenumerate(values.numpy()):
        color = "white" if value > dark else "black"
        axes.text(c, r, format(value, form), ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    return figure


# --- a page ----------------------------------------------------------------------------------------------------

STYLE = """:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 920px; margin: 2em auto; padding: 0 1em }
figure { max-width: 100% } img, audio { max-width: 100% } img.picture { display: block; margin: 1em 0; background: #fff }"""


def page(items: Iterable[str | Player | Figure], path: str | os.PathLike, title: str) -> Path:
    """Path of the HTML file written at `path`: texts as paragraphs, players and figures, everything inside it.

    It fetches nothing, so it opens offline and can be mailed. Texts and `title` are escaped. An earlier file is
    replaced only once the new one is whole; folders are made. Errors: TypeError for an item of another kind;
    OSError where the disk is full or read-only, with the earlier file as it was.
    """
    path = Path(path)
    body = []
    for item in items:
        if isinstance(item, str):
            body.append(f"<p>{html.escape(item)}</p>")
        elif isinstance(item, Player):
            body.append(item.html)
        elif isinstance(item, Figure):
            alt = html.escape(getattr(item, "alt", "picture"))
            body.append(f'<img class="picture" alt="{alt}" src="{_uri(_png(item), "image/png")}">')
        else:
            raise TypeError(f"expected a text, a player or a figure, got {type(item).__name__}")
    name = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    text = f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body><h1>{name}</h1>\n'
    text += "\n".join(body) + "\n</body></html>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    return audio.replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


# --- the small parts -------------------------------------------------------------------------------------------


def _samples(wave: Tensor | np.ndarray) -> np.ndarray:
    """Checked samples [C, N] float32."""
    return audio.check(torch.as_tensor(wave)).detach().cpu().numpy()


def _seams(seam: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    """A seam for each of `count` pictures."""
    seams = list(seam) if isinstance(seam, Sequence) else [seam] * count
    if len(seams) != count:
        raise ValueError(f"there are {len(seams)} seams for {count} waves; give one, or one for each")
    return seams


def _grid(codes: Tensor) -> Tensor:
    """Checked codes [K, T]."""
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"expected one sample's codes [K, T], got {list(codes.shape)}: pick one, codes[0]")
    return codes.detach().cpu()


def _flac(samples: np.ndarray, rate: int, manifest: dict | None = None) -> bytes:
    """16-bit FLAC of `samples` [C, N] as they are, with the manifest where `audio.read_manifest` looks for it."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", int(rate), len(samples), "PCM_16", format="FLAC") as file:
        if manifest:
            file.software, file.license = "mgkit", manifest.get("licence", "")
            file.comment = json.dumps({**manifest, "strategy": "clip"})
        file.write(samples.T)
    return buffer.getvalue()


def _bands(rate: int) -> Tensor:
    """Weights [BANDS, N_FFT / 2 + 1] that sum a power spectrum into mel bands."""
    from librosa.filters import mel as mel_filters

    return torch.from_numpy(mel_filters(sr=rate, n_fft=N_FFT, n_mels=BANDS))


def _mel(samples: np.ndarray, bands: Tensor) -> Tensor:
    """Power [BANDS, 1 + N // MEL_HOP] in mel bands of samples [C, N], channels averaged."""
    mono, window = torch.from_numpy(samples).mean(dim=0), torch.hann_window(N_FFT)
    spectrum = torch.stft(mono, N_FFT, MEL_HOP, window=window, pad_mode="constant", return_complex=True)
    return bands @ spectrum.abs().pow(2)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _envelope(channel: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of each of `columns` equal stretches of `channel` [N]."""
    edges = np.linspace(0, len(channel), columns + 1).astype(int)
    parts = [channel[a : max(a + 1, b)] for a, b in zip(edges, edges[1:])]
    return np.array([part.min() for part in parts]), np.array([part.max() for part in parts])


def _thumbnail(samples: np.ndarray, rate: int, seam: float | None, level: float) -> bytes:
    """PNG of the envelope of `samples` [C, N], transparent, 800 by 96 pixels; `level` fills its height."""
    width, height = 800, 96
    low, high = _envelope(samples.mean(axis=0), width)
    amplitude = np.linspace(level, -level, height)[:, None]
    inside = (amplitude <= high + level / height) & (amplitude >= low - level / height)
    cut = 0 if seam is None else round(width * seam * rate / samples.shape[1])
    pixels = np.zeros((height, width, 4))
    pixels[..., :3] = np.where(np.arange(width)[:, None] < cut, to_rgb(GIVEN), to_rgb(NEW))
    pixels[..., 3] = inside
    if 0 < cut < width:
        pixels[:, cut - 1 : cut + 1] = (*to_rgb(NEW), 1)
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return buffer.getvalue()


def _mel_thumbnail(power: Tensor) -> bytes:
    """PNG of mel `power` [BANDS, F] whose 0 dB is 1, one pixel a band and 190 at most over time."""
    small = torch.nn.functional.adaptive_avg_pool1d(power[None], min(190, power.shape[1]))[0]
    decibels = 10 * torch.log10(small.clamp(min=1e-12))
    buffer = io.BytesIO()
    imsave(buffer, decibels.numpy(), vmin=-FLOOR, vmax=0, cmap="magma", origin="lower", format="png")
    return buffer.getvalue()


def _figure(height: float, alt: str, title: str = "") -> Picture:
    figure = Picture(figsize=(9, height), layout="constrained")
    figure.alt = alt
    if title:
        figure.suptitle(textwrap.shorten(title, 110, placeholder=" …"), fontsize=10, parse_math=False)
    return figure


def _title(axes: Axes, title: str) -> None:
    axes.set_title(textwrap.shorten(title, 110, placeholder=" …"), fontsize=9, loc="left", parse_math=False)


def _draw_wave(axes: Axes, channel: np.ndarray, rate: int, seam: float | None) -> None:
    columns = 1000
    low, high = _envelope(channel, columns)
    seconds = (np.arange(columns) + 0.5) / columns * len(channel) / rate
    cut = 0 if seam is None else int(np.searchsorted(seconds, seam))
    for part, color in ((slice(0, cut + 1), GIVEN), (slice(cut, None), NEW)):
        axes.fill_between(seconds[part], low[part], high[part], color=color, linewidth=0.5)
    if seam is not None:
        axes.axvline(seam, color="black", linestyle="--", linewidth=1)
    axes.set_ylim(-1.02, 1.02)
    axes.set_xlim(0, len(channel) / rate)


def _draw_cells(axes: Axes, grid: Tensor, size: int, colors: str) -> None:
    """Values 0 .. size - 1 of a grid [K, T] as coloured cells; -1 is grey, NaN is blank."""
    palette = colormaps[colors].with_extremes(under="#d9dce1", bad="white")
    axes.imshow(
        grid.numpy(), aspect="auto", interpolation="nearest", cmap=palette, vmin=0, vmax=max(1, size - 1)
    )
    axes.set_yticks(range(len(grid)), [f"codebook {k}" for k in range(len(grid))], fontsize=8)


def _draw_frames(above: Axes, below: Axes, codes: Tensor, channels: int, step: int | None = None) -> None:
    """Codes [K, T] above and their delayed steps [K, S] below, coloured by the frame that they belong to.

    Where there is a `step`, what is written after it is blank, and the step is framed.
    """
    shifts, count = delays(len(codes), channels), codes.shape[1]
    frames = torch.arange(count).expand(codes.shape)
    written = frames + 1 + torch.tensor(shifts)[:, None]  # at which step
    columns = torch.arange(count + 1 + max(shifts)).expand(len(codes), -1)
    for axes, grid, colors, when, title in (
        (above, codes, frames, written, "frames: a column is what the codec turns into sound at once"),
        (below, delay(codes[None], shifts, -1)[0], delay(frames[None], shifts, -1)[0], columns,
         "steps: a column is what the transformer writes at once"),
    ):  # fmt: skip
        known = when <= (when.max() if step is None else step)
        _draw_cells(axes, colors.float().masked_fill(~known, torch.nan), count, "Wistia")
        _title(axes, title)
        for (k, i), token in np.ndenumerate(grid.numpy()):
            if known[k, i]:
                axes.text(i, k, "–" if token < 0 else token, ha="center", va="center", fontsize=6.5)
        axes.set_xticks(range(grid.shape[1]))
    if step is not None:
        below.add_patch(Rectangle((step - 0.5, -0.5), 1, len(codes), fill=False, edgecolor=NEW, linewidth=3))
