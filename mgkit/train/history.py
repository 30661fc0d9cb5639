"""The history of a run: one row of metrics per report, kept as log.csv and drawn as log.png."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mgkit import audio
from mgkit.lab import figures
from mgkit.lab.drawing import LINES, new_picture, set_legend

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


def plot(path: str | Path, names: Sequence[str] | None = None) -> figures.Picture:
    """Picture of a log.csv: the curves of these metrics in nats per token over steps.

    By default, the training loss and all validation losses (`valid_…`). Raises: as `read`, and ValueError for
    a name that is not in the log.
    """
    rows = read(path)
    known = [name for name in _names(rows) if name == "loss" or name.startswith("valid_")]
    if missing := set(names or ()) - set(known):
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}; it has {', '.join(known)}")
    return draw([(name.replace("_", ", "), *_curve(rows, name)) for name in names or known])


def draw(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> figures.Picture:
    """Picture of losses (title, steps, nats per token), told apart by more than their colour."""
    alt = f"losses over steps: {', '.join(title for title, _, _ in curves)}"
    figure = new_picture(3.0, alt)
    axes = figure.subplots()
    for i, (title, steps, values) in enumerate(curves):
        axes.plot(steps, values, LINES[i % len(LINES)], color=f"C{i}", label=title)
    axes.set_xlabel("steps")
    axes.set_ylabel("nats per token")
    set_legend(axes)
    return figure


def _names(rows: Sequence[Metrics]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _curve(rows: Sequence[Metrics], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric."""
    reported = [row for row in rows if name in row]
    return [row["step"] for row in reported], [row[name] for row in reported]
