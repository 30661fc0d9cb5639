"""Blind listening tests: pairs of clips in random order at equal loudness, answers in a CSV file.

Axes: C channels, N samples.

    pairs -> order by seed and listener -> A and B, loudness matched -> answer -> preferences.append
"""

import hashlib
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mgkit import audio
from mgkit.lab import figures, preferences

if TYPE_CHECKING:
    from ipywidgets import Button, VBox

# Label of the button → answer in the file.
ANSWERS = {"A is better": "A", "B is better": "B", "no difference": "same"}
# Maximum peak amplitude of a pair.
PEAK = 10 ** (audio.PEAK / 20)
# Seconds after a new pair appears in which clicks are ignored: they were meant for the previous pair.
DEBOUNCE = 0.5


@dataclass(frozen=True)
class Pair:
    """Two clips to compare.

    `question` is shown to the listener, and so is `item`, the prompt or title that both clips share. `clips`
    maps the name of a system to its wave [C, N]; names stay hidden.
    """

    question: str
    item: str
    clips: Mapping[str, Tensor]

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


class BlindTest:
    """A blind test of one listener, who chooses the better clip of each pair.

        test = BlindTest(pairs, model.sample_rate, "../outputs/listening.csv", listener="Ada")
        test.widget()                   # in a notebook: players, buttons, a comment field
        test.answer("A", "warmer")      # the same in code: "A", "B" or "same"

    The order of the pairs and the assignment of A and B are random, given `seed` and the listener's name;
    half of the pairs are swapped. Each answer is appended to the file before the next pair is shown. An
    interrupted test resumes at the next pair if listener, seed and clips are the same. Listeners and tests
    may share a file.
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
        self._digests = [pair.digest() for pair in self.pairs]
        if len(set(self._digests)) < len(self.pairs):
            raise ValueError("a pair occurs twice; list each pair once, or change its question")
        self.listener = ""
        # Index of the pair, and whether its clips are swapped.
        self._order: list[tuple[int, bool]] = []
        self._at = 0
        # A file of another kind is rejected now, not after the first answer.
        preferences.read(self.path)
        if listener:
            self.start(listener)

    def start(self, listener: str) -> None:
        """Start with this listener, or resume where they stopped. Raises: ValueError for an empty name."""
        name = " ".join(listener.split())
        if not name:
            raise ValueError(
                "the listener's name is empty; any name will do, and the same name resumes its test"
            )
        done = {row["pair"] for row in preferences.read(self.path) if row["listener"] == name}
        draw = random.Random(f"{self.seed} {name}")
        numbers, swapped = list(range(len(self.pairs))), [bool(i % 2) for i in range(len(self.pairs))]
        draw.shuffle(numbers)
        draw.shuffle(swapped)
        order = list(zip(numbers, swapped))
        # Answered pairs come first, so that the others keep their trial numbers.
        self._order = sorted(order, key=lambda trial: self._digests[trial[0]] not in done)
        self._at = sum(digest in done for digest in self._digests)
        self.listener = name

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @property
    def finished(self) -> bool:
        """Whether the listener has answered every pair."""
        return bool(self.listener) and self._at == len(self.pairs)

    @property
    def progress(self) -> str:
        """Number of the current pair: "3 of 12"; "done" after the last."""
        return "done" if self.finished else f"{self._at + 1} of {len(self.pairs)}"

    @property
    def pair(self) -> Pair:
        """The current pair. Raises: ValueError before there is a listener and after the last pair."""
        return self.pairs[self._trial()[0]]

    @property
    def clips(self) -> tuple[Tensor, Tensor]:
        """A and B, two waves [C, N] of equal loudness and length. Raises: as `pair`."""
        number, swapped = self._trial()
        first, second = self.pairs[number].clips.values()
        a, b = match_loudness(first, second, self.rate)
        return (b, a) if swapped else (a, b)

    def players(self) -> figures.Player:
        """Players of A and B, labelled with these letters only. Raises: as `pair`."""
        both = (figures.bare_player(wave, self.rate, letter) for letter, wave in zip("AB", self.clips))
        return figures.Player(f"<div>{''.join(player.html for player in both)}</div>")

    def answer(self, choice: str, comment: str = "") -> str:
        """Record "A", "B" or "same" for the current pair and return the new progress.

        Raises: ValueError for another choice and as `pair`; OSError if the file cannot be written, without
        advancing.
        """
        if choice not in ANSWERS.values():
            raise ValueError(f"the answer is {choice!r}; it must be one of {', '.join(ANSWERS.values())}")
        number, swapped = self._trial()
        pair = self.pairs[number]
        first, second = pair.clips
        names = {"A": second, "B": first} if swapped else {"A": first, "B": second}
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
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
        }
        preferences.append(self.path, row)
        self._at += 1
        return self.progress

    def _trial(self) -> tuple[int, bool]:
        if not self.listener:
            raise ValueError("there is no listener yet: call start('Ada') first")
        if self.finished:
            raise ValueError(
                f"{self.listener} has answered all {len(self)} pairs; "
                "preferences.count(preferences.read(path)) evaluates them"
            )
        return self._order[self._at]

    def widget(self) -> "VBox":
        """The test as a panel: listener, question, two players, three buttons, a comment field.

        Raises: RuntimeError if ipywidgets is not installed.
        """
        try:
            import ipywidgets  # noqa: F401
        except ImportError:
            raise RuntimeError(
                "the panel needs ipywidgets (pip install ipywidgets); players() and answer('A') do not"
            ) from None
        return _Panel(self).box


class _Panel:
    """The widgets of a test, and the time at which the current pair appeared."""

    def __init__(self, test: BlindTest):
        import ipywidgets

        self.test, self.shown = test, 0.0
        self.name = ipywidgets.Text(
            test.listener, placeholder="your name", description="listener", continuous_update=False
        )
        self.head, self.sound, self.status = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.comment = ipywidgets.Text(placeholder="why? (optional)", description="comment")
        self.buttons = [ipywidgets.Button(description=label) for label in ANSWERS]
        row = ipywidgets.HBox(self.buttons)
        self.box = ipywidgets.VBox([self.name, self.head, self.sound, row, self.comment, self.status])
        self.name.observe(self._start, "value")
        for button in self.buttons:
            button.on_click(self._answer)
        self._draw()

    def _draw(self) -> None:
        test = self.test
        asking = bool(test.listener) and not test.finished
        if asking:
            question, item = escape(test.pair.question), escape(test.pair.item)
            self.head.value = f"<b>{test.progress}</b> · {question}<br><i>{item}</i>"
        else:
            done = f"Thank you, {escape(test.listener)}."
            self.head.value = done if test.finished else "Enter your name to start."
        self.sound.value = test.players().html if asking else ""
        self.comment.value = ""
        for control in (self.comment, *self.buttons):
            control.disabled = not asking
        self.shown = time.monotonic()

    def _start(self, change: dict[str, str]) -> None:
        if change["new"].strip():
            self.test.start(change["new"])
            self.status.value = ""
            self._draw()

    def _answer(self, button: "Button") -> None:
        if time.monotonic() - self.shown < DEBOUNCE or self.test.finished:
            return
        try:
            self.test.answer(ANSWERS[button.description], self.comment.value)
            self.status.value = f"saved to {escape(self.test.path.name)}"
        except (OSError, ValueError) as error:
            self.status.value = f"not saved: {escape(str(error))}"
            return
        self._draw()
