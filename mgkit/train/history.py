"""The history of a run: one row of metrics per report, kept as log.csv and drawn as log.png."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mgkit import audio
from mgkit.lab import figures

# Metrics by name. Rows of a history also hold `step` and `minutes`.
Metrics = dict[str, float]


def mean(rows: Sequence[Metrics]) -> Metrics:
    """Mean of each metric over the rows with it."""
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in _names(rows)}


def write(folder: Path, rows: Sequence[Metrics]) -> None:
    """Writes `folder`/log.csv, and log.png with one panel per metric."""
    names = _names(rows)

    def write_csv(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)

    audio.replace_file(folder / "log.csv", write_csv)
    metrics = [name for name in names if name not in ("step", "minutes")]
    panel_rows = -(-max(1, len(metrics)) // 3)
    figure = Figure((12, 2.2 * panel_rows), layout="constrained")
    for i, name in enumerate(metrics):
        axes = figure.add_subplot(panel_rows, 3, i + 1, title=name)
        axes.plot(*_curve(rows, name))
    audio.replace_file(folder / "log.png", lambda path: figure.savefig(path, dpi=70, format="png"))


def read(path: str | Path) -> list[Metrics]:
    """Rows of a log.csv, each with its own metrics.

    Raises: FileNotFoundError; ValueError for a file without a column named step.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "step" not in rows[0]:
        raise ValueError(f"{path} is not the log of a run: expected the columns step, loss and valid_…")
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def plot(path: str | Path) -> figures.Picture:
    """Picture of a log.csv: training and validation losses (`valid_…`) over steps. Raises: as `read`."""
    rows = read(path)
    names = [name for name in _names(rows) if name == "loss" or name.startswith("valid_")]
    figure = figures.Picture(figsize=(9, 3.2), layout="constrained")
    figure.alt = f"curves of {', '.join(names)} over {rows[-1]['step']:.0f} steps"
    axes = figure.add_subplot(xlabel="steps", ylabel="nats per token")
    for name in names:
        style = {"linewidth": 1} if name == "loss" else {"marker": "o", "markersize": 3}
        axes.plot(*_curve(rows, name), label=name.replace("_", ", "), **style)
    axes.legend(fontsize=8)
    return figure


def _names(rows: Sequence[Metrics]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _curve(rows: Sequence[Metrics], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric."""
    reported = [row for row in rows if name in row]
    return [row["step"] for row in reported], [row[name] for row in reported]
