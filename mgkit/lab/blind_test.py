"""Blind listening tests: pairs of clips in an order that tells nothing, answers in a CSV, and what they say.

    pairs -> order by seed and listener -> A and B, equally loud -> answer -> a line of CSV, at once
                                                                                  |
                                         wins and a sign test, by question  <-----'

Letters: C channels, N samples.
"""

import csv
import hashlib
import io
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from math import comb, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mgkit import audio
from mgkit.lab import figures

if TYPE_CHECKING:
    from ipywidgets import VBox

COLUMNS = (
    *("time", "listener", "seed", "trial", "question", "item"),  # who was asked what, and when
    *("a", "b", "answer", "preferred", "comment"),  # a and b: what was behind the letters
    "pair",  # digest of the question and both clips: an answer is to these very sounds
)
ANSWERS = ("A", "B", "same")
CEILING = 10 ** (audio.PEAK / 20)  # amplitude of the loudest sample of a pair, at most
PAUSE = 0.5  # seconds in which a click is still meant for the pair before


# --- pairs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two clips to compare.

    `question` is what the listener is asked, `item` what both clips are of (a sentence, a title) and shown as well.
    `clips` are two waves [C, N] by the name of what made them, which the listener is not told.
    """

    question: str
    item: str
    clips: Mapping[str, Tensor]

    def digest(self) -> str:
        """What this pair is called in the CSV: 12 hexadecimal digits of its texts and samples."""
        said = hashlib.sha256(repr((self.question, self.item)).encode())
        for name, wave in sorted(self.clips.items()):
            said.update(repr((name, tuple(wave.shape))).encode() + wave.detach().cpu().numpy().tobytes())
        return said.hexdigest()[:12]


def matched(a: Tensor, b: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Two waves [C, N] at one loudness and of one length, the shorter's; nothing clips.

    Of two takes the louder one seems the better. Both come to -14 LUFS, or as near below it as the higher peak allows.
    Where one has no loudness (silence, or less than 0.4 s) both keep their level. Errors: those of `audio.check`.
    """
    length = min(a.shape[-1], b.shape[-1])
    waves = [audio.check(wave[..., :length], "a clip of the pair") for wave in (a, b)]
    levels = [audio.loudness(wave, rate) for wave in waves]
    if all(isfinite(level) for level in levels):
        waves = [wave * 10 ** ((audio.LOUDNESS - level) / 20) for wave, level in zip(waves, levels)]
        peak = max(float(wave.abs().max()) for wave in waves)
        waves = [wave * min(1.0, CEILING / peak) for wave in waves]
    return waves[0], waves[1]


# --- the test ----------------------------------------------------------------------------------------------------


class BlindTest:
    """A blind test of one listener: which clip of each pair is the better one?

        test = BlindTest(pairs, model.sample_rate, "../outputs/listening.csv", listener="Ada")
        test.widget()                   # in a notebook: players, buttons, a line for comments
        test.answer("A", "warmer")      # the same by a call: "A", "B" or "same"

    The order of the pairs, and which clip is A, are drawn from `seed` and the listener's name; half of the pairs are
    turned round. Each answer is a line at the end of the file, written before the next pair is shown. A test that was
    broken off goes on at the next pair, if listener, seed and clips are the same. Nothing is ever overwritten, and
    several listeners and tests may share a file.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        rate: int,
        path: str | os.PathLike,
        listener: str = "",
        seed: int = 0,
    ):
        """`rate` in Hz is that of all clips; the folder of `path` is made. Without a listener, `start` names one.

        Errors: ValueError for no pairs, for one without two clips, for the same pair twice, and for a file that holds
        something else than answers.
        """
        self.pairs, self.rate, self.path, self.seed = list(pairs), rate, Path(path), seed
        if not self.pairs:
            raise ValueError("a listening test needs at least one pair; got none")
        for pair in self.pairs:
            if len(pair.clips) != 2:
                raise ValueError(f"the pair {pair.item!r} has {len(pair.clips)} clips; it must have two")
        self._digests = [pair.digest() for pair in self.pairs]
        if len(set(self._digests)) < len(self.pairs):
            raise ValueError("the same pair is there twice; ask about each once, or ask something else")
        self.listener = ""
        self._order: list[tuple[int, bool]] = []  # (number of the pair, whether it is turned round)
        self._at = 0
        read(self.path)  # what is no file of answers is said now, not after the first answer
        if listener:
            self.start(listener)

    def start(self, listener: str) -> None:
        """Begins with another listener, or goes on where this one stopped. Errors: ValueError for no name."""
        name = " ".join(listener.split())
        if not name:
            raise ValueError("say who listens; any name will do, and the same one goes on where it stopped")
        done = {row["pair"] for row in read(self.path) if row["listener"] == name}
        draw = random.Random(f"{self.seed} {name}")
        numbers, turned = list(range(len(self.pairs))), [bool(i % 2) for i in range(len(self.pairs))]
        draw.shuffle(numbers)
        draw.shuffle(turned)
        order = list(zip(numbers, turned))
        # what is answered already comes first, so that the rest keeps its numbers
        self._order = sorted(order, key=lambda trial: self._digests[trial[0]] not in done)
        self._at = sum(digest in done for digest in self._digests)
        self.listener = name

    def __len__(self) -> int:
        """Pairs in the test."""
        return len(self.pairs)

    @property
    def finished(self) -> bool:
        """Whether the listener has answered for every pair."""
        return bool(self.listener) and self._at == len(self.pairs)

    @property
    def progress(self) -> str:
        """Which pair is being asked about: "3 of 12"; "done" after the last."""
        return "done" if self.finished else f"{self._at + 1} of {len(self.pairs)}"

    @property
    def pair(self) -> Pair:
        """The pair that is being asked about. Errors: ValueError before there is a listener, and after the last."""
        return self.pairs[self._trial()[0]]

    @property
    def clips(self) -> tuple[Tensor, Tensor]:
        """A and B, two waves [C, N], equally loud and long. Errors: as `pair`."""
        number, turned = self._trial()
        one, other = self.pairs[number].clips.values()
        a, b = matched(one, other, self.rate)
        return (b, a) if turned else (a, b)

    def players(self) -> figures.Player:
        """Players of A and B, that say no more than these letters. Errors: as `pair`."""
        both = (figures.bare_player(wave, self.rate, name) for name, wave in zip("AB", self.clips))
        return figures.Player(f"<div>{''.join(one.html for one in both)}</div>")

    def answer(self, choice: str, comment: str = "") -> str:
        """Writes down that A or B is better, or that they are the "same", and gives the progress after it.

        Errors: ValueError for another choice and as `pair`; OSError where the line cannot be written, with the pair
        still to be answered.
        """
        if choice not in ANSWERS:
            raise ValueError(f"the answer is {choice!r}; it must be one of {', '.join(ANSWERS)}")
        number, turned = self._trial()
        pair = self.pairs[number]
        one, other = pair.clips
        behind = {"A": other, "B": one} if turned else {"A": one, "B": other}
        _append(
            self.path,
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "listener": self.listener,
                "seed": self.seed,
                "trial": self._at + 1,
                "question": pair.question,
                "item": pair.item,
                "a": behind["A"],
                "b": behind["B"],
                "answer": choice,
                "preferred": behind.get(choice, ""),
                "comment": comment,
                "pair": self._digests[number],
            },
        )
        self._at += 1
        return self.progress

    def _trial(self) -> tuple[int, bool]:
        if not self.listener:
            raise ValueError("nobody listens yet: start('Ada') says who")
        if self.finished:
            raise ValueError(
                f"{self.listener} has answered for all {len(self)} pairs: scores(read(path)) says what"
            )
        return self._order[self._at]

    def widget(self) -> "VBox":
        """The test as a panel: listener, question, two players, three buttons, a line for a comment.

        Errors: RuntimeError in one sentence where ipywidgets is not there.
        """
        try:
            import ipywidgets
        except ImportError:
            raise RuntimeError(
                "the panel needs ipywidgets (pip install ipywidgets); players() and answer('A') do without"
            ) from None
        name = ipywidgets.Text(
            self.listener, placeholder="your name", description="listener", continuous_update=False
        )
        head, sound, said = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        comment = ipywidgets.Text(placeholder="a word on why, if you like", description="comment")
        labels = ("A is better", "B is better", "no difference")
        buttons = [ipywidgets.Button(description=label) for label in labels]
        shown = 0.0

        def draw() -> None:
            nonlocal shown
            asking = bool(self.listener) and not self.finished
            if asking:
                head.value = f"<b>{self.progress}</b> · {escape(self.pair.question)}<br><i>{escape(self.pair.item)}</i>"
            else:
                head.value = f"Thank you, {escape(self.listener)}." if self.finished else "Who listens?"
            sound.value = self.players().html if asking else ""
            comment.value = ""
            for control in (comment, *buttons):
                control.disabled = not asking
            shown = time.monotonic()

        def begin(change: dict) -> None:
            if change["new"].strip():
                self.start(change["new"])
                said.value = ""
                draw()

        def decide(button: object) -> None:
            if time.monotonic() - shown < PAUSE or self.finished:  # a second click on the pair before
                return
            try:
                self.answer(dict(zip(labels, ANSWERS))[button.description], comment.value)  # type: ignore[attr-defined]
                said.value = f"written to {escape(self.path.name)}"
            except (OSError, ValueError) as error:
                said.value = f"not written: {escape(str(error))}"
                return
            draw()

        name.observe(begin, "value")
        for button in buttons:
            button.on_click(decide)
        draw()
        return ipywidgets.VBox([name, head, sound, ipywidgets.HBox(buttons), comment, said])


# --- the answers -------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> list[dict[str, str]]:
    """The answers in a file, one dict of COLUMNS each, oldest first; none where there is no file yet.

    A line that broke off is left out. Errors: ValueError for a file of something else.
    """
    path = Path(path)
    if not path.exists() or path.stat().st_size == 0:
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (UnicodeDecodeError, IsADirectoryError):
        lines = [""]
    if lines[0] != ",".join(COLUMNS):
        raise ValueError(f"{path} holds something else than answers of a listening test; name another file")
    rows = [next(csv.reader([line]), []) for line in lines[1:]]  # line by line: none is longer than its line
    return [dict(zip(COLUMNS, row)) for row in rows if len(row) == len(COLUMNS)]


def _append(path: Path, row: Mapping[str, object]) -> None:
    """Adds a line to the file, and its header to a new one; it is on the disk when this returns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            writer.writerow(COLUMNS)
        else:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # the line before broke off
                text.write("\n")
        writer.writerow(" ".join(str(row[column]).split()) for column in COLUMNS)
        data = text.getvalue().encode()
        if file.write(data) != len(data):
            raise OSError(f"{path} could not be written whole: is the disk full?")
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Score:
    """How often `one` and `other` were preferred for a question, how often neither, and how surprising that is.

    `p` is the chance that coins thrown instead of listeners come out at least as uneven (`sign_test`).
    """

    question: str
    one: str
    other: str
    wins: int
    losses: int
    ties: int
    p: float

    def __str__(self) -> str:
        return (
            f"{self.question} {self.one}: {self.wins}, {self.other}: {self.losses}, no difference: {self.ties}; "
            f"p = {self.p:.2g}"
        )


def sign_test(wins: int, losses: int) -> float:
    """Chance that fair coins fall at least as unevenly as wins to losses, in either direction; ties are not counted.

    >>> sign_test(9, 1), sign_test(3, 3)
    (0.021484375, 1.0)
    """
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def scores(rows: Sequence[Mapping[str, str]]) -> list[Score]:
    """What the answers of `read` say, by question and by what was compared; a listener's first answer to a pair counts."""
    first: dict[tuple[str, str], Mapping[str, str]] = {}
    for row in rows:
        first.setdefault((row["listener"], row["pair"]), row)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in first.values():
        one, other = sorted((row["a"], row["b"]))
        groups.setdefault((row["question"], one, other), []).append(row["preferred"])
    found = []
    for (question, one, other), preferred in groups.items():
        wins, losses, ties = (preferred.count(name) for name in (one, other, ""))
        found.append(Score(question, one, other, wins, losses, ties, sign_test(wins, losses)))
    return found


# --- pictures ----------------------------------------------------------------------------------------------------


def picture(found: Sequence[Score]) -> figures.Picture:
    """Picture of scores, a bar each: wins to the left, ties in grey, losses to the right. Errors: ValueError for none."""
    if not found:
        raise ValueError("there are no answers yet: answer some pairs first")
    figure = figures.Picture(figsize=(9, 0.5 + 0.9 * len(found)), layout="constrained")
    figure.alt = "; ".join(map(str, found))
    axes = figure.subplots()
    for y, score in enumerate(reversed(found)):
        left = 0
        parts = ((score.wins, figures.NEW), (score.ties, "#c9cdd3"), (score.losses, "#d97706"))
        for count, color in parts:
            axes.barh(y, count, left=left, color=color, height=0.4)
            if count:
                axes.text(left + count / 2, y, str(count), ha="center", va="center", fontsize=9)
            left += count
        axes.text(0, y + 0.3, f"{score.question} (p = {score.p:.2g})", fontsize=9, parse_math=False)
        axes.text(0, y - 0.38, score.one, fontsize=8, color=figures.NEW, parse_math=False)
        axes.text(left, y - 0.38, score.other, fontsize=8, color="#d97706", ha="right", parse_math=False)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_yticks([])
    axes.set_xlabel("answers")
    axes.spines[["top", "left", "right"]].set_visible(False)
    return figure


def intervals(
    shares: Mapping[str, tuple[float, float, float]], chance: float | None = None
) -> figures.Picture:
    """Picture of (share, low, high) by name, a dot with its interval each, from 0 to 100 %; a line marks `chance`."""
    figure = figures.Picture(figsize=(9, 0.8 + 0.35 * len(shares)), layout="constrained")
    figure.alt = "; ".join(
        f"{name}: {share:.0%} ({low:.0%} to {high:.0%})" for name, (share, low, high) in shares.items()
    )
    axes = figure.subplots()
    for y, (share, low, high) in enumerate(reversed(list(shares.values()))):
        axes.plot([100 * low, 100 * high], [y, y], color=figures.NEW, linewidth=3, alpha=0.5)
        axes.plot(100 * share, y, "o", color=figures.NEW)
    axes.set_yticks(range(len(shares)), list(reversed(list(shares))), parse_math=False)
    axes.set_ylim(-0.6, len(shares) - 0.4)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("%")
    if chance is not None:
        axes.axvline(100 * chance, color=figures.GIVEN, linestyle="--", linewidth=1)
    return figure
