"""A sweep: every combination of settings, prompts and seeds, measured, as a table with players.

sweep(model, ["calm piano"], cfg_coef=[1, 3], seed=range(4), measure=[loudness])

   prompt      cfg_coef  seed  loudness        .grid()    players, a column for each cfg_coef
0  calm piano       1.0     0     -21.3        .to_csv()  as any pandas DataFrame
1  calm piano       1.0     1     -19.8
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import pandas
from pandas import DataFrame

from mgkit.brief import brief
from mgkit.interrupt import CtrlC
from mgkit.jobs import Progress, Sample, batches, count_frames, describe, generate_batch
from mgkit.lab.pages import Player, player_table
from mgkit.musicgen import MusicGen
from mgkit.progress import ProgressBar
from mgkit.table import expand

Measure = Callable[[Sample], float | Mapping[str, float]]
"""A measurement of a sample: a number, in a column with the function's name, or several with their names."""
SHOWN = 100  # most players of a grid


class Sweep(DataFrame):
    """A row for each sample: its prompt, seed and settings, then its measurements.

    `samples` holds the sample of each row by the row's index; rows that are selected or sorted keep theirs.
    """

    _metadata = ["samples", "varied"]
    samples: dict[int, Sample]
    varied: list[str]  # columns with more than one value

    @property
    def _constructor(self) -> type["Sweep"]:
        return Sweep

    def grid(self, across: str | None = None) -> Player:
        """Players of all rows: a column for each value of `across`, a row for each other combination.

        By default, `across` is the last setting that was varied, or the seed.

        Raises: ValueError for an unknown column, more than 100 rows, or a combination without a row.
        """
        if not 0 < len(self) <= SHOWN:
            raise ValueError(f"the grid has {len(self)} players; select from 1 to {SHOWN} rows first")
        if across is None:
            settings = [name for name in self.varied if name not in ("seed", "prompt")]
            across = settings[-1] if settings else "seed"
        if across not in self.columns:
            raise ValueError(f"there is no column {brief(across)}; choose from {', '.join(self.varied)}")
        others = [name for name in self.varied if name != across]
        cells: dict[str, dict[str, Sample]] = {}
        for index, row in self.iterrows():
            name = ", ".join(_label(other, row[other]) for other in others) or _label("prompt", row["prompt"])
            cells.setdefault(name, {})[_label(across, row[across])] = self.samples[index]
        columns = list(next(iter(cells.values())))
        for name, row in cells.items():
            if list(row) != columns:
                raise ValueError(
                    f"the row {name} has players for {', '.join(row)}, the first for {', '.join(columns)}: "
                    "select complete rows, or another column across"
                )
        waves = [[sample.wave for sample in row.values()] for row in cells.values()]
        return player_table(waves, next(iter(self.samples.values())).rate, list(cells), columns)


def sweep(
    model: MusicGen,
    prompts: str | Sequence[str],
    *,
    measure: Sequence[Measure] = (),
    batch: int | None = None,
    progress: bool = True,
    **columns: Any,
) -> Sweep:
    """Generate every combination of prompts and `columns`, in batches, and measure each sample.

    `columns` are those of a table (`mgkit.table.COLUMNS`): settings, `seed`, `negative`, `chords`, paths of a
    `melody` or an `audio_prompt`; each is a value, or a list, tuple or range of values. Others keep the
    model's settings and, if no seed is given, seed 0. Ctrl-C ends the sweep after the last complete batch.

    Raises:
        ValueError: an unknown column, an invalid value, or a measurement without a name of its own.
        ImportError: pandas is not installed.
    """
    values = {"prompt": _values(prompts)} | {name: _values(value) for name, value in columns.items()}
    values.setdefault("seed", [0])
    jobs = expand(values, asdict(model.settings))
    parts = batches(model.model, jobs, batch)
    samples: dict[Any, Sample] = {}
    bar = ProgressBar(None, " frames") if progress else None
    counted = Progress(bar, sum(count_frames(model.model, part) for part in parts))
    with CtrlC() as stop, bar or nullcontext():
        for part in parts:
            counted.size = count_frames(model.model, part)
            for sample in generate_batch(model.model, part, counted, stop):
                samples[sample.job] = sample
            counted.before += counted.size
            if stop.is_set():
                break
    rows = [samples[job] for job in jobs if job in samples]
    table = Sweep(pandas.DataFrame([_row(sample, list(values), measure) for sample in rows]))
    table.samples = dict(enumerate(rows))
    table.varied = [name for name in values if name in table and table[name].nunique() > 1]
    return table


def _values(value: Any) -> list:
    """The values of an argument: those of a list, tuple or range, or the one."""
    values = list(value) if isinstance(value, list | tuple | range) else [value]
    if not values:
        raise ValueError("a column of the sweep is empty; give at least one value")
    return values


def _row(sample: Sample, given: Sequence[str], measure: Sequence[Measure]) -> dict[str, Any]:
    """The columns of a sample: those given, then the other settings, then the measurements."""
    described = describe(sample.job, sample.manifest)
    row = {name: described[name] for name in given}
    row |= {name: value for name, value in described.items() if value not in (None, "")}
    for function in measure:
        made = function(sample)
        named = made if isinstance(made, Mapping) else {getattr(function, "__name__", "<lambda>"): made}
        for name, value in named.items():
            if name in row or name == "<lambda>":
                raise ValueError(
                    f"a measurement has the name {brief(name)}; define it as a function with a name of its "
                    "own, or return a dict"
                )
            row[name] = value
    return row


def _label(name: str, value: Any) -> str:
    """A heading of the grid, such as `cfg_coef 3`."""
    return (
        str(value)
        if name == "prompt"
        else f"{name} {value:g}"
        if isinstance(value, float)
        else f"{name} {value}"
    )
