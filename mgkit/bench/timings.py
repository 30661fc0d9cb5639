"""Timings as rows: a line on the console, a table in the README, a plot.

Times are medians; a plot shows the quartiles as well. The floor is the time to read from memory what a step
must read, and no step is shorter.
"""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

MARK, END = "<!-- bench -->", "<!-- end of bench -->"


@dataclass
class Row:
    """One library and type, one model, one batch."""

    model: str
    way: str
    batch: int
    duration: float  # seconds of music of a piece
    floor: dict[str, float]  # position in s: ms
    steps: dict[str, list[float]] = field(default_factory=dict)  # position in s: ms
    pieces: list[float] = field(default_factory=list)  # seconds of work
    beside: list[float] = field(default_factory=list)  # the same beside busy processes
    first_sound: list[float] = field(default_factory=list)  # seconds
    memory: float | None = None  # peak in GB

    @property
    def name(self) -> str:
        """The line's first cell."""
        return self.way + (f", batch {self.batch}" if self.batch > 1 else "")


def line(row: Row) -> str:
    """A row for the console."""
    steps = " ".join(
        f"{p} s {spread(row.steps[p])[0]:.2f} (floor {low:.2f})"
        for p, low in row.floor.items()
        if p in row.steps
    )
    parts = [f"{row.model:13} {row.name:26} ms a step: {steps}"]
    if row.pieces:
        work, low, high = spread(row.pieces)
        speed = row.batch * row.duration / work
        parts.append(f"{row.duration:g} s in {work:.2f} s ({low:.2f}-{high:.2f}), {speed:.1f} x real time")
    if row.beside:
        parts.append(f"beside others {spread(row.beside)[0]:.2f} s")
    if row.first_sound:
        parts.append(f"first sound {spread(row.first_sound)[0]:.2f} s")
    if row.memory is not None:
        parts.append(f"{row.memory:.1f} GB")
    return "; ".join(parts)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, with the speed relative to transformers."""
    lines = [
        "| model | library, type | ms a step after 1, 10, 30 s | floor | seconds for a piece "
        "| × transformers | first sound | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        steps = ", ".join(digits(spread(row.steps[p])[0], 3) if p in row.steps else "–" for p in row.floor)
        floor = ", ".join(digits(ms, 2) for ms in row.floor.values())
        piece = f"{row.duration:g} s: {digits(spread(row.pieces)[0], 3)}" if row.pieces else ""
        if row.beside:
            piece += f" (beside busy processes {digits(spread(row.beside)[0], 3)})"
        times = ", ".join(digits(value, 2) for value in ratios(row, rows))
        first = f"{digits(spread(row.first_sound)[0], 2)} s" if row.first_sound else ""
        memory = "" if row.memory is None else f"{row.memory:.1f} GB"
        cells = [
            row.model,
            row.name,
            steps,
            floor,
            piece,
            times,
            first,
            memory,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(row: Row, rows: list[Row]) -> list[float]:
    """How many times as fast as transformers: the median over pairs of pieces, or the steps by position."""
    for other in rows:
        same = (other.model, other.batch) == (row.model, row.batch)
        if not same or not other.way.startswith("transformers") or other is row:
            continue
        if row.pieces and other.pieces:
            return [spread([b / a for a, b in zip(row.pieces, other.pieces, strict=False)])[0]]
        both = [p for p in row.steps if p in other.steps]
        return [spread(other.steps[p])[0] / spread(row.steps[p])[0] for p in both]
    return []


def plot(rows: list[Row], title: str, file: Path) -> None:
    """Draw ms a step against the position in the piece, a line for each way; the floors are dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter

    models = list(dict.fromkeys(row.model for row in rows if row.steps and row.batch == 1))
    figure = Figure(figsize=(4.5 * max(1, len(models)), 3.6), layout="constrained")
    for place, model in enumerate(models):
        axes = figure.add_subplot(1, len(models), place + 1)
        for number, row in enumerate(r for r in rows if r.model == model and r.batch == 1 and r.steps):
            middle, low, high = zip(*(spread(values) for values in row.steps.values()), strict=True)
            at, color = [float(p) for p in row.steps], f"C{number}"
            axes.plot(at, middle, "o-", color=color, label=row.way)
            axes.fill_between(at, low, high, color=color, alpha=0.2)
            axes.plot([float(p) for p in row.floor], list(row.floor.values()), "--", color=color, linewidth=1)
        axes.set(title=model, xlabel="seconds of music", ylabel="ms a step", yscale="log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(FormatStrFormatter("%g"))
        axes.legend(fontsize=7)
    figure.suptitle(fill(title, 70), fontsize=8)
    figure.savefig(file, dpi=110)


def insert(readme: Path, text: str) -> None:
    """Replace what stands between the marks in the README.

    Raises:
        ValueError: a file without the marks.
    """
    before, mark, rest = readme.read_text(encoding="utf-8").partition(MARK)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{readme} lacks the marks {MARK} and {END} between which the table belongs")
    readme.write_text(f"{before}{MARK}\n{text}\n{END}{after}", encoding="utf-8")


def digits(value: float, count: int) -> str:
    """The value rounded to `count` significant digits, without an exponent.

    >>> digits(1549.05, 3), digits(0.4712, 2)
    ('1550', '0.47')
    """
    return f"{float(f'{value:.{count}g}'):g}"


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, and the quarter and three-quarter points.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    (3.0, 2.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high
