"""Plots of a run: its windows and pace, and from its trace the distribution, curves, attention and tables.

Axes: T frames, S delayed steps, V codebook size, H heads, W words, R rows.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from torch import Tensor

from mgkit.generate import Window, lengths
from mgkit.lab.drawing import (
    ACCENT,
    COLORS,
    GIVEN,
    LINES,
    MORE,
    NEW,
    PALE,
    Picture,
    new_picture,
    set_legend,
    set_title,
)
from mgkit.lab.pages import Table, shaded_table


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
