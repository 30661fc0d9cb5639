"""The takes of a studio: those of earlier sessions and new ones, and what undo would bring back."""

import os
from pathlib import Path

from mgkit.lab.shelf import Shelf
from mgkit.lab.takes import Take


class Collection:
    """`takes` in order, in memory and on the `shelf`. Raises: OSError, in all methods, if files resist."""

    def __init__(self, folder: str | os.PathLike | None = None):
        """With the takes found in `folder`, by default `outputs/takes`."""
        self.shelf = Shelf(folder)
        self.takes: list[Take] = self.shelf.load()
        # The newest last: takes, and the folder in which they were set aside.
        self._removed: list[tuple[list[Take], Path | None]] = []

    @property
    def next_number(self) -> int:
        """A number above those of all takes, and of those that undo would bring back."""
        known = [*self.takes, *(take for takes, _ in self._removed for take in takes)]
        return max((take.number for take in known), default=0) + 1

    @property
    def removal(self) -> str:
        """What undo would bring back, in words; may be empty."""
        if not self._removed:
            return ""
        takes, aside = self._removed[-1]
        if aside is None:
            return f"Take {takes[0].number} was deleted."
        return f"Set aside: {len(takes)} takes, in {os.path.relpath(aside)}."

    def add(self, take: Take) -> None:
        """Add a take and write its file; one that cannot be written stays in memory."""
        self.takes.append(take)
        self.shelf.add(take)

    def star(self, take: Take) -> None:
        """Star a take, or take its star away."""
        take.starred = not take.starred
        self.shelf.update(take)

    def rename(self, take: Take, name: str) -> None:
        """Give a take a name; an empty one brings its prompt back."""
        take.name = name.strip()[:120]
        self.shelf.update(take)

    def delete(self, take: Take) -> None:
        """Remove a take and its file; `undo` brings them back, for a day."""
        self.shelf.remove(take)
        self.takes.remove(take)
        self._removed.append(([take], None))

    def set_aside(self) -> None:
        """Move all takes to a dated folder; `undo` brings them back, and nothing deleted before."""
        if self.takes:
            self._removed = [(self.takes, self.shelf.set_aside())]
        self.takes = []

    def undo(self) -> None:
        """Bring back what was deleted or set aside last."""
        if self._removed:
            takes, aside = self._removed.pop()
            if aside:
                self.shelf.bring_back(aside)
            else:
                self.shelf.restore(takes[0])
            self.takes = sorted([*self.takes, *takes], key=lambda take: take.number)
