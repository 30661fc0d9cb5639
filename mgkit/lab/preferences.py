"""Answers of blind tests: a CSV file that only grows, preference counts with a sign test, and their plots.

BlindTest.answer, undo -> append -> CSV -> read -> standing -> count -> Preference per question -> plot

The answers of many listeners, which are not independent, are evaluated in `pooled.py`.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

from mgkit.lab.drawing import GIVEN, NEW, OTHER, Picture, new_picture

# `a` and `b` are the names of the clips that were played as A and B. `pair` is the digest of question and
# clips, so that an answer belongs to the exact audio. `plays_a` and `plays_b` say how often each was played,
# and are empty if nobody counted. `participant`, random digits, tells listeners of equal names apart.
COLUMNS = (
    *("time", "listener", "seed", "trial", "question", "item"),
    *("a", "b", "answer", "preferred", "comment", "pair", "plays_a", "plays_b", "participant"),
)
# A file begun before plays were counted, or before there were participants, keeps its columns.
VERSIONS = (COLUMNS, COLUMNS[:-1], COLUMNS[:-3])
# The answer of a row that takes back the listener's answer to its pair.
UNDO = "undo"
MARK = "'"  # in front of text that a spreadsheet would compute
NUMBER = re.compile(r"[+-]?[0-9.]+")
TIES = "#c9cdd3"


# --- the file ---------------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> list[dict[str, str]]:
    """Rows of a file, oldest first, as dicts of COLUMNS; an empty list if there is no file yet.

    Answers that were taken back are among them, followed by their UNDO: see `standing`. Incomplete lines are
    skipped. Raises: ValueError for a file of another kind.
    """
    path = Path(path)
    if not path.exists() or path.stat().st_size == 0:
        return []
    try:
        # Spreadsheets may put a byte order mark first.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, IsADirectoryError):
        lines = [""]
    columns = _columns(lines[0])
    if columns is None:
        raise ValueError(f"{path} is not a file of blind-test answers; choose another path")
    # Line by line, so that an incomplete line cannot swallow the next ones.
    rows = [next(csv.reader([line]), []) for line in lines[1:]]
    return [
        dict.fromkeys(COLUMNS, "")
        | {
            column: cell.removeprefix(MARK) if _is_formula(cell.lstrip(MARK)) else cell
            for column, cell in zip(columns, row)
        }
        for row in rows
        if len(row) == len(columns)
    ]


def _columns(head: str) -> tuple[str, ...] | None:
    """The columns that the first line of a file names; None for a file of another kind."""
    return next((columns for columns in VERSIONS if head == ",".join(columns)), None)


def _is_formula(cell: str) -> bool:
    """Whether a spreadsheet would compute a cell instead of showing it: `=HYPERLINK(...)`, but not -3.5."""
    return cell[:1] in tuple("=+-@") and not NUMBER.fullmatch(cell)


def _without_formula(cell: str) -> str:
    """The cell, marked as text if it is a formula, or a marked one; `read` removes one mark."""
    return MARK + cell if _is_formula(cell.lstrip(MARK)) else cell


def cells(row: Mapping[str, object]) -> list[str]:
    """The cells of a row in the file, each on one line and none a formula."""
    return [_without_formula(" ".join(str(row[column]).split())) for column in COLUMNS]


def append(path: Path, row: Mapping[str, object]) -> None:
    """Append a line, after a header in a new file. On return it is on the disk."""
    text = io.StringIO()
    columns: tuple[str, ...] = COLUMNS
    writer = csv.writer(text, lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            writer.writerow(COLUMNS)
        else:
            file.seek(0)
            columns = _columns(file.readline().decode("utf-8-sig", "replace").rstrip("\r\n")) or COLUMNS
            file.seek(size - 1)
            # The last line may be incomplete.
            if file.read(1) != b"\n":
                text.write("\n")
        writer.writerow(cells(row)[: len(columns)])
        data = text.getvalue().encode()
        if file.write(data) != len(data):
            raise OSError(f"{path} could not be written completely: is the disk full?")
        os.fsync(file.fileno())


# --- counts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """Numbers of answers for `first` (wins), `second` (losses) and neither (ties)."""

    question: str
    first: str
    second: str
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True)
class Preference(Tally):
    """Answers to a question about two names, and the p-value of a sign test."""

    p: float

    def __str__(self) -> str:
        return (
            f"{self.question} {self.first}: {self.wins}, {self.second}: {self.losses}, "
            f"no difference: {self.ties}; p = {self.p:.2g}"
        )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value: probability of a split at least this uneven if both are equally likely.

    Ties are ignored.

    >>> sign_test(9, 1), sign_test(3, 3)
    (0.021484375, 1.0)
    """
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def standing(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The answers that count: a listener's first one to each pair, without those that were taken back."""
    answers: dict[tuple[str, str, str], Mapping[str, str]] = {}
    for row in rows:
        key = row["participant"], row["listener"], row["pair"]
        if row["answer"] == UNDO:
            answers.pop(key, None)
        else:
            answers.setdefault(key, row)
    return list(answers.values())


def by_question(rows: Iterable[Mapping[str, str]]) -> dict[tuple[str, str, str], list[Mapping[str, str]]]:
    """The answers that are `standing`, by question and the two compared names in alphabetical order."""
    groups: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for row in standing(rows):
        first, second = sorted((row["a"], row["b"]))
        groups.setdefault((row["question"], first, second), []).append(row)
    return groups


def tally(answers: Sequence[Mapping[str, str]], first: str, second: str) -> tuple[int, int, int]:
    """Numbers of answers for `first`, for `second`, and for neither."""
    preferred = [row["preferred"] for row in answers]
    return preferred.count(first), preferred.count(second), preferred.count("")


def count(rows: Iterable[Mapping[str, str]]) -> list[Preference]:
    """Preferences by question and compared names, from the answers that are `standing`."""
    preferences = []
    for (question, first, second), answers in by_question(rows).items():
        wins, losses, ties = tally(answers, first, second)
        p = sign_test(wins, losses)
        preferences.append(Preference(question, first, second, wins, losses, ties, p))
    return preferences


# --- plots ------------------------------------------------------------------------------------------------


def plot(preferences: Sequence[Preference]) -> Picture:
    """One bar per preference: wins left, ties in grey, losses right. Raises: ValueError for an empty list."""
    if not preferences:
        raise ValueError("there are no answers yet: answer some pairs first")
    figure = new_picture(0.5 + 0.9 * len(preferences), "; ".join(map(str, preferences)))
    axes = figure.subplots()
    for y, preference in enumerate(reversed(preferences)):
        left = 0
        for value, color in ((preference.wins, NEW), (preference.ties, TIES), (preference.losses, OTHER)):
            axes.barh(y, value, left=left, color=color, height=0.4)
            if value:
                axes.text(left + value / 2, y, str(value), ha="center", va="center", fontsize=9)
            left += value
        title = f"{preference.question} (p = {preference.p:.2g})"
        axes.text(0, y + 0.3, title, fontsize=9, parse_math=False)
        axes.text(0, y - 0.38, preference.first, fontsize=8, color=NEW, parse_math=False)
        axes.text(left, y - 0.38, preference.second, fontsize=8, color=OTHER, ha="right", parse_math=False)
    axes.set_ylim(-0.6, len(preferences) - 0.4)
    axes.set_yticks([])
    axes.set_xlabel("answers")
    axes.spines[["top", "left", "right"]].set_visible(False)
    return figure


def plot_intervals(shares: Mapping[str, tuple[float, float, float]], chance: float | None = None) -> Picture:
    """Shares with confidence intervals, name → (share, low, high), from 0 to 100 %; a line marks `chance`."""
    alt = "; ".join(
        f"{name}: {share:.0%} ({low:.0%} to {high:.0%})" for name, (share, low, high) in shares.items()
    )
    figure = new_picture(0.8 + 0.35 * len(shares), alt)
    axes = figure.subplots()
    for y, (share, low, high) in enumerate(reversed(list(shares.values()))):
        axes.plot([100 * low, 100 * high], [y, y], color=NEW, linewidth=3, alpha=0.5)
        axes.plot(100 * share, y, "o", color=NEW)
    axes.set_yticks(range(len(shares)), list(reversed(list(shares))), parse_math=False)
    axes.set_ylim(-0.6, len(shares) - 0.4)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("%")
    if chance is not None:
        axes.axvline(100 * chance, color=GIVEN, linestyle="--", linewidth=1)
    return figure
