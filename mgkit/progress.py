"""The progress bar of a run."""

from types import TracebackType
from typing import Self

from mgkit.perform import OnStep


class ProgressBar:
    """An `OnStep` showing a bar with the time left, drawn at the first step; calls `also` after each."""

    def __init__(self, also: OnStep | None, unit: str = " steps"):
        from tqdm.auto import tqdm

        self._tqdm, self._also, self._unit = tqdm, also, unit
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = self._tqdm(total=total, unit=self._unit)
        self._bar.update(done - self._bar.n)
        if self._also:
            self._also(done, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
