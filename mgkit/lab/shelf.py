"""The folder of a studio's takes, in which a later studio finds them again.

outputs/takes/take-003-seed-42.flac    the music, with its manifest
outputs/takes/take-003-seed-42.json    name, star, seam, source, seconds of computation
outputs/takes/.deleted/                deleted takes, for a day
outputs/takes/earlier/2026-11-27_213000/    takes set aside when the studio was started over
"""

import io
import json
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mgkit import audio
from mgkit.files import replace_file
from mgkit.lab.reset import EARLIER, new_folder
from mgkit.lab.takes import Take

# Takes shown of an earlier session, at most; older files stay in the folder.
SHOWN = 50
# Seconds for which deleted takes are kept.
DAY = 86400
NOTES = ("name", "starred", "seam", "source", "elapsed")


def default_folder() -> Path:
    """`outputs/takes` in the working folder, or beside it in a folder of notebooks."""
    here = Path.cwd()
    return (here.parent if here.name == "notebooks" else here) / "outputs" / "takes"


class Shelf:
    """The takes in `folder`, which is created with the first one."""

    def __init__(self, folder: str | os.PathLike | None = None):
        """`folder` is `default_folder()` unless given."""
        self.folder = Path(folder) if folder is not None else default_folder()
        self._deleted = self.folder / ".deleted"

    def load(self) -> list[Take]:
        """The last takes by number; a file that was damaged or not made by mgkit is left out."""
        self._purge()
        takes = []
        for path in sorted(self.folder.glob("take-*.flac"), key=_number)[-SHOWN:]:
            try:
                takes.append(_read(path))
            except (ValueError, OSError):
                continue
        return takes

    def add(self, take: Take) -> None:
        """Give the take a number of its own and write its file. Raises: OSError if it cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        used = {
            _number(path) for path in (*self.folder.glob("take-*.flac"), *self._deleted.glob("take-*.flac"))
        }
        if take.number in used:
            take.number = max(used) + 1
        path = self.folder / f"{take.file_name}.flac"
        # Saved as generated: the sound that is played and continued here is not normalized.
        content = audio.encode(
            take.wave.clamp(-1, 1), take.rate, ".flac", {**take.manifest, "strategy": "clip"}
        )
        take.path = replace_file(path, lambda draft: draft.write_bytes(content))
        self.update(take)

    def update(self, take: Take) -> None:
        """Write the take's notes: name, star and provenance. Raises: OSError if they cannot be written."""
        if take.path:
            notes = json.dumps({name: getattr(take, name) for name in NOTES}, ensure_ascii=False)
            replace_file(
                take.path.with_suffix(".json"), lambda draft: draft.write_text(notes, encoding="utf-8")
            )

    def remove(self, take: Take) -> None:
        """Move the take's files aside, for `restore`. Raises: OSError if they cannot be moved."""
        if take.path:
            self._deleted.mkdir(exist_ok=True)
            _move(take.path, self._deleted)

    def restore(self, take: Take) -> None:
        """Move a removed take's files back. Raises: OSError if they are gone."""
        if take.path:
            _move(self._deleted / take.path.name, self.folder)

    def set_aside(self) -> Path:
        """Move every take to a dated folder in `earlier`, to stay there, and return it. Raises: OSError."""
        aside = new_folder(self.folder / EARLIER)
        for path in self.folder.glob("take-*.flac"):
            _move(path, aside)
        return aside

    def bring_back(self, aside: Path) -> None:
        """Move takes that were set aside back. Raises: OSError if they cannot be moved."""
        for path in aside.glob("take-*.flac"):
            _move(path, self.folder)
        aside.rmdir()

    def _purge(self) -> None:
        """Delete for good what was removed more than a day ago."""
        for path in self._deleted.glob("take-*"):
            if time.time() - path.stat().st_ctime > DAY:
                path.unlink(missing_ok=True)


def encode(take: Take, extension: str) -> bytes:
    """Bytes of the take as a file for others, at the loudness of streaming services.

    Raises: ValueError for another extension than `audio.FORMATS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return take.save(Path(folder) / f"{take.file_name}{extension}").read_bytes()


def archive(takes: Sequence[Take], extension: str) -> bytes:
    """Zip file of takes. Raises: ValueError for another extension, or no takes."""
    if not takes:
        raise ValueError("there are no takes to download yet: press Generate first")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for take in takes:
            file.writestr(f"{take.file_name}{extension}", encode(take, extension))
    return buffer.getvalue()


def _number(path: Path) -> int:
    found = re.match(r"take-(\d+)", path.name)
    return int(found[1]) if found else 0


def _read(path: Path) -> Take:
    """The take in a file. Raises: ValueError if it has no manifest; OSError if it cannot be read."""
    wave, rate = audio.read(path)
    manifest = audio.read_manifest(path)
    notes: dict = {"name": "", "starred": False, "seam": None, "source": "", "elapsed": 0.0}
    file = path.with_suffix(".json")
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        notes |= {name: stored[name] for name in NOTES if name in stored}
    return Take(_number(path), wave, rate, manifest, path=path, **notes)


def _move(path: Path, folder: Path) -> None:
    """Move a take's sound and notes to `folder`."""
    notes = path.with_suffix(".json")
    os.replace(path, folder / path.name)
    if notes.exists():
        os.replace(notes, folder / notes.name)
