"""The training loop: budget, learning rate, checkpoints and resuming. Every training command runs on it.

    run.json         settings of the run: one frozen dataclass
    checkpoint.pt    state of the run; replaced as a whole
    log.csv, .png    history of its metrics

A learner has one model and its optimizer. `train` calls it until the budget is used up. Ctrl-C or SIGTERM
ends the run after the current step and saves it; the same command resumes it.
"""

import dataclasses
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from tqdm.auto import tqdm

from mgkit import audio
from mgkit.train import history, storage
from mgkit.train.history import Metrics
from mgkit.train.parallel import Processes

REPORT_EVERY = 20  # steps averaged in one row of the history


class Run(Protocol):
    """Settings of a run, a dataclass; the budget is `steps` or `minutes`, whichever is set."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    @property
    def steps(self) -> int | None: ...

    @property
    def minutes(self) -> float | None: ...


class Learner(Protocol):
    """A model in training."""

    def step(self, step: int, lr: float) -> Metrics:
        """Update the model with batch number `step` and return training metrics."""

    def measure(self) -> Metrics:
        """Metrics on validation data."""

    def state_dict(self) -> dict[str, Any]:
        """Complete state, for resuming."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""

    def save(self, out: Path) -> None:
        """Write the trained model into the run's folder."""


def learning_rate(peak: float, progress: float, warmup: float = 0.02) -> float:
    """Linear warm-up over the first `warmup` of the budget, then cosine decay to 1 % of the peak.

    >>> [round(learning_rate(1.0, p), 2) for p in (0.0, 0.01, 0.02, 0.51, 1.0)]
    [0.0, 0.5, 1.0, 0.51, 0.01]
    """
    if progress < warmup:
        return peak * progress / warmup
    decayed = min(1.0, (progress - warmup) / (1 - warmup))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * decayed)))


def train(run: Run, out: str | Path, learner: Learner, *, lr: float, measure_every: int) -> Metrics:
    """Train until `run.steps` or `run.minutes` are used up and return the last validation metrics.

    A run resumes from `out`/checkpoint.pt if there is one. With `steps`, a resumed run ends exactly like an
    uninterrupted one; with `minutes`, the learning rate follows the clock. Every `measure_every` steps, the
    model is validated and saved.

    Raises: ValueError for an invalid budget, or if `out` holds a run with other settings; FloatingPointError
    if the loss is NaN or infinite.
    """
    parse_budget(run, lr)
    loop = Loop(run, Path(out), learner, lr)
    return loop.train(measure_every)


def parse_budget(run: Run, lr: float) -> None:
    """Raises: ValueError unless the budget is in steps or in minutes, and it and `lr` are above 0."""
    if (run.steps is None) == (run.minutes is None):
        raise ValueError(
            f"the budget is {run.steps} steps and {run.minutes} minutes; give one of them, and None for "
            "the other"
        )
    if run.steps is not None and not (isinstance(run.steps, int) and run.steps > 0):
        raise ValueError(f"steps is {run.steps!r}; it must be an integer of at least 1")
    for name, value in (("minutes", run.minutes), ("lr", lr)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; it must be a number above 0")


@dataclass
class Progress:
    """Position of a run in its budget, and its metrics so far."""

    step: int = 0
    seconds: float = 0.0
    rows: list[Metrics] = field(default_factory=list)
    validation: Metrics = field(default_factory=dict)

    def record(self, metrics: Metrics) -> None:
        self.rows.append({"step": self.step, "minutes": round(self.seconds / 60, 2)} | metrics)

    def fraction(self, run: Run) -> float:
        """Used part of the budget, 1 or more at its end."""
        if run.steps:
            return self.step / run.steps
        assert run.minutes, "a run needs a budget in steps or minutes"
        return self.seconds / (60 * run.minutes)


class Loop:
    """A run in progress."""

    def __init__(self, run: Run, out: Path, learner: Learner, lr: float):
        self.run, self.out, self.learner, self.lr = run, out, learner, lr
        self.processes, self.progress = Processes(), Progress()

    def train(self, measure_every: int) -> Metrics:
        progress, first_process = self.progress, self.processes.rank == 0
        if first_process:
            claim(self.out, self.run)
            if self.processes.size > 1:
                print(f"{self.processes.size} processes share every batch", file=sys.stderr)
        self.processes.barrier()
        self.resume()
        if not progress.rows:
            # The first row is the model before any training.
            self.validate()
        recent: list[Metrics] = []
        with stop_on_signal() as stop, _progress_bar(self.out.name, hidden=not first_process) as bar:
            # A resumed run begins where it stopped, a finished one at its end.
            bar.update(self.percent())
            while not (interrupted := self.interrupted(stop)):
                used = progress.fraction(self.run)
                if used >= 1:
                    break
                began = time.monotonic()
                lr = learning_rate(self.lr, used)
                recent.append(self.step(lr))
                if progress.step % REPORT_EVERY == 0:
                    progress.record({"lr": lr} | history.mean(recent))
                    recent = []
                    bar.set_postfix(_postfix(progress))
                if progress.step % measure_every == 0:
                    self.validate()
                    self.save()
                progress.seconds += time.monotonic() - began
                bar.update(self.percent() - bar.n)
        if not interrupted:
            self.validate()
        self.save()
        self.processes.barrier()
        return progress.validation

    def percent(self) -> float:
        """Used part of the budget, from 0 to 100."""
        return 100 * min(1.0, self.progress.fraction(self.run))

    def step(self, lr: float) -> Metrics:
        metrics = self.learner.step(self.progress.step, lr)
        self.progress.step += 1
        if not all(math.isfinite(value) for value in metrics.values()):
            raise FloatingPointError(
                f"the loss of step {self.progress.step} is NaN or infinite; the last good checkpoint is in "
                f"{self.out}: resume it with a lower learning rate"
            )
        return metrics

    def validate(self) -> None:
        self.progress.validation = self.learner.measure()
        self.progress.record(self.progress.validation)

    def interrupted(self, stop: threading.Event) -> bool:
        """Whether any process was asked to stop. All take the clock of process 0, to stop together."""
        progress, processes = self.progress, self.processes
        if processes.size == 1:
            return stop.is_set()
        clock = progress.seconds if processes.rank == 0 else 0.0
        shared = torch.tensor([clock, float(stop.is_set())], device=processes.device)
        progress.seconds, stops = processes.all_reduce([shared])[0].tolist()
        return stops > 0

    def resume(self) -> None:
        """Restore `out`/checkpoint.pt if there is one."""
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return
        state, progress = storage.load(path, self.processes.device), self.progress
        try:
            self.learner.load_state_dict(state["learner"])
            progress.step, progress.seconds = state["step"], state["used"]
            progress.rows, progress.validation = state["history"], state["last"]
        except (KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"{path} is not the checkpoint of this run ({type(error).__name__}: {reason}): "
                "start in another folder, or remove it to start anew"
            ) from error

    def save(self) -> None:
        """Write checkpoint, history and model, in process 0 only."""
        if self.processes.rank > 0:
            return
        progress = self.progress
        state = {
            "learner": self.learner.state_dict(),
            "step": progress.step,
            "used": progress.seconds,
            "history": progress.rows,
            "last": progress.validation,
        }
        storage.save(self.out / "checkpoint.pt", state)
        history.write(self.out, progress.rows)
        self.learner.save(self.out)


def _progress_bar(name: str, hidden: bool) -> tqdm:
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    return tqdm(total=100, desc=name, bar_format=layout, disable=hidden)


def _postfix(progress: Progress) -> dict[str, str]:
    """The latest metrics as text; the losses of single codebooks (`book0` …) are left out."""
    latest = progress.rows[-1] | progress.validation
    shown = {name: value for name, value in latest.items() if name[:4] != "book" and name != "minutes"}
    formats = {"step": ".0f", "lr": ".3g"}
    return {name: format(value, formats.get(name, ".3f")) for name, value in shown.items()}


def claim(out: Path, run: Run) -> None:
    """Write `run` to `out`/run.json, creating the folder.

    Raises: ValueError if the folder holds a run with other settings, listing the differences.
    """
    text = json.dumps(dataclasses.asdict(run), indent=1)
    path = out / "run.json"
    if path.is_file() and (old := _read_run(path)) not in (None, new := json.loads(text)):
        changes = ", ".join(
            f"{name} {old.get(name)} (now {new.get(name)})"
            for name in sorted(old | new)
            if old.get(name) != new.get(name)
        )
        raise ValueError(
            f"{out} holds another run: {changes}; start in another folder, or with the earlier settings"
        )
    out.mkdir(parents=True, exist_ok=True)
    audio.replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _read_run(path: Path) -> dict[str, Any] | None:
    """The settings in a run.json; None for a damaged one, if the run has not made a checkpoint yet."""
    try:
        return storage.read_json(path)
    except ValueError:
        if (path.parent / "checkpoint.pt").is_file():
            raise ValueError(
                f"{path} is damaged, so the settings of the run in {path.parent} are unknown: remove it to "
                "continue that run with the present settings, or start in another folder"
            ) from None
        return None


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM, for ending the run after the current step."""
    stop = threading.Event()
    # Python delivers signals to the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
