"""Blind listening tests: pairs of clips in random order at equal loudness, answers in a CSV file.

Axes: C channels, N samples.

    pairs -> order by seed and listener -> A and B, loudness matched -> answer or undo -> result

Nothing here needs a notebook: `blind_panel.py` shows a test in one.
"""

import hashlib
import os
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from pathlib import Path

from torch import Tensor

from mgkit import audio
from mgkit.lab import pages, preferences

# Label of the button → answer in the file.
ANSWERS = {"A is better": "A", "B is better": "B", "no difference": "same"}
# Maximum peak amplitude of a pair.
PEAK = 10 ** (audio.PEAK / 20)


@dataclass(frozen=True)
class Result:
    """What one listener answered, with the names of the systems: `rows` of the answer file, oldest first."""

    rows: Sequence[Mapping[str, str]]

    @property
    def preferences(self) -> list[preferences.Preference]:
        """Counts by question and systems."""
        return preferences.count(self.rows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.preferences))

    def table(self) -> pages.Table:
        """One row per pair: which systems A and B were, which one was preferred, and the plays of both.

        Each question has a table of its own. Plays are left out if nobody counted them.
        """
        parts = []
        for question in dict.fromkeys(row["question"] for row in self.rows):
            rows = [row for row in self.rows if row["question"] == question]
            columns = {
                "A was": [row["a"] for row in rows],
                "B was": [row["b"] for row in rows],
                "preferred": [row["preferred"] or "no difference" for row in rows],
                "plays of A and B": [f"{row['plays_a']} and {row['plays_b']}" for row in rows],
                "comment": [row["comment"] for row in rows],
            }
            if not any(row["plays_a"] for row in rows):
                del columns["plays of A and B"]
            if not any(columns["comment"]):
                del columns["comment"]
            shades, items = [[0.0] * len(columns)] * len(rows), [row["item"] for row in rows]
            parts.append(pages.shaded_table([*zip(*columns.values())], shades, items, [*columns], question))
        return pages.Table("".join(part.html for part in parts))


@dataclass(frozen=True)
class Pair:
    """Two clips to compare.

    `question` is shown to the listener, and so is `item`, the prompt or title that both clips share. `clips`
    maps the name of a system to its wave [C, N]; names stay hidden.
    """

    question: str
    item: str
    clips: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> str:
        """Identifier of this pair in the CSV: 12 hexadecimal digits of its texts and samples."""
        sha = hashlib.sha256(repr((self.question, self.item)).encode())
        for name, wave in sorted(self.clips.items()):
            sha.update(repr((name, tuple(wave.shape))).encode() + wave.detach().cpu().numpy().tobytes())
        return sha.hexdigest()[:12]


def match_loudness(a: Tensor, b: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Two waves [C, N] at equal loudness and length (the shorter one's), without clipping.

    Listeners prefer the louder of two clips. Both are set to -14 LUFS, or as close below it as the higher
    peak allows. If the loudness of one is undefined (silence, or less than 0.4 s), both keep their level.
    Raises: as `audio.as_wave`.
    """
    length = min(a.shape[-1], b.shape[-1])
    waves = [audio.as_wave(wave[..., :length], "a clip of the pair") for wave in (a, b)]
    levels = [audio.loudness(wave, rate) for wave in waves]
    if all(isfinite(level) for level in levels):
        waves = [wave * 10 ** ((audio.LOUDNESS - level) / 20) for wave, level in zip(waves, levels)]
        peak = max(float(wave.abs().max()) for wave in waves)
        waves = [wave * min(1.0, PEAK / peak) for wave in waves]
    return waves[0], waves[1]


def unheard(plays: tuple[int, int]) -> str:
    """The sentence that asks for the clips not played yet; empty if A and B were played.

    >>> unheard((0, 0)), unheard((2, 0)), unheard((1, 1))
    ('Listen to A and B first.', 'Listen to B first.', '')
    """
    missing = [letter for letter, count in zip("AB", plays) if count < 1]
    return f"Listen to {' and '.join(missing)} first." if missing else ""


def trials(count: int, seed: int, listener: str) -> list[tuple[int, bool]]:
    """Random order of `count` pairs: the index of each, and whether its clips are swapped (in half of them).

    >>> trials(4, 0, "Ada") == trials(4, 0, "Ada") != trials(4, 0, "Bob")
    True
    """
    draw = random.Random(f"{seed} {listener}")
    numbers, swapped = list(range(count)), [bool(i % 2) for i in range(count)]
    draw.shuffle(numbers)
    draw.shuffle(swapped)
    return list(zip(numbers, swapped))


class BlindTest:
    """A blind test of one listener, who chooses the better clip of each pair.

        test = BlindTest(pairs, model.sample_rate, "../outputs/listening.csv", listener="Ada")
        blind_panel.BlindPanel(test)    # in a notebook: players, buttons, a comment field
        test.answer("A", "warmer")      # the same in code: "A", "B" or "same"
        test.undo()                     # takes it back
        test.result()                   # after the last pair

    The order of the pairs and the assignment of A and B are random, given `seed` and the listener's name;
    half of the pairs are swapped. Each answer is appended to the file before the next pair is shown. An
    interrupted test resumes at the next pair if listener, seed and clips are the same. Listeners and tests
    may share a file; `participant`, random digits, tells listeners of equal names apart.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        rate: int,
        path: str | os.PathLike,
        listener: str = "",
        seed: int = 0,
    ):
        """`rate` (Hz) is the sampling rate of all clips. Without a listener, call `start` later.

        Raises: ValueError for no pairs, a pair without two clips, a repeated pair, or an existing file of
        another kind.
        """
        self.pairs, self.rate, self.path, self.seed = list(pairs), rate, Path(path), seed
        if not self.pairs:
            raise ValueError("a blind test needs at least one pair; got none")
        for pair in self.pairs:
            if len(pair.clips) != 2:
                raise ValueError(f"the pair {pair.item!r} has {len(pair.clips)} clips; expected two")
        self._digests = [pair.digest for pair in self.pairs]
        if len(set(self._digests)) < len(self.pairs):
            raise ValueError("a pair occurs twice; list each pair once, or change its question")
        self.listener = self.participant = ""
        # Index of the pair, and whether its clips are swapped.
        self._order: list[tuple[int, bool]] = []
        self._at = 0
        # Trials before it were answered in another session, or their systems have been named.
        self._fixed = 0
        # A file of another kind is rejected now, not after the first answer.
        preferences.read(self.path)
        if listener:
            self.start(listener)

    def start(self, listener: str, participant: str = "") -> None:
        """Start with this listener, or resume where they stopped. Raises: ValueError for an empty name.

        Without a `participant`, it is the last one of this name in the file, or a new one.
        """
        name = " ".join(listener.split())
        if not name:
            raise ValueError(
                "the listener's name is empty; any name will do, and the same name resumes its test"
            )
        rows = [row for row in preferences.read(self.path) if row["listener"] == name]
        known = rows[-1]["participant"] if rows else secrets.token_hex(4)
        self.listener, self.participant = name, participant or known
        done = {row["pair"] for row in self._standing()}
        order = trials(len(self.pairs), self.seed, name)
        # Answered pairs come first, so that the others keep their trial numbers.
        self._order = sorted(order, key=lambda trial: self._digests[trial[0]] not in done)
        self._at = self._fixed = sum(digest in done for digest in self._digests)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @property
    def finished(self) -> bool:
        """Whether the listener has answered every pair."""
        return bool(self.listener) and self._at == len(self.pairs)

    @property
    def answered(self) -> int:
        """Number of answered pairs."""
        return self._at

    @property
    def progress(self) -> str:
        """Number of the current pair: "3 of 12"; "done" after the last."""
        return "done" if self.finished else f"{self._at + 1} of {len(self.pairs)}"

    @property
    def pair(self) -> Pair:
        """The current pair. Raises: ValueError before there is a listener and after the last pair."""
        return self.pairs[self._trial()[0]]

    @property
    def swapped(self) -> bool:
        """Whether A is the second clip of the current pair. Raises: as `pair`."""
        return self._trial()[1]

    @property
    def clips(self) -> tuple[Tensor, Tensor]:
        """A and B, two waves [C, N] of equal loudness and length. Raises: as `pair`."""
        number, swapped = self._trial()
        first, second = self.pairs[number].clips.values()
        a, b = match_loudness(first, second, self.rate)
        return (b, a) if swapped else (a, b)

    def players(self) -> pages.Player:
        """Players of A and B, labelled with these letters only. Raises: as `pair`."""
        both = (pages.bare_player(wave, self.rate, letter) for letter, wave in zip("AB", self.clips))
        return pages.Player(f"<div>{''.join(player.html for player in both)}</div>")

    def answer(self, choice: str, comment: str = "", plays: tuple[int, int] | None = None) -> str:
        """Record "A", "B" or "same" for the current pair and return the new progress.

        `plays` says how often A and B were played, if somebody counted. Raises: ValueError for another
        choice, for a clip that was not played, and as `pair`; OSError if the file cannot be written, without
        advancing.
        """
        if choice not in ANSWERS.values():
            raise ValueError(f"the answer is {choice!r}; it must be one of {', '.join(ANSWERS.values())}")
        if plays and (missing := unheard(plays)):
            raise ValueError(missing)
        self._record(choice, comment, plays or ("", ""))
        self._at += 1
        return self.progress

    @property
    def can_undo(self) -> bool:
        """Whether the last answer may be taken back: it is from this session, and no result was shown yet."""
        return self._at > self._fixed

    def undo(self) -> str:
        """Take back the last answer, so that its pair is asked again, and return the new progress.

        Raises: ValueError if there is no answer of this session, or after `result`; OSError as `answer`.
        """
        if not self.can_undo:
            raise ValueError(
                "there is no answer to take back: only one of this session can be, before the result"
            )
        self._at -= 1
        try:
            self._record(preferences.UNDO, "", ("", ""))
        except OSError:
            self._at += 1
            raise
        return self.progress

    def result(self) -> Result:
        """The listener's answers with the names of the systems. Ends the test: nothing can be undone.

        Raises: ValueError before the last pair is answered, so that nobody listens with a name in mind.
        """
        if not self.finished:
            raise ValueError(f"the test is at {self.progress}; its result is shown after the last pair")
        self._fixed = self._at
        return Result([row for row in self._standing() if row["pair"] in self._digests])

    def _standing(self) -> list[Mapping[str, str]]:
        """This participant's answers that count, about any pair."""
        rows = preferences.standing(preferences.read(self.path))
        # Files of earlier versions have no participants.
        mine = ("", self.participant)
        return [row for row in rows if row["listener"] == self.listener and row["participant"] in mine]

    def _record(self, choice: str, comment: str, plays: tuple[int | str, int | str]) -> None:
        number, swapped = self._trial()
        pair = self.pairs[number]
        first, second = pair.clips
        names = {"A": second, "B": first} if swapped else {"A": first, "B": second}
        row = {
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "listener": self.listener,
            "seed": self.seed,
            "trial": self._at + 1,
            "question": pair.question,
            "item": pair.item,
            "a": names["A"],
            "b": names["B"],
            "answer": choice,
            "preferred": names.get(choice, ""),
            "comment": comment,
            "pair": self._digests[number],
            "plays_a": plays[0],
            "plays_b": plays[1],
            "participant": self.participant,
        }
        preferences.append(self.path, row)

    def _trial(self) -> tuple[int, bool]:
        if not self.listener:
            raise ValueError("there is no listener yet: call start('Ada') first")
        if self.finished:
            raise ValueError(
                f"{self.listener} has answered all {len(self)} pairs; "
                "preferences.count(preferences.read(path)) evaluates them"
            )
        return self._order[self._at]
