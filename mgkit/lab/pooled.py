"""The answers of many listeners: files merged, shares with confidence intervals, and a report with plots.

answers.csv, answers.csv -> merge -> pool -> Pooled per question -> report
"""

import csv
import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from pathlib import Path

from mgkit import audio
from mgkit.lab import pages, preferences

# Quantile of the normal distribution for a 95 % interval.
NORMAL = 1.96


def merge(paths: Sequence[str | os.PathLike]) -> list[dict[str, str]]:
    """Rows of several files of answers; a row that occurs in more than one of them counts once.

    Raises: FileNotFoundError for a missing file; ValueError as `preferences.read`.
    """
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for path in paths:
        if not Path(path).exists():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        for row in preferences.read(path):
            rows.setdefault(tuple(row.values()), row)
    return list(rows.values())


def write(path: str | os.PathLike, rows: Sequence[Mapping[str, str]]) -> Path:
    """Write rows as one file of answers and return its path. Parent folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write_draft(draft: Path) -> None:
        with open(draft, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(preferences.COLUMNS)
            writer.writerows(map(preferences.cells, rows))

    return audio.replace_file(path, write_draft)


@dataclass(frozen=True)
class Pooled(preferences.Tally):
    """Answers of many listeners: `share` of those that chose `first`, without ties, and its 95 % interval.

    The interval runs from `low` to `high`; all three are nan if every answer is a tie.
    """

    listeners: int
    pairs: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        share = f"{self.share:.0%} (95 % interval {self.low:.0%} to {self.high:.0%})"
        return (
            f"{self.question} {self.first} rather than {self.second}: "
            f"{share if self.wins + self.losses else 'no answer'}; {self.wins} to {self.losses}, "
            f"no difference: {self.ties}; {self.listeners} listeners, {self.pairs} pairs"
        )


def pool(rows: Sequence[Mapping[str, str]]) -> list[Pooled]:
    """Shares by question and compared names, with intervals for other listeners and other pairs.

    Answers of one listener are alike, and so are answers to one pair: an interval that took them as
    independent would be too narrow.
    """
    found = []
    for (question, first, second), answers in preferences.by_question(rows).items():
        chosen = [row for row in answers if row["preferred"] in (first, second)]
        hits = [row["preferred"] == first for row in chosen]
        share, low, high = clustered_share(
            hits, [_who(row) for row in chosen], [row["pair"] for row in chosen]
        )
        counts = preferences.tally(answers, first, second)
        groups = (len({_who(row) for row in answers}), len({row["pair"] for row in answers}))
        found.append(Pooled(question, first, second, *counts, *groups, share, low, high))
    return found


def clustered_share(
    hits: Sequence[bool], listeners: Sequence[Hashable], pairs: Sequence[Hashable]
) -> tuple[float, float, float]:
    """Share of true values and its 95 % interval, if answers of a listener and answers to a pair are alike.

    The interval is Wilson's for the effective number of answers: their number over the design effect, the
    variance clustered by listeners and pairs over the binomial one, at least 1. Student's t stands for the
    normal quantile, with the smaller number of clusters less one as degrees of freedom. Answers of one
    listener to different pairs, or of different listeners to one pair, are independent: for them it is
    Wilson's interval itself. nan without answers.
    Source: Korn and Graubard 1998 for the effective number, Cameron, Gelbach and Miller 2011, §2.3, for the
    variance.
    """
    from scipy.stats import t

    if not hits:
        return nan, nan, nan
    n, share = len(hits), sum(hits) / len(hits)
    # Sums of squared deviations by listener, by pair and by answer, each corrected for the number of groups.
    squares, sizes = [], []
    for groups in (listeners, pairs, range(n)):
        sums: dict[Hashable, float] = defaultdict(float)
        for hit, group in zip(hits, groups, strict=True):
            sums[group] += hit - share
        sizes.append(len(sums))
        squares.append(sum(x * x for x in sums.values()) * len(sums) / max(1, len(sums) - 1))
    by_listener, by_pair, by_answer = squares
    variance = max(by_listener, by_pair, by_listener + by_pair - by_answer)
    effect = max(1.0, variance / (n * share * (1 - share))) if 0 < share < 1 else 1.0
    if all(size in (1, n) for size in sizes):
        effect, z = 1.0, NORMAL
    else:
        z = float(t.ppf(0.975, min(size for size in sizes if size > 1) - 1))
    m = n / effect
    centre = (share + z * z / (2 * m)) / (1 + z * z / m)
    half = z * sqrt(share * (1 - share) / m + z * z / (4 * m * m)) / (1 + z * z / m)
    return share, max(0.0, centre - half), min(1.0, centre + half)


def report(rows: Sequence[Mapping[str, str]], path: str | os.PathLike) -> Path:
    """Write a page about these answers to `path`: shares by question and by pair, and all counts.

    Raises: ValueError for no answers; OSError as `pages.page`.
    """
    answers = preferences.standing(rows)
    if not answers:
        raise ValueError("there are no answers yet: answer some pairs first")
    together = pool(rows)
    items: list[str | pages.Table | preferences.Picture] = [
        f"{len({_who(row) for row in answers})} listeners gave {len(answers)} answers. A share counts those "
        "who chose one of the two; its 95 % interval is for other listeners and other pairs of this kind."
    ]
    chosen = [one for one in together if one.wins + one.losses]
    if chosen:
        shares = {
            f"{one.first}, not {one.second}\n{one.question}": (one.share, one.low, one.high) for one in chosen
        }
        items.append(preferences.plot_intervals(shares, chance=0.5))
    items.append(_counts([(one.question, one) for one in together], "By question"))
    by_pair: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in answers:
        by_pair[row["pair"]].append(row)
    pairs = [(one[0]["item"], pooled) for one in by_pair.values() for pooled in pool(one)]
    items.append(_counts(pairs, "By pair"))
    plays = [int(row[name]) for row in answers for name in ("plays_a", "plays_b") if row[name].isdecimal()]
    if plays:
        items.append(f"A clip was played {sum(plays) / len(plays):.1f} times before an answer, on average.")
    return pages.page(items, path, "A blind listening test")


def _counts(rows: Sequence[tuple[str, Pooled]], title: str) -> pages.Table:
    cells, strengths = [], []
    for _, one in rows:
        total = one.wins + one.losses + one.ties
        numbers = (one.wins, one.losses, one.ties)
        share = f"{one.share:.0%} ({one.low:.0%} to {one.high:.0%})" if one.wins + one.losses else ""
        cells.append([one.first, one.second, *map(str, numbers), share])
        strengths.append([0.0, 0.0, *(0.5 * number / total for number in numbers), 0.0])
    columns = ["first", "second", "prefer first", "prefer second", "no difference", "share of first"]
    return pages.shaded_table(cells, strengths, [name for name, _ in rows], columns, title)


def _who(row: Mapping[str, str]) -> tuple[str, str]:
    return row["participant"], row["listener"]
