"""A blind test that a class takes at once, as files of one folder; who takes part, and their answers.

Axes: C channels, N samples.

    results/pairs.csv             question, item, names and files of two clips; ours, unless you write yours
    results/clips/                the files of our pairs
    results/played/               these clips at equal loudness, as pages play them
    results/answers.csv           the answers of all listeners; see preferences.py
    results/participants.jsonl    who joined, and who has seen their result
    results/access.json           the secrets in the addresses, readable by its owner alone

Every answer and every name is on the disk before the browser hears about it. A server that stops, in whatever
way, is continued by the next one in the same folder. Requests and pages are those of server.py.
"""

import csv
import hmac
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mgkit import audio, hub
from mgkit.lab import pooled, preferences
from mgkit.lab.blind_test import BlindTest, Pair, match_loudness

COLUMNS = ("question", "item", "first", "first_file", "second", "second_file")
# Characters of a name and of a comment, pairs of a test, and lines that a listener may add for each pair.
NAME, COMMENT, PAIRS, LINES = 40, 200, 100, 4
# Largest number of plays that is recorded for a clip.
PLAYS = 99
# Letters and digits that nobody confuses when they type an address from a projector.
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
# Seconds of our clips.
SECONDS = 8


class Refused(ValueError):
    """A request that this test does not grant; its text is for the listener."""


# --- pairs ------------------------------------------------------------------------------------------------


def our_pairs() -> tuple[list[Pair], int]:
    """Twelve pairs and their rate: nano with and without guidance, recordings before and after the codec."""
    from mgkit import MusicGen
    from mgkit.lab.example_chips import example_prompts

    model = MusicGen.get_pretrained("nano")
    rate, prompts, waves = model.sample_rate, example_prompts()[:6], {}
    for guidance in (3, 1):
        model.set_generation_params(duration=SECONDS, cfg_coef=guidance)
        waves[f"guidance {guidance}"] = model.generate(prompts, seed=0)
    pairs = [
        Pair("Which one follows the prompt better?", prompt, {name: wave[i] for name, wave in waves.items()})
        for i, prompt in enumerate(prompts)
    ]
    for path in sorted(hub.shipped("recordings").glob("*.flac")):
        wave, file_rate = audio.read(path)
        wave = audio.resample(audio.to_channels(wave, 1), file_rate, rate)[:, : SECONDS * rate]
        codec = model.codec.decode(model.codec.encode(wave[None]))[0, :, : wave.shape[-1]]
        pairs.append(
            Pair(
                "Which one sounds cleaner?", path.stem.replace("_", " "), {"recording": wave, "codec": codec}
            )
        )
    return pairs, rate


def write_pairs(folder: str | os.PathLike, pairs: Sequence[Pair], rate: int) -> Path:
    """Write pairs of clips at `rate` Hz for a class: `pairs.csv` and 16-bit FLAC files; return its path.

    Raises: FileExistsError if there is a `pairs.csv`; OSError as `audio.write`.
    """
    folder = Path(folder)
    path = folder / "pairs.csv"
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it, or choose another folder")
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    lines: list[Sequence[str]] = [COLUMNS]
    for number, pair in enumerate(pairs, 1):
        line = [pair.question, pair.item]
        for name, letter in zip(pair.clips, ("first", "second"), strict=True):
            file = f"clips/{number:02}_{letter}.flac"
            audio.write(folder / file, pair.clips[name], rate, "peak")
            line += [name, file]
        lines.append(line)

    def write(draft: Path) -> None:
        with open(draft, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)

    return audio.replace_file(path, write)


def read_pairs(folder: Path) -> tuple[list[Pair], int]:
    """Pairs in `pairs.csv` and their sampling rate, the first clip's.

    Raises: ValueError for another header, an incomplete line, no pairs or too many; FileNotFoundError for a
    missing clip; ValueError as `audio.read`.
    """
    path, pairs, rate = folder / "pairs.csv", [], 0
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines or tuple(lines[0]) != COLUMNS:
        raise ValueError(f"{path} has another first line than {','.join(COLUMNS)}")
    if not 1 <= len(lines) - 1 <= PAIRS:
        raise ValueError(f"{path} has {len(lines) - 1} pairs; a test has 1 to {PAIRS}")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(COLUMNS) or not all(line) or line[2] == line[4]:
            raise ValueError(
                f"{path}, line {number}: expected six cells, none empty, and two different names of clips"
            )
        question, item, *clips = line
        waves: dict[str, Tensor] = {}
        for name, clip in zip(clips[::2], clips[1::2]):
            if not (folder / clip).is_file():
                raise FileNotFoundError(f"{path}, line {number}: there is no file {str(folder / clip)!r}")
            wave, file_rate = audio.read(folder / clip)
            rate = rate or file_rate
            waves[name] = audio.resample(wave, file_rate, rate)
        pairs.append(Pair(question, item, waves))
    return pairs, rate


# --- the class --------------------------------------------------------------------------------------------


class Classroom:
    """The listeners of one folder and their tests; one server at a time.

    Each listener who joins gets a new participant ID of 8 hexadecimal digits. A name that is already taken
    gets a number, "Ada (2)". What raises `Refused` changes nothing.
    """

    def __init__(self, folder: str | os.PathLike, most: int = 60):
        """Open the class in `folder`, which has a `pairs.csv`; at most `most` listeners may join.

        Raises: ValueError for `most` below 1 or damaged files; as `read_pairs` and `BlindTest`.
        """
        if most < 1:
            raise ValueError(f"the number of listeners is {most}; it must be at least 1")
        self.folder, self.most = Path(folder), most
        self.pairs, self.rate = read_pairs(self.folder)
        self.answers = self.folder / "answers.csv"
        self.secrets = _secrets(self.folder / "access.json")
        # Participant → name, in the order of joining.
        self.names: dict[str, str] = {}
        self._tests: dict[str, BlindTest] = {}
        # Those who have seen their result, which ends their test.
        self._ended: set[str] = set()
        # A damaged file of answers is rejected now; lines by participant.
        BlindTest(self.pairs, self.rate, self.answers)
        self._lines = Counter(row["participant"] for row in preferences.read(self.answers))
        for event in _read_lines(self.folder / "participants.jsonl"):
            if event.get("event") == "joined":
                self.names[event["participant"]] = event["listener"]
            elif event.get("event") == "result":
                self._ended.add(event["participant"])

    def clips(self) -> Path:
        """Folder of the sound files that pages play: FLAC at equal loudness within a pair.

        A file's name says neither the system nor the letter. Files of an earlier server are used again.
        """
        folder = self.folder / "played"
        folder.mkdir(exist_ok=True)
        for pair in self.pairs:
            paths = [folder / self._clip(pair, which) for which in (0, 1)]
            if not all(path.is_file() for path in paths):
                first, second = pair.clips.values()
                for path, wave in zip(paths, match_loudness(first, second, self.rate)):
                    content = audio.encode(wave, self.rate, ".flac", None)
                    audio.replace_file(path, partial(Path.write_bytes, data=content))
        return folder

    def join(self, name: str) -> str:
        """Let a listener take part; return their participant. Raises: Refused; OSError if not saved."""
        name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
        if not 1 <= len(name) <= NAME:
            raise Refused(f"Your name needs 1 to {NAME} letters. Any name will do.")
        if len(self.names) >= self.most:
            raise Refused(f"This test is full: {self.most} listeners have joined.")
        taken = {other.casefold() for other in self.names.values()}
        label, number = name, 1
        while label.casefold() in taken:
            number += 1
            label = f"{name} ({number})"
        participant = secrets.token_hex(4)
        while participant in self.names:
            participant = secrets.token_hex(4)
        self._note(participant, label, "joined")
        self.names[participant] = label
        return participant

    def answer(self, participant: str, pair: str, choice: str, comment: str, plays: tuple[int, int]) -> None:
        """Record the answer to the pair of this digest. Raises: Refused; OSError if not saved."""
        test = self._test(participant)
        if test.finished or pair != test.pair.digest:
            raise Refused("This pair is answered already.")
        if not all(0 <= count <= PLAYS for count in plays) or len(comment) > COMMENT:
            raise Refused(f"A comment has at most {COMMENT} letters.")
        self._count(participant)
        try:
            test.answer(choice, comment, plays)
        except ValueError as error:
            raise Refused(str(error)) from None
        self._lines[participant] += 1

    def undo(self, participant: str) -> None:
        """Take the last answer back. Raises: Refused; OSError if it is not saved."""
        test = self._test(participant)
        if participant in self._ended:
            raise Refused("Your result was shown; nothing can be taken back now.")
        self._count(participant)
        try:
            test.undo()
        except ValueError as error:
            raise Refused(str(error)) from None
        self._lines[participant] += 1

    def end(self, participant: str) -> None:
        """Let a listener who answered every pair see the result. Raises: Refused before that."""
        if not self._test(participant).finished:
            raise Refused("Your result appears after the last pair.")
        if participant not in self._ended:
            self._note(participant, self.names[participant], "result")
            self._ended.add(participant)

    def state(self, participant: str | None) -> dict[str, Any]:
        """What a listener's page shows, without the names of systems until the result."""
        if participant not in self.names:
            return {"name": None, "count": len(self.pairs), "full": len(self.names) >= self.most}
        assert participant is not None
        test = self._test(participant)
        shown: dict[str, Any] = {
            "name": self.names[participant],
            "count": len(test),
            "done": test.answered,
            "undo": test.can_undo and participant not in self._ended,
        }
        if not test.finished:
            pair, swapped = test.pair, test.swapped
            shown |= {"question": pair.question, "item": pair.item, "pair": pair.digest}
            shown["clips"] = [self._clip(pair, which) for which in ((1, 0) if swapped else (0, 1))]
        elif participant in self._ended:
            result = test.result()
            shown["result"] = [
                {
                    "question": one.question,
                    "counts": [[one.first, one.wins], [one.second, one.losses], ["no difference", one.ties]],
                    "p": one.p,
                }
                for one in result.preferences
            ]
            keys = ("question", "item", "a", "b", "answer", "preferred")
            shown["rows"] = [{key: row[key] for key in keys} for row in result.rows]
        return shown

    def overview(self) -> dict[str, Any]:
        """What the teacher's page shows: how far everybody is, and the pooled answers."""
        rows = preferences.read(self.answers)
        digests = {pair.digest for pair in self.pairs}
        done = Counter(row["participant"] for row in preferences.standing(rows) if row["pair"] in digests)
        count = len(self.pairs)
        return {
            "most": self.most,
            "count": count,
            "finished": sum(done[participant] >= count for participant in self.names),
            "listeners": [[name, done[participant]] for participant, name in self.names.items()],
            "pooled": [
                {
                    "question": one.question,
                    "first": one.first,
                    "second": one.second,
                    "interval": [one.low, one.share, one.high] if one.wins + one.losses else None,
                    "text": str(one),
                }
                for one in pooled.pool(rows)
            ],
        }

    def _test(self, participant: str) -> BlindTest:
        if participant not in self.names:
            raise Refused("Enter your name first.")
        if participant not in self._tests:
            test = BlindTest(self.pairs, self.rate, self.answers)
            test.start(self.names[participant], participant)
            self._tests[participant] = test
        return self._tests[participant]

    def _count(self, participant: str) -> None:
        if self._lines[participant] >= LINES * len(self.pairs):
            raise Refused("That is enough: ask the teacher.")

    def _clip(self, pair: Pair, which: int) -> str:
        text = f"{pair.digest} {which}".encode()
        return hmac.digest(self.secrets["cookie"].encode(), text, "sha256").hex()[:20] + ".flac"

    def _note(self, participant: str, name: str, event: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"time": now, "participant": participant, "listener": name, "event": event}
        _append_line(self.folder / "participants.jsonl", line)


def _secrets(path: Path) -> dict[str, str]:
    """The secrets of a class, new if there is no file: `class`, `teacher` of the addresses, and `cookie`."""
    if not path.exists():
        made = {
            "class": "".join(secrets.choice(LETTERS) for _ in range(8)),
            "teacher": secrets.token_urlsafe(16),
            "cookie": secrets.token_urlsafe(32),
        }

        def write(draft: Path) -> None:
            draft.touch(mode=0o600)
            draft.write_text(json.dumps(made, indent=1), encoding="utf-8")

        audio.replace_file(path, write)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: str(found[name]) for name in ("class", "teacher", "cookie")}
    except (ValueError, KeyError, TypeError):
        kept = {}
    if not kept or not all(re.fullmatch(r"[\w-]{8,99}", secret, re.ASCII) for secret in kept.values()):
        raise ValueError(f"{path} is damaged; remove it, and listeners get a new address")
    return kept


def _append_line(path: Path, line: Mapping[str, str]) -> None:
    """Append a line of JSON. On return it is on the disk."""
    data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
    with open(path, "a+b", buffering=0) as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            # The last line may be incomplete.
            data = data if file.read(1) == b"\n" else b"\n" + data
        if file.write(data) != len(data):
            raise OSError(f"{path} could not be written completely: is the disk full?")
        os.fsync(file.fileno())


def _read_lines(path: Path) -> list[dict[str, str]]:
    """Complete lines of JSON objects; none if there is no file."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            event = json.loads(line)
            found.append({key: str(event[key]) for key in ("participant", "listener", "event")})
        except (ValueError, KeyError, TypeError):
            continue
    return found
