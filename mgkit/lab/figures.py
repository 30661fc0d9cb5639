"""Plots of audio, tokens, windows and traces, for notebooks and reports.

Axes: C channels, N samples, K codebooks, T frames, S delayed steps, F chroma frames, V codebook size,
H heads, W words, R rows.

    waveform, mel, chroma              audio
    tokens, pattern, schedule, usage   codes, their delay pattern, and how often each token occurs
    overview                           the way from prompt to waveform in one picture
    windows, real_time                 how long music is generated, and how fast
    bars, curves, attention, table     values of a trace: distribution, curves over time, attention, table

The players and pages of `pages.py` are available here too (`figures.player`, `figures.page`, …), so that a
notebook needs one import.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from torch import Tensor

from mgkit.delay import delays
from mgkit.generate import Window, lengths
from mgkit.lab.drawing import (
    ACCENT,
    BANDS,
    COLORS,
    FLOOR,
    GIVEN,
    LINES,
    LOUD,
    MEL_HOP,
    MORE,
    N_FFT,
    NEW,
    PALE,
    Picture,
    draw_cells,
    draw_frames,
    draw_wave,
    mel_power,
    new_picture,
    one_seam_each,
    set_legend,
    set_title,
    to_samples,
)
from mgkit.lab.pages import (  # noqa: F401
    Player,
    Table,
    bare_player,
    page,
    player,
    player_table,
    players,
    shaded_table,
)
from mgkit.melody import HOP, PITCH_CLASSES
from mgkit.spectra import mel_filters

# --- audio -------------------------------------------------------------------------------------------------


def waveform(wave: Tensor | np.ndarray, rate: int, title: str = "", seam: float | None = None) -> Picture:
    """Waveform of [C, N] over seconds, one row per channel, full scale ±1.

    A dashed line marks `seam`, the end of an audio prompt in seconds. Raises: as `player`.
    """
    samples = to_samples(wave)
    figure = new_picture(1.0 + 0.9 * len(samples), f"waveform, {samples.shape[1] / rate:.2f} s", title)
    rows = figure.subplots(len(samples), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, channel in zip(rows, samples, strict=True):
        draw_wave(axes, channel, rate, seam)
    rows[-1].set_xlabel("seconds")
    return figure


def mel(
    items: Sequence[tuple[str, Tensor | np.ndarray]],
    rate: int,
    seam: float | Sequence[float | None] | None = None,
) -> Picture:
    """Mel spectrograms of (title, wave [C, N]), one row each, channels averaged, on one dB scale.

    0 dB is the maximum over all of them; -80 dB and below is white. `seam`, the end of an audio prompt in
    seconds, is one value for all waves or one for each. Raises: as `players`, and ValueError for no items.
    """
    if not items:
        raise ValueError("mel needs at least one (title, wave); got none")
    bands = mel_filters(rate, N_FFT, BANDS)
    powers = [mel_power(to_samples(wave), rate) for _, wave in items]
    top = max(float(power.max()) for power in powers) or 1.0
    figure = new_picture(
        0.6 + 1.5 * len(items), f"mel spectrograms: {', '.join(title for title, _ in items)}"
    )
    rows = figure.subplots(len(items), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, _), power, at in zip(rows, items, powers, one_seam_each(seam, len(items)), strict=True):
        decibels = 10 * torch.log10(power.clamp(min=1e-12) / top)
        edges = (0, power.shape[1] * MEL_HOP / rate, 0, len(bands))
        image = axes.imshow(decibels.numpy(), origin="lower", aspect="auto", cmap=LOUD, extent=edges)
        image.set_clim(-FLOOR, 0)
        set_title(axes, title)
        marks = [hertz for hertz in (250, 1000, 4000) if hertz < rate / 2]
        peaks = [int(bands[:, round(hertz * N_FFT / rate)].argmax()) for hertz in marks]
        axes.set_yticks(peaks, [f"{hertz} Hz" for hertz in marks])
        if at is not None:
            axes.axvline(at, color="black", linestyle="--", linewidth=1)
    rows[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=list(rows), label="dB", aspect=15 * len(items), pad=0.01)
    return figure


def chroma(items: Sequence[tuple[str, Tensor]], rate: int) -> Picture:
    """Chromagrams (title, chroma [12, F]), one row each, such as a melody and the music that follows it.

    `rate` (Hz) is the sampling rate of the audio; frames are mgkit.melody.HOP samples apart. A dot marks the
    strongest pitch class of each frame: this is what a melody model is conditioned on. Raises: ValueError for
    another shape or no items.
    """
    if not items:
        raise ValueError("chroma needs at least one (title, chroma [12, F]); got none")
    figure = new_picture(0.4 + 1.9 * len(items), f"chroma: {', '.join(title for title, _ in items)}")
    rows = figure.subplots(len(items), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, energy) in zip(rows, items, strict=True):
        if energy.ndim != 2 or len(energy) != 12:
            raise ValueError(f"expected chroma [12, F], got {list(energy.shape)}: see mgkit.melody.chroma")
        seconds = np.arange(energy.shape[1]) * HOP / rate
        edges = (seconds[0] - HOP / rate / 2, seconds[-1] + HOP / rate / 2, -0.5, 11.5)
        image = axes.imshow(energy.numpy(), origin="lower", aspect="auto", cmap=MORE, extent=edges)
        image.set_clim(0, 1)
        axes.plot(seconds, energy.argmax(dim=0).numpy(), ".", color=ACCENT, markersize=4)
        axes.set_yticks(range(12), PITCH_CLASSES, fontsize=7)
        set_title(axes, title)
    rows[-1].set_xlabel("seconds")
    label = "share of maximum"
    figure.colorbar(image, ax=list(rows), label=label, aspect=15 * len(items), pad=0.01)
    return figure


# --- tokens -----------------------------------------------------------------------------------------------


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


# --- generation -------------------------------------------------------------------------------------------


def windows(plan: Sequence[Window], rate: int, prompts: Sequence[tuple[float, str]] = ()) -> Picture:
    """The windows planned by `mgkit.generate.windows`, one row each: context, generated part, unused rest.

    `rate` is in frames per second. `prompts` are (seconds, text), drawn at their start.
    Raises: ValueError for an empty plan.
    """
    if not plan:
        raise ValueError("the plan has no windows: ask for more frames than the audio prompt has")
    texts = "; ".join(f"{text} from {seconds:g} s" for seconds, text in prompts)
    figure = new_picture(1.2 + 0.3 * len(plan) + 0.3 * bool(prompts), f"{len(plan)} windows {texts}".strip())
    axes = figure.subplots()
    for row, (window, length) in enumerate(zip(plan, lengths(plan), strict=True)):
        end = window.start + window.known + length
        for label, first, last, color in (
            ("context", window.start, window.start + window.known, GIVEN),
            ("generated", window.start + window.known, end, NEW),
            ("unused", end, window.end, PALE),
        ):
            new = label not in axes.get_legend_handles_labels()[1]
            if last > first:
                left, width = first / rate, (last - first) / rate
                axes.barh(row, width, 0.7, left, color=color, label=label if new else None)
    for seconds, text in prompts:
        axes.axvline(seconds, color="black", linestyle="--", linewidth=1)
        short = textwrap.shorten(text, 45, placeholder=" …")
        axes.text(seconds, -0.65, f" {short}", fontsize=8, va="bottom", parse_math=False)
    axes.set_ylim(len(plan) - 0.4, -0.6 - 0.9 * bool(prompts))
    axes.set_yticks(range(len(plan)), [f"window {row + 1}" for row in range(len(plan))], fontsize=8)
    axes.set_xlim(0, plan[-1].end / rate)
    axes.set_xlabel("seconds")
    set_legend(axes)
    return figure


def real_time(progress: Sequence[tuple[float, float]]) -> Picture:
    """Seconds of music generated against elapsed seconds, [(elapsed, music), …], beside real-time playback.

    The dashed line is playback from the first chunk on; wherever the solid line is below it, playback stalls.
    Raises: ValueError for an empty list.
    """
    if not progress:
        raise ValueError("real_time needs at least one (elapsed seconds, seconds of music); got none")
    elapsed, music = zip(*progress, strict=True)
    figure = new_picture(3.0, "seconds of music generated and played, over elapsed seconds")
    axes = figure.subplots()
    axes.step((0, *elapsed), (0, *music), where="post", color=NEW, label="generated")
    played = (elapsed[0], elapsed[0] + music[-1])
    axes.plot(played, (0, music[-1]), "--", color=GIVEN, label="played, from the first chunk on")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("elapsed seconds")
    axes.set_ylabel("seconds of music")
    set_legend(axes)
    return figure


# --- traces -----------------------------------------------------------------------------------------------


def bars(before: Tensor, after: Tensor, chosen: int, title: str = "", count: int = 40) -> Picture:
    """Probabilities of the `count` most likely tokens, `before` [V] and `after` [V] the sampling settings.

    A triangle marks the token `chosen`, if it is among them. Raises: ValueError for other shapes.
    """
    if before.ndim != 1 or before.shape != after.shape:
        raise ValueError(
            f"expected the probabilities [V] of one token, got {list(before.shape)}, {list(after.shape)}"
        )
    order = before.argsort(descending=True, stable=True)[:count]
    figure = new_picture(2.6, f"probabilities of the {len(order)} most likely tokens", title)
    axes = figure.subplots()
    axes.bar(range(len(order)), before[order].numpy(), width=0.9, color="#c9cdd3", label="model output")
    label = f"sampled from: {int((after > 0).sum())} of {len(after)} tokens"
    axes.bar(range(len(order)), after[order].numpy(), width=0.45, color=NEW, label=label)
    if chosen in order:
        place = order.tolist().index(chosen)
        axes.plot(place, float(after[chosen]), "v", color=ACCENT, label=f"sampled: token {chosen}")
    axes.set_xlabel("tokens, most likely first")
    axes.set_ylabel("probability")
    # Fixed, so that two pictures can be compared.
    axes.set_ylim(0, 1)
    set_legend(axes)
    return figure


def curves(
    items: Sequence[tuple[str, Tensor]], rate: float, label: str, title: str = "", top: float | None = None
) -> Picture:
    """Values over time, (title, values [T]), `rate` per second: raw (pale), and smoothed over half a second.

    `label` names the quantity and its unit. `top` ends the y axis, so that pictures can be compared; by
    default it follows the values. Raises: ValueError for no items or more than four, another shape or no
    values.
    """
    if not items or any(values.ndim != 1 or not len(values) for _, values in items):
        raise ValueError(
            f"curves needs (title, values [T]); got {[list(values.shape) for _, values in items]}"
        )
    if len(items) > len(LINES):
        raise ValueError(
            f"got {len(items)} curves, and a reader tells {len(LINES)} apart: draw two pictures with the "
            "same top, or a table"
        )
    figure = new_picture(3.0, f"{label} over time: {', '.join(title for title, _ in items)}", title)
    axes = figure.subplots()
    for i, (name, values) in enumerate(items):
        kernel = np.ones(max(1, round(rate / 2)))
        total, count = (
            np.convolve(x, kernel)[len(kernel) // 2 :][: len(values)]
            for x in (values.numpy(), np.ones(len(values)))
        )
        seconds = np.arange(len(values)) / rate
        axes.plot(seconds, values.numpy(), color=COLORS[i], alpha=0.25, linewidth=0.8)
        axes.plot(seconds, total / count, LINES[i], color=COLORS[i], label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel(label)
    axes.set_ylim(0, top)
    set_legend(axes)
    return figure


def attention(
    weights: Tensor, names: Sequence[str], rate: float, title: str = "", scale: Tensor | None = None
) -> Picture:
    """Attention `weights` [H, S, W] to W named positions over time, one panel per head, on one scale.

    `rate` is in steps per second. Colour follows the square root, so that small weights stay visible; the top
    0.5 % of the weights, or of `scale` for several pictures on one scale, are saturated.
    Raises: ValueError for another shape or number of names.
    """
    if weights.ndim != 3 or weights.shape[-1] != len(names) or 0 in weights.shape:
        raise ValueError(f"expected attention [H, S, {len(names)}] of one layer, got {list(weights.shape)}")
    across = min(len(weights), 2 if len(weights) <= 4 else 4)
    down = -(-len(weights) // across)
    every = -(-len(names) // 16)
    height = 0.6 + down * max(1.2, 0.17 * len(names[::every]))
    figure = new_picture(height, f"attention of {len(weights)} heads", title)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    top = np.quantile((weights if scale is None else scale).numpy(), 0.995)
    norm = PowerNorm(0.5, 0, float(top) or 1.0)
    for axes, head in zip(panels.flat, weights, strict=False):
        edges = (0, head.shape[0] / rate, len(names) - 0.5, -0.5)
        image = axes.imshow(
            head.T.numpy(), aspect="auto", interpolation="nearest", cmap=MORE, norm=norm, extent=edges
        )
    for h, axes in enumerate(panels.flat):
        axes.set_visible(h < len(weights))
        set_title(axes, f"head {h}")
    for axes in panels[:, 0]:
        axes.set_yticks(range(0, len(names), every), names[::every], fontsize=8, parse_math=False)
    for axes in panels[-1]:
        axes.set_xlabel("seconds")
    figure.colorbar(image, ax=panels, label="attention", extend="max", aspect=15 * down, pad=0.01)
    return figure


def table(
    values: Tensor, rows: Sequence[str], columns: Sequence[str], title: str = "", form: str = ".2f"
) -> Table:
    """Table of values [R, columns] formatted by `form`, which can be copied; darker is larger.

    Values [seeds, R, columns] appear as mean ± standard deviation over the seeds.
    Raises: ValueError for another shape.
    """
    if values.shape[-2:] != (len(rows), len(columns)) or values.ndim not in (2, 3) or not values.numel():
        raise ValueError(f"expected {len(rows)} rows of {len(columns)} values, got {list(values.shape)}")
    deviations = values.float().std(dim=0).tolist() if values.ndim == 3 and len(values) > 1 else None
    values = values.float().mean(dim=0) if values.ndim == 3 else values
    cells = [[format(value, form) for value in row] for row in values.tolist()]
    if deviations:
        spread = form.removeprefix("+")
        cells = [
            [f"{cell} ± {value:{spread}}" for cell, value in zip(*row, strict=True)]
            for row in zip(cells, deviations, strict=True)
        ]
    low, high = float(values.min()), float(values.max())
    shares = (values.float() - low) / (high - low or 1.0)
    return shaded_table(cells, shares.nan_to_num().tolist(), rows, columns, title)


def _one_sample(codes: Tensor) -> Tensor:
    """Codes [K, T] of one sample, on the CPU."""
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"expected one sample's codes [K, T], got {list(codes.shape)}: pick one, codes[0]")
    return codes.detach().cpu()
